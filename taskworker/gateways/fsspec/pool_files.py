"""The files of a pool, or of a server."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from storage import DeleteOutcome, GetOutcome, PushOutcome, Version
from taskworker.client import Client
from taskworker.gateways.fsspec.files import STREAMED_BYTES_MIN, Content, Progress
from taskworker.gateways.fsspec.problems import with_os_errors


class PoolFiles:
    """The files of one user on a server.

    Args:
        client: the connection; it is not closed.
        user_id: the owner.
    """

    def __init__(self, client: Client, user_id: str) -> None:
        self._client = client
        self._user = user_id

    @with_os_errors
    def find(self, name: str) -> Version | None:
        """See :class:`~taskworker.gateways.fsspec.files.Files`, as for all methods."""
        return self._client.find(name, user_id=self._user)

    @with_os_errors
    def stat(self, version: Version, version_id: str) -> Version:
        """Another version."""
        return self._client.stat(version.file_id, user_id=self._user, version_id=version_id)

    @with_os_errors
    def history(self, version: Version) -> list[Version]:
        """All versions."""
        return self._client.history(version.file_id, user_id=self._user)

    @with_os_errors
    def page(self, prefix: str, after: str | None, limit: int) -> list[Version]:
        """Some heads."""
        return self._client.list_files(user_id=self._user, prefix=prefix, after=after, limit=limit)

    @with_os_errors
    def read(self, version: Version, offset: int, length: int) -> bytes:
        """Some bytes."""
        if offset == 0 and length >= version.size:
            return self._client.get(version.file_id, user_id=self._user, version_id=version.version_id)
        return self._client.get(
            version.file_id, user_id=self._user, version_id=version.version_id, offset=offset, length=length
        )

    @with_os_errors
    def download(self, version: Version, target: Path | BinaryIO, progress: Progress | None) -> None:
        """All bytes."""
        self._client.download(
            version.file_id, target, user_id=self._user, version_id=version.version_id, progress=progress
        )

    @with_os_errors
    def push(self, name: str, content: Content, progress: Progress | None = None) -> Version:
        """A new version."""
        return self._client.push(content, filename=name, user_id=self._user, progress=progress)

    @with_os_errors
    def append(self, version: Version, more: BinaryIO) -> Version:
        """A longer version."""
        whole = _Longer(self, version, more)
        return self._client.revise(
            version.file_id,
            cast(BinaryIO, whole),
            user_id=self._user,
            base_version_id=version.version_id,
            changed=[(version.size, whole.size - version.size)],
        )

    @with_os_errors
    def copy(self, version: Version, name: str) -> Version:
        """A file of the same chunks."""
        if version.size > STREAMED_BYTES_MIN:
            return self._client.copy(version.file_id, name, user_id=self._user, version_id=version.version_id)
        return self._client.push(self.read(version, 0, version.size), filename=name, user_id=self._user)

    @with_os_errors
    def push_many(self, files: Iterable[tuple[str, Content]]) -> list[PushOutcome]:
        """New versions."""
        return list(self._client.push_many(files, user_id=self._user))

    @with_os_errors
    def get_many(self, names: Sequence[str], bytes_max: int | None = None) -> list[GetOutcome]:
        """Contents."""
        return list(self._client.get_many(names, user_id=self._user, by_name=True, bytes_max=bytes_max))

    @with_os_errors
    def delete_many(self, file_ids: Sequence[str]) -> list[DeleteOutcome]:
        """Files that go."""
        return list(self._client.delete_many(file_ids, user_id=self._user))


class _Longer(io.RawIOBase):
    """A version and what is added to it, as one file. What is stored already is read only where it is asked for."""

    def __init__(self, files: PoolFiles, version: Version, more: BinaryIO) -> None:
        super().__init__()
        self._files = files
        self._version = version
        self._more = more
        self._position = 0
        self.size = version.size + more.seek(0, os.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        stop = self.size if size < 0 else min(self._position + size, self.size)
        boundary = self._version.size
        if self._position < boundary:
            data = self._files.read(self._version, self._position, min(stop, boundary) - self._position)
        else:
            self._more.seek(self._position - boundary)
            data = self._more.read(max(0, stop - self._position))
        self._position += len(data)
        return data
