"""Where files are put and got from while a pool or store is measured. All that is put has names below one prefix."""

from __future__ import annotations

import io
import logging
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any, Protocol

from storage import FileStorage, StorageError, Version
from taskworker.client import Client
from taskworker.folders.embedded import StoreFiles

log = logging.getLogger(__name__)

PREFIX = ".bench/"
_OF_A_RUN = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}/[0-9]+/[0-9]+/[0-9]+")
_PAGE = 500
_PIECE_BYTES = 1 << 20
_ATTEMPTS = 5


class Place(Protocol):
    """The files of one user. Methods raise errors of ``storage``, and are called by many threads."""

    def put(self, name: str, content: memoryview) -> Version:
        """Store content under a name."""

    def get(self, version: Version) -> int:
        """Read all of a version, verified, and return how many bytes it has."""

    def heads(self, prefix: str) -> Iterator[Version]:
        """Heads of all files with a prefix."""

    def delete(self, heads: list[Version]) -> None:
        """Delete files with all their versions."""


class StorePlace:
    """The files of a user in an embedded store.

    Args:
        store: the open store; it is not closed.
        user_id: the owner.
    """

    def __init__(self, store: FileStorage, user_id: str) -> None:
        self._store = store
        self._user = user_id

    def put(self, name: str, content: memoryview) -> Version:
        """See :class:`Place`, as for all methods."""
        return self._store.push(content, filename=name, user_id=self._user)

    def get(self, version: Version) -> int:
        """Read a version."""
        buffer = bytearray(_PIECE_BYTES)
        found = 0
        with self._store.open_file(version.file_id, user_id=self._user, version_id=version.version_id) as reader:
            while count := reader.readinto(buffer):
                found += count
        return found

    def heads(self, prefix: str) -> Iterator[Version]:
        """Heads by prefix."""
        return StoreFiles(self._store, self._user).heads(prefix)

    def delete(self, heads: list[Version]) -> None:
        """Delete files."""
        for outcome in self._store.delete_many([each.file_id for each in heads], user_id=self._user):
            if outcome.error is not None:
                raise outcome.error


class _Counting(io.BytesIO):
    """Takes bytes and keeps only their number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, data: Any, /) -> int:
        """Count."""
        size = memoryview(data).nbytes
        self.count += size
        return size


class PoolPlace:
    """The files of a user in a pool.

    Args:
        client: the connection; it is not closed.
        user_id: the owner.
    """

    def __init__(self, client: Client, user_id: str) -> None:
        self._client = client
        self._user = user_id

    def put(self, name: str, content: memoryview) -> Version:
        """See :class:`Place`, as for all methods."""
        return self._client.push(content, filename=name, user_id=self._user)

    def get(self, version: Version) -> int:
        """Read a version."""
        counting = _Counting()
        self._client.download(version.file_id, counting, user_id=self._user, version_id=version.version_id)
        return counting.count

    def heads(self, prefix: str) -> Iterator[Version]:
        """Heads by prefix."""
        return self._client.iter_files(user_id=self._user, prefix=prefix)

    def delete(self, heads: list[Version]) -> None:
        """Delete files."""
        for outcome in self._client.delete_many([each.file_id for each in heads], user_id=self._user):
            if outcome.error is not None:
                raise outcome.error


def new_prefix() -> str:
    """A prefix for the names of one run, which no other run has."""
    return f"{PREFIX}{secrets.token_hex(8)}/"


def is_of_a_run(name: str) -> bool:
    """Whether a file is one that a run makes: a user may have others below the same prefix."""
    return _OF_A_RUN.fullmatch(name) is not None


def delete_all(place: Place, prefix: str) -> int:
    """Delete all files with a prefix, also those that appear meanwhile, and return how many these were.

    Raises:
        StorageError: some could not be deleted, though it was tried several times.
    """
    deleted = 0
    attempts = 0
    while True:
        try:
            heads = [head for head in place.heads(prefix) if is_of_a_run(head.filename)]
            for start in range(0, len(heads), _PAGE):
                page = heads[start : start + _PAGE]
                place.delete(page)
                deleted += len(page)
            if not heads:
                return deleted
        except StorageError as error:
            attempts += 1
            if attempts == _ATTEMPTS:
                raise
            log.info("deleting is tried again: %s", error)
            time.sleep(0.2 * attempts)
