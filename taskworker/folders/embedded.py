"""The port of folders, over an embedded store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from storage import DeleteOutcome, FileStorage, GetOutcome, PushOutcome, Version
from taskworker.folders.ports import Content

_PAGE = 500


class StoreFiles:
    """The files of one user in an embedded store.

    Args:
        store: the open store; it is not closed.
        user_id: the owner.
    """

    def __init__(self, store: FileStorage, user_id: str) -> None:
        self._store = store
        self._user = user_id

    def find(self, name: str) -> Version | None:
        """See :class:`~taskworker.folders.ports.Files`, as for all methods."""
        return self._store.find(name, user_id=self._user)

    def version(self, file_id: str, version_id: str) -> Version:
        """A version."""
        return self._store.stat(file_id, user_id=self._user, version_id=version_id)

    def heads(self, prefix: str) -> Iterator[Version]:
        """All heads below a prefix."""
        after: str | None = None
        while page := self._store.list_files(user_id=self._user, prefix=prefix, after=after, limit=_PAGE):
            yield from page
            after = page[-1].filename

    def push(self, name: str, content: Content) -> Version:
        """A new version."""
        return self._store.push(content, filename=name, user_id=self._user)

    def push_after(self, name: str, content: Content, head: str | None) -> Version:
        """The version after the head."""
        return self._store.push(content, filename=name, user_id=self._user, if_absent=head is None, if_head=head)

    def push_many(self, files: Iterable[tuple[str, Content]]) -> Iterator[PushOutcome]:
        """Many new versions."""
        return self._store.push_many(files, user_id=self._user)

    def get_many(self, files: Iterable[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        """Many contents."""
        return self._store.get_many(files, user_id=self._user, by_name=by_name, bytes_max=bytes_max)

    def read(self, version: Version, start: int, stop: int) -> bytes:
        """Some bytes."""
        with self.opened(version) as reader:
            reader.seek(start)
            return reader.read(stop - start)

    def opened(self, version: Version) -> BinaryIO:
        """A reader."""
        return self._store.open_file(version.file_id, user_id=self._user, version_id=version.version_id)

    def delete(self, version: Version) -> None:
        """A file that goes, if this is its head."""
        self._store.delete(version.file_id, user_id=self._user, if_head=version.version_id)

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        """Files that go."""
        return self._store.delete_many(file_ids, user_id=self._user)
