"""The calling user's files, in an embedded store or behind a pool."""

from __future__ import annotations

from typing import BinaryIO

from storage import FileNotFound, FileStorage, Version
from taskworker.client import Client
from taskworker.client.references import by_id_or_name


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

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        return self._store.list_files(user_id=self._user, prefix=prefix, after=after or None, limit=limit)


def _not_there(name: str) -> FileNotFound:
    return FileNotFound(f"there is no file {name[:80]!r}; list the files to see what there is")


class PoolFiles:
    """One user's files behind a pool; a ``UserFiles``.

    Args:
        client: of the pool.
        user_id: whose.
        timeout_s: of each operation.
    """

    def __init__(self, client: Client, user_id: str, timeout_s: float | None) -> None:
        self._client = client
        self._user = user_id
        self._timeout_s = timeout_s

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

    def page(self, prefix: str, after: str, limit: int) -> list[Version]:
        """See ``UserFiles``."""
        return self._client.list_files(
            user_id=self._user, prefix=prefix, after=after or None, limit=limit, timeout_s=self._timeout_s
        )
