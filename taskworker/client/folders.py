"""The port of folders, over a client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from storage import DeleteOutcome, GetOutcome, PushOutcome, Version
from taskworker.client.deadline import Deadline

if TYPE_CHECKING:
    from taskworker.client.base import ClientBase
    from taskworker.client.file_calls import FileCalls
    from taskworker.client.many_calls import ManyCalls
    from taskworker.folders.ports import Content


class ClientFiles:
    """The files of one user on a server.

    Args:
        client: the connection; it is not closed.
        user_id: the owner.
        deadline: when all calls must be done; None: each has the client's time.
    """

    def __init__(self, client: ClientBase, user_id: str, deadline: Deadline | None = None) -> None:
        self._client, self._many = cast("FileCalls", client), cast("ManyCalls", client)
        self._user = user_id
        self._deadline = deadline

    def find(self, name: str) -> Version | None:
        """See :class:`~taskworker.folders.ports.Files`, as for all methods."""
        return self._client.find(name, **self._given())

    def version(self, file_id: str, version_id: str) -> Version:
        """A version."""
        return self._client.stat(file_id, version_id=version_id, **self._given())

    def heads(self, prefix: str) -> Iterator[Version]:
        """All heads below a prefix."""
        return self._client.iter_files(prefix=prefix, **self._given())

    def push(self, name: str, content: Content) -> Version:
        """A new version."""
        return self._client.push(content, filename=name, **self._given())

    def push_after(self, name: str, content: Content, head: str | None) -> Version:
        """The version after the head."""
        return self._client.push(content, filename=name, if_absent=head is None, if_head=head, **self._given())

    def push_many(self, files: Iterable[tuple[str, Content]]) -> Iterator[PushOutcome]:
        """Many new versions."""
        return self._many.push_many(files, **self._given())

    def get_many(self, files: Iterable[str], *, by_name: bool = False, bytes_max: int) -> Iterator[GetOutcome]:
        """Many contents."""
        return self._many.get_many(files, by_name=by_name, bytes_max=bytes_max, **self._given())

    def read(self, version: Version, start: int, stop: int) -> bytes:
        """Some bytes."""
        return self._client.get(
            version.file_id, version_id=version.version_id, offset=start, length=stop - start, **self._given()
        )

    def opened(self, version: Version) -> BinaryIO:
        """A reader."""
        reader = self._client.open(version.file_id, version_id=version.version_id, **self._given())
        return cast(BinaryIO, reader)

    def delete(self, version: Version) -> None:
        """A file that goes, if this is its head."""
        self._client.delete(version.file_id, if_head=version.version_id, **self._given())

    def delete_many(self, file_ids: Sequence[str]) -> Iterator[DeleteOutcome]:
        """Files that go."""
        return self._many.delete_many(file_ids, **self._given())

    def _given(self) -> dict[str, Any]:
        """What every call is given."""
        left = {} if self._deadline is None else {"timeout_s": self._deadline.remaining_s()}
        return {"user_id": self._user} | left
