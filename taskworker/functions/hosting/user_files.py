"""The calling user's files, in an embedded store or behind a pool."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from storage import ConflictError, FileNotFound, Version
from storage.diff.manifest_diff import ManifestDiff
from taskworker.client import Client
from taskworker.client.references import by_id_or_name
from taskworker.functions.hosting.ranged import diff_of_write

if TYPE_CHECKING:  # the engine, which workers of a pool do without
    from storage import FileStorage

_WRITE_ATTEMPTS = 8


def _written(
    name: str,
    source: BinaryIO,
    offset: int,
    *,
    stat: Callable[[str, str | None], Version],
    read: Callable[[str, str, int, int], bytes],
    apply: Callable[[str, ManifestDiff], Version],
) -> Version:
    """Write into the current head, retrying on conflicts, so that concurrent writers of one file do not fail.

    Raises:
        ConflictError: the file changed during every attempt.
    """
    attempt = 1
    while True:
        head = stat(name, None)
        diff = diff_of_write(head, source, offset, functools.partial(read, head.file_id, head.version_id))
        try:
            return apply(head.file_id, diff)
        except ConflictError:
            if attempt == _WRITE_ATTEMPTS:
                raise
            attempt += 1


class EmbeddedFiles:
    """One user's files in a store of this process; a ``UserFiles``."""

    def __init__(self, store: FileStorage, user_id: str) -> None:
        self._store = store
        self._user = user_id

    def stat(self, name: str, version_id: str | None) -> Version:
        """See ``UserFiles``."""
        head = by_id_or_name(
            name,
            stat=lambda file_id: self._store.stat(file_id, user_id=self._user),
            find=lambda filename: self._store.find(filename, user_id=self._user),
        )
        if head is None:
            raise _not_there(name)
        return head if version_id is None else self._store.stat(head.file_id, user_id=self._user, version_id=version_id)

    def read(self, file_id: str, version_id: str, offset: int, length: int) -> bytes:
        """See ``UserFiles``."""
        with self._store.open_file(file_id, user_id=self._user, version_id=version_id) as reader:
            reader.seek(offset)
            return reader.read(length)

    def push(self, source: BinaryIO, filename: str) -> Version:
        """See ``UserFiles``."""
        return self._store.push(source, filename=filename, user_id=self._user)

    def write(self, name: str, source: BinaryIO, offset: int) -> Version:
        """See ``UserFiles``."""
        return _written(name, source, offset, stat=self.stat, read=self.read, apply=self._apply)

    def _apply(self, file_id: str, diff: ManifestDiff) -> Version:
        return self._store.revise(file_id, diff, user_id=self._user)

    def delete(self, name: str) -> None:
        """See ``UserFiles``."""
        self._store.delete(self.stat(name, None).file_id, user_id=self._user)

    def history(self, name: str, before: str | None, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        return self._store.history(self.stat(name, None).file_id, user_id=self._user, limit=limit, before=before)

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        return self._store.list_files(user_id=self._user, prefix=prefix, after=after or None, limit=limit)


def _not_there(name: str) -> FileNotFound:
    return FileNotFound(f"there is no file {name[:80]!r}; list the files to see what there is")


class PoolFiles:
    """One user's files behind a pool; a ``UserFiles``.

    Args:
        client_of: makes a client of the pool, when it is first needed: many calls need none.
        user_id: the user.
        timeout_s: seconds for each operation.
    """

    def __init__(self, client_of: Callable[[], Client], user_id: str, timeout_s: float | None) -> None:
        self._client_of = client_of
        self._user = user_id
        self._timeout_s = timeout_s

    @functools.cached_property
    def _client(self) -> Client:
        return self._client_of()

    def stat(self, name: str, version_id: str | None) -> Version:
        """See ``UserFiles``."""

        def stat(file_id: str, version: str | None = None) -> Version:
            return self._client.stat(file_id, user_id=self._user, version_id=version, timeout_s=self._timeout_s)

        head = by_id_or_name(
            name,
            stat=stat,
            find=lambda filename: self._client.find(filename, user_id=self._user, timeout_s=self._timeout_s),
        )
        if head is None:
            raise _not_there(name)
        return head if version_id is None else stat(head.file_id, version_id)

    def read(self, file_id: str, version_id: str, offset: int, length: int) -> bytes:
        """See ``UserFiles``."""
        return self._client.get(
            file_id,
            user_id=self._user,
            version_id=version_id,
            offset=offset,
            length=length,
            timeout_s=self._timeout_s,
        )

    def push(self, source: BinaryIO, filename: str) -> Version:
        """See ``UserFiles``."""
        return self._client.push(source, filename=filename, user_id=self._user, timeout_s=self._timeout_s)

    def write(self, name: str, source: BinaryIO, offset: int) -> Version:
        """See ``UserFiles``."""
        return _written(name, source, offset, stat=self.stat, read=self.read, apply=self._apply)

    def _apply(self, file_id: str, diff: ManifestDiff) -> Version:
        return self._client.apply(file_id, diff, user_id=self._user, timeout_s=self._timeout_s)

    def delete(self, name: str) -> None:
        """See ``UserFiles``."""
        self._client.delete(self.stat(name, None).file_id, user_id=self._user, timeout_s=self._timeout_s)

    def history(self, name: str, before: str | None, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        file_id = self.stat(name, None).file_id
        return self._client.history(file_id, user_id=self._user, limit=limit, before=before, timeout_s=self._timeout_s)

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        return self._client.list_files(
            user_id=self._user, prefix=prefix, after=after or None, limit=limit, timeout_s=self._timeout_s
        )
