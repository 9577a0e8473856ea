"""The catalog's port: heads, names and claims, and copies of versions and nodes for fast reads.

Everything except heads and leases can be rebuilt from the volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from blake3 import blake3

from storage.errors import FormatError, StorageError
from storage.keys import SHARD_HASH_BYTES, StripeKey

T = TypeVar("T")

USER_KEY_BYTES = 16
COPIED_IN_USE = "catalog-copied-in-use"
"""Document of a catalog that was copied while in use and may lack entries; empty after a rebuild."""

USER_KEYS = "user-keys"
"""Document with the users' keys. If there is one, the store is encrypted, wholly or in part."""

DESTROYED_KEYS = "user-keys-destroyed"
"""Document with the ids of users' keys that were destroyed; copies that come back from volumes are not taken."""

NAME_PLAIN_MAX = 440  # LMDB keys have at most 511 bytes
"""Bytes of a name that its key has in clear; the rest of a longer one is hashed."""


class DamagedSettings(FormatError):
    """The settings in the catalog cannot be read. All other records may be intact."""


class StoreSettings(msgspec.Struct, frozen=True):
    """Settings of a store.

    Attributes:
        store_id: hexadecimal id of the store.
        k, n: default erasure profile.
        chunk_size: default chunk size in bytes.
        volumes: directories by slot; relative to the store's directory if they are inside it.
        incomplete: slots of volumes that wait for repair.
        format: format of the catalog, 1.
    """

    store_id: str
    k: int
    n: int
    chunk_size: int
    volumes: list[str]
    incomplete: list[int] = []
    format: int = 1


class FileEntry(msgspec.Struct, frozen=True, array_like=True):
    """A file: its owner, its name, its newest version (head), and that version's size in bytes.

    ``taken``: bytes that all its versions take on the volumes; 0: unknown, as an older release wrote it.
    """

    user_id: str
    filename: str
    head: bytes
    size: int
    taken: int = 0

    @property
    def counted(self) -> int:
        """The bytes that count for the owner's quota."""
        return self.taken or self.size


class FileHead(NamedTuple):
    """A file's entry, and the bytes of its newest version; None if that is not in the catalog."""

    entry: FileEntry
    raw: bytes | None


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a user's files take: their number, and their bytes on the volumes."""

    files: int = 0
    bytes: int = 0
    user_id: str = ""


class Counters(msgspec.Struct, frozen=True, array_like=True):
    """Totals, updated by every commit.

    Attributes:
        files, versions, logical_bytes: number of files and of versions, and size of all files in bytes.
        sequence: the last sequence number given to a version or tombstone.
        latest: file id and version id of the version committed last; empty if there is none.
        closed: whether the store was closed in good order after the last commit.
        committed: the last committed sequence number, if ``sequence`` was raised beyond it to that of a record known
            only to the volumes; None: it is ``sequence``.
        reserved: no version with a higher sequence number was written to the volumes; 0 in stores of earlier releases.
    """

    files: int = 0
    versions: int = 0
    logical_bytes: int = 0
    sequence: int = 0
    latest: bytes = b""
    closed: bool = False
    committed: int | None = None
    reserved: int = 0

    @property
    def reached(self) -> int:
        """The sequence number up to which the catalog has committed everything."""
        return self.sequence if self.committed is None else self.committed


class ProfileCount(NamedTuple):
    """How many files (by their heads) and how many versions are coded with a (k, n) profile."""

    k: int
    n: int
    files: int
    versions: int


class StoredEntry(NamedTuple):
    """A version object in the catalog, and the entry of its file.

    ``entry`` is None if the file was deleted, or if its entry cannot be read; then ``problem`` says why.
    """

    file_id: bytes
    entry: FileEntry | None
    version_id: bytes
    raw: bytes
    problem: str = ""


class Holding(NamedTuple):
    """A user's claim on a stripe: for a version of the user that contains it, or for uploads, given by their numbers.

    If the claim cannot be read, ``problem`` says so, and the claim must be kept. ``name`` is the catalog's name of a
    sealed chunk, which ends with the claim. ``hashes`` are those of the chunk's shards, 16 bytes each, if a client
    wrote them itself and the store has not verified that they belong together; empty: it has, or wrote them. They are
    :data:`UNKNOWN_ORIGIN` if it is not known any more who wrote them, as after a rebuild.
    """

    stripe: StripeKey
    user: bytes
    uploads: tuple[int, ...]
    problem: str = ""
    name: bytes = b""
    hashes: bytes = b""


UNKNOWN_ORIGIN = bytes(SHARD_HASH_BYTES)
"""In the place of hashes: a client may have written any of the shards itself."""

LEASES_BEFORE = 0
"""Number for all uploads whose claims are in the former format, which had times instead of numbers."""


class UploadRecord(msgspec.Struct, frozen=True, array_like=True):
    """An upload with claims.

    Attributes:
        interrupted_s: when it was interrupted, in the store's time; None: it is under way.
        user: key of its user; empty in records of earlier releases.
        name: key of the file's name.
        taken: what it takes of the user's quota; 0 once it was resumed.
    """

    interrupted_s: float | None = None
    user: bytes = b""
    name: bytes = b""
    taken: int = 0


