"""The port of folders, over a client."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from storage import DeleteOutcome, GetOutcome, PushOutcome, Version

if TYPE_CHECKING:
    from taskworker.client.client import Client
    from taskworker.folders.ports import Content


class ClientFiles:
    """The files of one user on a server.

    Args:
        client: the connection; it is not closed.
        user_id: the owner.
    """

    def __init__(self, client: Client, user_id: str) -> None:
        self._client = client
        self._user = user_id

    def find(self, name: str) -> Version | None:
        """See :class:`~taskworker.folders.ports.Files`, as for all methods."""
        return self._client.find(name, user_id=self._user)

    def version(self, file_id: str, version_id: str) -> Version:
        """A version."""
        return self._client.stat(file_id, user_id=self._user, version_id=version_id)

    def heads(self, prefix: str) -> Iterator[Version]:
        """All heads below a prefix."""
        return self._client.iter_files(user_id=self._user, prefix=prefix)

    def push(self, name: str, content: Content) -> Version:
        """A new version."""
        return self._client.push(content, filename=name, user_id=self._user)

    def replace(self, base: Version, content: bytes) -> Version:
        """The version after the base."""
        return self._client.revise(
            base.file_id, io.BytesIO(content), user_id=self._user, base_version_id=base.version_id
        )

    def push_many(self, files: Iterable[tuple[str, Content]]) -> Iterator[PushOutcome]:
        """Many new versions."""
        return self._client.push_many(files, user_id=self._user)

    def get_many(self, files: Iterable[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        """Many contents."""
        return self._client.get_many(files, user_id=self._user, by_name=by_name, bytes_max=bytes_max)

    def read(self, version: Version, start: int, stop: int) -> bytes:
        """Some bytes."""
        return self._client.get(
            version.file_id, user_id=self._user, version_id=version.version_id, offset=start, length=stop - start
        )

    def opened(self, version: Version) -> BinaryIO:
        """A reader."""
        reader = self._client.open(version.file_id, user_id=self._user, version_id=version.version_id)
        return cast(BinaryIO, reader)

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        """Files that go."""
        return self._client.delete_many(file_ids, user_id=self._user)
