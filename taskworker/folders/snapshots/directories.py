"""Directories as blobs. Large ones are split where names say so, so that one more file changes few parts."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from taskworker.folders.entries import NAME_BYTES_MAX, Entry, Kind, require_name
from taskworker.folders.problems import FolderDamaged
from taskworker.folders.snapshots.blobs import BLOB_ID_BYTES

DIRECTORY_BYTES_MAX = 64 << 20
"""Bytes of a directory's blob: far more than the parts below come to."""
_PART_ENTRIES_MAX = 4096
_CUT_MASK = 1023
"""Directories are cut, on average, every 1,024 entries."""
_PARTS_MAX = 1 << 20

_BlobId = Annotated[bytes, Meta(min_length=BLOB_ID_BYTES, max_length=BLOB_ID_BYTES)]


class Directory(msgspec.Struct, frozen=True, array_like=True):
    """A directory, or a part of a large one.

    Attributes:
        format: number of this form.
        entries: what is in it, by name.
        parts: of a large directory: its parts, each a blob, in order of their entries' names.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    entries: Annotated[tuple[Entry, ...], Meta(max_length=_PART_ENTRIES_MAX)] = ()
    parts: Annotated[tuple[_BlobId, ...], Meta(max_length=_PARTS_MAX)] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Directory)


def store_directory(entries: Sequence[Entry], store: Callable[[bytes], bytes]) -> bytes:
    """Store a directory, and return its id.

    Args:
        entries: what is in it, by name.
        store: stores a blob, and returns its id.
    """
    parts = list(_parts(entries))
    if len(parts) == 1:
        return store(_encoder.encode(Directory(1, tuple(parts[0]))))
    ids = tuple(store(_encoder.encode(Directory(1, tuple(part)))) for part in parts)
    return store(_encoder.encode(Directory(1, (), ids)))


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    if len(entries) <= _CUT_MASK:
        yield entries
        return
    start = 0
    for position, entry in enumerate(entries, start=1):
        if position - start == _PART_ENTRIES_MAX or not zlib.crc32(entry.name) & _CUT_MASK:
            yield entries[start:position]
            start = position
    if start < len(entries):
        yield entries[start:]


def read_directory(directory: bytes, load: Callable[[bytes], bytes]) -> Iterator[Entry]:
    """What is in a directory, by name.

    Args:
        directory: its id.
        load: loads a blob by its id.

    Raises:
        FolderDamaged: it is not a directory that this release wrote, or names what no file can be named.
    """
    whole = decode_directory(load(directory))
    before = b""
    for part in whole.parts:
        inner = decode_directory(load(part))
        if inner.parts:
            raise FolderDamaged("a part of a directory has parts itself")
        before = _require_good(inner.entries, before)
        yield from inner.entries
    _require_good(whole.entries, before)
    yield from whole.entries


def decode_directory(data: bytes) -> Directory:
    """A directory from bytes.

    Raises:
        FolderDamaged: they are not one.
    """
    try:
        directory = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FolderDamaged(f"a directory of the folder is not one that this release wrote: {error}") from None
    if directory.entries and directory.parts:
        raise FolderDamaged("a directory of the folder has both entries and parts")
    return directory


def _require_good(entries: Sequence[Entry], before: bytes) -> bytes:
    """Refuse entries that no directory has, or whose names do not come after ``before``; returns the last name."""
    names = [before, *(entry.name for entry in entries)]
    if not all(map(operator.lt, names, names[1:])):
        raise FolderDamaged("a directory of the folder is out of order")
    for entry in entries:
        require_name(entry.name)
        content = entry.content
        if len(content) == 1:
            good = len(content[0]) == BLOB_ID_BYTES
        else:
            good = entry.kind is not Kind.DIRECTORY and all(len(each) == BLOB_ID_BYTES for each in content)
        if not good:
            raise FolderDamaged(f"{entry.name[:NAME_BYTES_MAX]!r} has no content that could be looked up")
    return names[-1]