class StoreTime(msgspec.Struct, frozen=True, array_like=True):
    """The store's own time, and the number of its latest upload.

    Attributes:
        open_s: for how many seconds the store was open, as far as is known.
        last_upload: number of the latest upload.
        format: format of claims: 1; 0 before uploads had numbers.
    """

    open_s: float = 0.0
    last_upload: int = 0
    format: int = 0


@lru_cache(maxsize=1024)
def user_key(user_id: bytes) -> bytes:
    """Return a fixed-length hash of a user id, for use in keys."""
    return blake3(user_id).digest(USER_KEY_BYTES)


def name_key(user: bytes, filename: bytes) -> bytes:
    """Return the key of a name. Keys sort by user, then by name (by the first 440 bytes of longer names)."""
    if len(filename) <= NAME_PLAIN_MAX:
        return user + filename
    return user + filename[:NAME_PLAIN_MAX] + blake3(filename).digest()


class CatalogTransaction(Protocol):
    """Reads and changes that take effect together or not at all."""

    def file(self, file_id: bytes) -> FileEntry | None:
        """Return the entry of a file; None if there is none."""

    def find(self, key: bytes) -> bytes | None:
        """Return the file id for a :func:`name_key`; None if there is none."""

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        """Return the bytes of a version object; None if there is none."""

    def put_version(self, file_id: bytes, version_id: bytes, raw: bytes) -> None:
        """Store a version object."""

    def set_file(self, file_id: bytes, entry: FileEntry, key: bytes) -> None:
        """Create a file or change its head; ``key`` is its :func:`name_key`."""

    def delete_file(self, file_id: bytes, key: bytes, tombstone: bytes) -> None:
        """Remove a file and its name, and store its tombstone, which is pending until :meth:`tombstones_written`.

        The file's versions stay until they are collected.
        """

    def delete_version(self, file_id: bytes, version_id: bytes, tombstone: bytes) -> None:
        """Store the tombstone of a version that is no head, like that of a file. The version stays until collected."""

    def tombstone(self, key: bytes) -> bytes | None:
        """Return the tombstone of a file (by its id), or of a version (by the ids of both, joined); None without."""

    def keep_tombstone(self, key: bytes, tombstone: bytes) -> None:
        """Store a tombstone."""

    def tombstones_written(self, keys: Iterable[bytes]) -> None:
        """Note that these tombstones are on the volumes."""

    def forget_file(self, file_id: bytes) -> None:
        """Remove a file's entry; its name and versions stay."""

    def forget_name(self, key: bytes, file_id: bytes) -> None:
        """Remove a name if it belongs to this file."""

    def put_nodes(self, nodes: Iterable[tuple[bytes, bytes]]) -> None:
        """Store manifest nodes, as (id, bytes)."""

    def hold(
        self,
        user: bytes,
        stripes: Iterable[StripeKey],
        upload: int | None,
        names: Mapping[StripeKey, bytes] | None = None,
        hashes: Mapping[StripeKey, bytes] | None = None,
    ) -> None:
        """Enter a user's claims on stripes, for an upload or, if None, for a version.

        Args:
            user: key of the user.
            stripes: the stripes.
            upload: number of the upload; None: a version.
            names: the names by which :meth:`Catalog.chunks_named` finds sealed chunks, 32 bytes each.
            hashes: those of shards that were not verified, see :class:`Holding`. A claim that exists keeps its own, or
                none; and a name that leads to another chunk stays.
        """

    def vouch(self, user: bytes, stripe: StripeKey) -> None:
        """Note that the store verified or wrote all shards of a stripe: a user's claim on it has no hashes then."""

    def keep_upload(self, number: int, record: UploadRecord) -> None:
        """Store the record of an upload, in place of its former record."""

    def end_upload(self, number: int) -> None:
        """Remove an upload, so that its claims do not keep anything any more."""

    def set_store_time(self, time: StoreTime) -> None:
        """Replace the store's time."""

    def keep_incomplete(self, slots: Iterable[int]) -> None:
        """Store in the settings which volumes wait for repair. Damaged settings stay: then all volumes wait."""

    def usage(self, user: bytes) -> Usage:
        """Return what a user's files take. It changes with their entries."""

    def counters(self) -> Counters:
        """Return the current totals."""

    def set_counters(self, counters: Counters) -> None:
        """Replace the totals."""


