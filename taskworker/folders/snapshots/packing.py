"""Stores blobs: small ones many to a pack, large contents each in a container of its own."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from storage.errors import StorageError
from taskworker.folders.contents import LargeContent
from taskworker.folders.ports import Content
from taskworker.folders.scanning import Found
from taskworker.folders.snapshots.blobs import CONTAINER_BYTES, Place, blob_id, split_indexes
from taskworker.folders.snapshots.repository import Repository, add_pending

PACKED_BYTES_MAX = 4 << 20
"""Larger files have a container each: the store finds the parts of these that are unchanged."""
_PACK_BYTES = 16 << 20

_UNINDEXED_BYTES_MAX = 1 << 30
"""What is stored again, at most, after an interruption."""

LargeEnded = Callable[[int, bytes, bool], None]
"""Called with the number of bytes, their BLAKE3, and whether the file was changed meanwhile."""


class Pack:
    """Blobs that are collected until they are worth a container."""

    def __init__(self) -> None:
        self.container = secrets.token_bytes(CONTAINER_BYTES)
        self.blobs: list[tuple[bytes, Place]] = []
        self._pieces: list[bytes] = []
        self.size = 0

    def add(self, blob: bytes, data: bytes) -> None:
        """Take in a blob."""
        self.blobs.append((blob, Place(self.container, self.size, len(data))))
        self._pieces.append(data)
        self.size += len(data)

    def content(self) -> bytes:
        """All blobs, one after the other."""
        return b"".join(self._pieces)


class Packer:
    """Stores blobs that are not stored yet. What it has to send is taken from :meth:`waiting`.

    Contents and directories have packs of their own, so that all directories can be read without reading any content.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._contents = Pack()
        self._directories = Pack()
        self._known: set[bytes] = set()
        self._waiting: list[tuple[str, Content]] = []
        self._lock = threading.Lock()
        self._unconfirmed: dict[str, list[tuple[bytes, Place]]] = {}
        self._stored: list[tuple[bytes, Place]] = []
        self._unindexed_bytes = 0
        self._indexes: list[bytes] = []
        self.added = 0
        """Bytes of blobs that were new."""

    def has(self, blob: bytes) -> bool:
        """Whether a blob is stored, or on its way."""
        return blob in self._known or self._repository.has(blob)

    def add_content(self, data: bytes) -> bytes:
        """Store the content of a file, and return its id."""
        self._contents, blob = self._add(self._contents, data)
        return blob

    def add_directory(self, data: bytes) -> bytes:
        """Store a directory, and return its id."""
        self._directories, blob = self._add(self._directories, data)
        return blob

    def _add(self, pack: Pack, data: bytes) -> tuple[Pack, bytes]:
        blob = blob_id(data)
        if self.has(blob):
            return pack, blob
        self._note(blob, len(data))
        pack.add(blob, data)
        if pack.size < _PACK_BYTES:
            return pack, blob
        self._send(pack)
        return Pack(), blob

    def add_large(self, found: Found, ended: LargeEnded) -> tuple[str, Content]:
        """Begin to store a large file; returns what to send.

        Raises:
            OSError: it cannot be opened.
            Unstorable: something else has taken its place.
        """
        container = secrets.token_bytes(CONTAINER_BYTES)
        name = self._repository.container_name(container)

        def done(size: int, digest: bytes, changed: bool) -> None:
            with self._lock:
                self._unconfirmed[name] = [(digest, Place(container, 0, size))]
            ended(size, digest, changed)

        return name, cast(BinaryIO, LargeContent(found, done))

    def flush(self) -> None:
        """Send what is left."""
        for pack in (self._contents, self._directories):
            if pack.blobs:
                self._send(pack)
        self._contents, self._directories = Pack(), Pack()

    def _send(self, pack: Pack) -> None:
        name = self._repository.container_name(pack.container)
        with self._lock:
            self._unconfirmed[name] = pack.blobs
        self._waiting.append((name, pack.content()))

    def waiting(self) -> Iterator[tuple[str, Content]]:
        """What is to be sent now."""
        waiting, self._waiting = self._waiting, []
        yield from waiting

    def confirm(self, name: str, *, large: bool) -> None:
        """Note that a container is durable.

        Raises:
            StorageError: it was not read to its end.
        """
        with self._lock:
            blobs = self._unconfirmed.pop(name, None)
        if blobs is None:
            raise StorageError("a file was stored before it was read to its end; take the snapshot again")
        for blob, place in blobs:
            if large:
                if self.has(blob):
                    continue  # the same content was stored before: the container is left to be collected
                self._note(blob, place.length)
            self._stored.append((blob, place))
            self._unindexed_bytes += place.length

    def _note(self, blob: bytes, size: int) -> None:
        with self._lock:  # files may be taken in one thread, and outcomes come in another
            self._known.add(blob)
            self.added += size

    def checkpoint(self, time_ms: int) -> None:
        """If much is durable that no index names yet, store its index, so that an interruption does not lose it.

        Raises:
            ConflictError: snapshots of the folder were forgotten meanwhile.
        """
        if self._unindexed_bytes >= _UNINDEXED_BYTES_MAX:
            add_pending(self._repository, self._store_indexes(), time_ms)

    def finish(self) -> list[bytes]:
        """Store the indexes of all that is durable, and return the containers of all indexes."""
        self._store_indexes()
        return self._indexes

    def _store_indexes(self) -> list[bytes]:
        repository, containers = self._repository, []
        for data in split_indexes(self._stored):
            container = secrets.token_bytes(CONTAINER_BYTES)
            repository.files.push(repository.container_name(container), data)
            containers.append(container)
        self._stored, self._unindexed_bytes = [], 0
        self._indexes += containers
        return containers
