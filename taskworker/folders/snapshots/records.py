"""A folder's record: which snapshots it has, and where their blobs are indexed."""

from __future__ import annotations

from typing import Annotated

import msgspec
from blake3 import blake3
from msgspec import Meta

from storage.errors import InvalidArgument
from storage.limits import check_filename
from taskworker.folders.entries import Entry, Kind
from taskworker.folders.problems import FolderDamaged
from taskworker.folders.snapshots.blobs import BLOB_ID_BYTES, CONTAINER_BYTES

RECORDS = ".folders/snapshots/"
DATA = ".folders/data/"
SNAPSHOTS_MAX = 1 << 16
RECORD_BYTES_MAX = 256 << 20
_TEXT_MAX = 4096

_Container = Annotated[bytes, Meta(min_length=CONTAINER_BYTES, max_length=CONTAINER_BYTES)]
_Text = Annotated[str, Meta(max_length=_TEXT_MAX)]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """A folder at one moment.

    Attributes:
        time_ms: when it was begun, ms since 1970.
        root: the directory itself; its content is the id of the blob that describes it.
        host: name of the machine.
        path: of the directory on that machine, for people.
        files: regular files in it.
        size: their bytes.
        added: bytes that were stored for it, as far as they were new.
        failed: files that could not be taken.
        note: free text.
    """

    time_ms: int
    root: Entry
    host: _Text
    path: _Text
    files: Annotated[int, Meta(ge=0)]
    size: Annotated[int, Meta(ge=0)]
    added: Annotated[int, Meta(ge=0)]
    failed: Annotated[int, Meta(ge=0)] = 0
    note: _Text = ""

    @property
    def id(self) -> str:
        """Its name: 32 hex digits of the hash of all that it is."""
        return blake3(msgspec.msgpack.encode(self)).digest(16).hex()

    @property
    def directory(self) -> bytes:
        """The id of the blob that describes its directory."""
        return self.root.content[0]


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An index of blobs of a snapshot that is being taken, or that was interrupted: the next one need not store them.

    Attributes:
        index: container of the index.
        time_ms: when the blobs were stored, ms since 1970.
    """

    index: _Container
    time_ms: int


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What changes about a folder.

    Attributes:
        format: number of this form.
        generation: is counted up when blobs are moved or removed.
        snapshots: the oldest first.
        indexes: containers with the indexes of all blobs.
        doomed: containers that nothing needs any more, and that are being deleted.
        pending: indexes of what no snapshot consists of yet.
    """

    format: Annotated[int, Meta(ge=1, le=1)] = 1
    generation: Annotated[int, Meta(ge=0)] = 0
    snapshots: Annotated[tuple[Snapshot, ...], Meta(max_length=SNAPSHOTS_MAX)] = ()
    indexes: tuple[_Container, ...] = ()
    doomed: tuple[_Container, ...] = ()
    pending: tuple[Pending, ...] = ()


_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """A record as bytes."""
    return msgspec.msgpack.encode(record)


def decode_record(data: bytes) -> Record:
    """A record from bytes; none at all are that of a new folder.

    Raises:
        FolderDamaged: they are not one.
    """
    if not data:
        return Record()
    try:
        record = _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise FolderDamaged(f"the folder's record is not one that this release wrote: {error}") from None
    for snapshot in record.snapshots:
        root = snapshot.root
        if root.kind is not Kind.DIRECTORY or len(root.content) != 1 or len(root.content[0]) != BLOB_ID_BYTES:
            raise FolderDamaged("a snapshot of the folder is not one of a directory")
    return record


def record_name(folder: str) -> str:
    """The name of the file that keeps a folder's record.

    Raises:
        InvalidArgument: this is no name of a folder.
    """
    if not folder or folder.startswith("/") or folder.endswith("/"):
        raise InvalidArgument("a folder's name is not empty, and neither begins nor ends with a slash")
    name = RECORDS + folder
    check_filename(name)
    return name