class Catalog(Protocol):
    """The catalog of a store. Thread-safe. ``transact`` serialises writers; readers see the last commit."""

    @property
    def sealed_with(self) -> bytes:
        """The id of the user key that seals the catalog's rows; empty if they are plain."""

    def unlock(self, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        """Use the key that seals the rows. Before, settings, totals and few documents can be read.

        Args:
            secret: 32 bytes.
            token_bytes: source of random bytes.
        """

    def seal(self, key_id: bytes, secret: bytes, token_bytes: Callable[[int], bytes]) -> None:
        """Seal all rows that have what users wrote, in one transaction. Call it while nobody reads; others may write.

        Args:
            key_id: names the key.
            secret: the key, 32 bytes.
            token_bytes: source of random bytes.
        """

    def trouble(self) -> str:
        """Return why the catalog cannot be used or written now; empty if it can. Retries after a failure."""

    def settings(self) -> StoreSettings | None:
        """Return the settings; None in a catalog that was never set up.

        Raises:
            DamagedSettings: they cannot be read.
            FormatError: they are of a newer format.
        """

    def save_settings(self, settings: StoreSettings) -> None:
        """Durably replace the settings."""

    def document(self, name: str) -> bytes | None:
        """Return a document stored by :meth:`save_document`, such as a pool's members and layouts."""

    def save_document(self, name: str, raw: bytes) -> None:
        """Durably store a small document, in place of the former one with this name."""

    def save_documents(self, documents: Mapping[str, bytes]) -> None:
        """Durably store several documents by name, all of them or none."""

    def transact(self, work: Callable[[CatalogTransaction], T]) -> T:
        """Run ``work``, then commit durably; if it raises, nothing is kept.

        Args:
            work: reads and changes through the transaction. It may be run more than once, as a catalog may run it on
                the last committed state and commit only if nothing that it read has changed since. So it must do no
                I/O, not wait for anything, and change nothing else. Each run reads a consistent state. It may raise.
        """

    def freeing(self) -> AbstractContextManager[None]:
        """In the block, this thread deletes or collects: its writes may use disk space that is kept for that."""

    def file(self, file_id: bytes) -> FileEntry | None:
        """Return the entry of a file; None if there is none."""

    def heads(self, file_ids: Sequence[bytes]) -> list[FileHead | StorageError | None]:
        """Return files with their newest versions, all from the same state; None for each that does not exist.

        In the place of a file whose entry cannot be read is the error.
        """

    def find(self, key: bytes) -> bytes | None:
        """Return the file id for a :func:`name_key`; None if there is none."""

    def names(self, user: bytes, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return (key, file id) in name order, for names that begin with ``prefix`` and come after the key ``after``.

        Only the first 440 bytes of ``prefix`` count.
        """

    def version(self, file_id: bytes, version_id: bytes) -> bytes | None:
        """Return the bytes of a version object; None if there is none."""

    def node(self, node_id: bytes) -> bytes | None:
        """Return the bytes of a manifest node; None if there is none."""

    def is_held(self, stripe: StripeKey) -> bool:
        """Whether any user has a claim on a stripe."""

    def holds(self, user: bytes, stripes: Sequence[StripeKey]) -> list[bool]:
        """Return for each stripe whether the user has a claim on it."""

    def unverified(self, stripe: StripeKey) -> bytes:
        """Return the hashes of a stripe's shards, if all claims on it have some; see :class:`Holding`."""

    def chunks_named(self, names: Sequence[bytes]) -> list[bytes | None]:
        """Return the ids of the stored chunks with these names; None for each that nobody holds by that name."""

    def counters(self) -> Counters:
        """Return the current totals."""

    def usage(self, user: bytes) -> Usage:
        """Return what a user's files take."""

    def usages(self) -> list[Usage]:
        """Return what the files of each user take who has, or had, some."""

    def profiles(self) -> list[ProfileCount]:
        """Return the counts of erasure profiles in use, sorted by k and n."""

    def recount(self) -> None:
        """Recompute totals and profile counts that cannot be read, or that an older release did not keep.

        Call it while nobody writes.
        """

    def versions(self) -> Iterator[StoredEntry]:
        """Yield all version objects, by file."""

    def nodes(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[bytes]:
        """Yield the ids of nodes, from ``start`` to before ``stop``."""

    def tombstone(self, key: bytes) -> bytes | None:
        """Return a tombstone; see :meth:`CatalogTransaction.tombstone`."""

    def tombstones(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all tombstones, as (key, bytes), ordered by key: a file's, then those of its versions."""

    def pending_tombstones(self) -> list[tuple[bytes, bytes]]:
        """Return the tombstones that may not be on the volumes yet, as (key, bytes)."""

    def holdings(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Holding]:
        """Yield all claims, ordered by stripe key."""

    def uploads(self) -> dict[int, UploadRecord]:
        """Return the uploads, by number."""

    def store_time(self) -> StoreTime | None:
        """Return the store's time; None if none was stored yet."""

    def claims(self) -> int:
        """Return the number of claims, which is about the number of chunks."""

    def drop_versions(self, keys: Iterable[tuple[bytes, bytes]], *, counted: bool = False) -> None:
        """Remove version objects that were deleted, given as (file id, version id).

        Args:
            keys: the versions.
            counted: whether to subtract them from the totals.
        """

    def drop_nodes(self, node_ids: Iterable[bytes]) -> None:
        """Remove nodes."""

    def drop_holdings(self, holdings: Iterable[Holding]) -> None:
        """Remove claims that have not changed from those given."""

    def close(self) -> None:
        """Close the catalog."""
