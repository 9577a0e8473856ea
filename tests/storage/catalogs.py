"""The implementations of the catalog's port, and records for tests of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

from storage.catalog import Catalog, FileEntry, LmdbCatalog, MemoryCatalog, name_key, user_key
from storage.formats.manifest import RootNode, encode_root, object_id
from storage.formats.version_records import RECORD_FORMAT, VersionRecord
from storage.formats.versions import StoredVersion, seal
from storage.keys import BYTE, Kind, StripeKey

CATALOGS: dict[str, Callable[[Path], Catalog]] = {
    "lmdb": LmdbCatalog,
    "memory": lambda path: MemoryCatalog(),
    "sealed lmdb": lambda path: _sealed(LmdbCatalog(path)),
    "sealed memory": lambda path: _sealed(MemoryCatalog()),
}

KEY_ID, SECRET = bytes(range(16)), bytes(range(32))


def _sealed(catalog: Catalog) -> Catalog:
    catalog.seal(KEY_ID, SECRET, os.urandom)
    return catalog


def id_of(number: int, length: int = 32) -> bytes:
    """Return some id."""
    return blake3(b"%d" % number).digest(length)


def stripe_of(number: int) -> StripeKey:
    """Return the key of some chunk's stripe."""
    return StripeKey(id_of(number) + BYTE[Kind.CHUNK] + BYTE[3] + BYTE[5])


def version_of(
    file_id: bytes, sequence: int, *, k: int = 4, n: int = 6, size: int = 1, name: str = "a"
) -> StoredVersion:
    """Return some version of a file."""
    root = RootNode(1, size, 1 << 16, k, n, 0, 0, id_of(sequence))
    raw = encode_root(root)
    record = VersionRecord(RECORD_FORMAT, file_id, None, object_id(raw), size, "ada", name, 0, sequence, None, "")
    return seal(record, root, raw)


def entry_of(stored: StoredVersion) -> FileEntry:
    """Return a file's entry with this version as its head."""
    return FileEntry(stored.record.user_id, stored.record.filename, stored.version_id, stored.record.size)


def key_of(name: str, user: str = "ada") -> bytes:
    """Return the key of a file's name."""
    return name_key(user_key(user.encode()), name.encode())
