"""Gets of small files, each in one round trip, and those of several threads in shared calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from storage.errors import PermissionDenied
from taskworker.client.channel import Channel
from taskworker.client.coalescing import Coalescing
from taskworker.client.deadline import Deadline, retried
from taskworker.client.fetching import Wanted
from taskworker.client.sealed.names import key_in, require_readable
from taskworker.errors import CallNotOffered, ServerFault
from taskworker.protos import store_pb2
from taskworker.rpc.limits import GET_FILE_BYTES_MAX, GET_FILES_MAX
from taskworker.tracing.spans import is_traced


class Small(NamedTuple):
    """A version, with its content if that is small.

    Attributes:
        version_id: its id; empty: the head, whichever it is.
        size: its size in bytes; None: the server did not say.
        data: its content; None: it is not small.
    """

    version_id: str
    size: int | None = None
    data: bytes | None = None


class _Heads(NamedTuple):
    """What the heads have in common that are asked for together."""

    user_id: str
    bytes_max: int


class SmallGets:
    """Gets versions with their content, if that is small. Thread-safe.

    Args:
        channel: the connection to the server.
        retries: how often to retry.
    """

    def __init__(self, channel: Channel, retries: int) -> None:
        self._channel = channel
        self._retries = retries
        self._heads: Coalescing[_Heads, str, Small] = Coalescing(self._get_together, GET_FILES_MAX)
        self._are_shared = True

    def get(self, wanted: Wanted, deadline: Deadline, bytes_max: int) -> Small:
        """A version, and its content if that has at most ``bytes_max`` bytes, in one round trip.

        Heads that several threads ask for at the same time come by shared calls. The range of ``wanted`` is not used.
        Only the id of ``wanted`` is returned if the server does not offer this.

        Raises:
            KeyRequired: the file is sealed with a key of its user's.
        """
        self._channel.check_here()
        if not self._channel.has_small_calls:
            return Small(wanted.version_id or "")
        if wanted.version_id or not self._are_shared or is_traced():
            return self._get_alone(wanted, deadline, bytes_max)
        heads = _Heads(wanted.user_id, bytes_max)
        return self._heads.call(heads, wanted.file_id, lambda: self._get_alone(wanted, deadline, bytes_max), deadline)

    def _get_alone(self, wanted: Wanted, deadline: Deadline, bytes_max: int) -> Small:
        channel = self._channel
        request = store_pb2.GetFileRequest(
            user_id=wanted.user_id, file_id=wanted.file_id, version_id=wanted.version_id or "", bytes_max=bytes_max
        )
        try:
            part = retried(lambda: channel.unary(channel.store.GetFile, request, deadline), deadline, self._retries)
        except CallNotOffered:  # an older server
            channel.has_small_calls = False
            return Small(wanted.version_id or "")
        version, data = part.version, part.data
        require_readable(version)
        small = _small(version, data, bytes_max)
        if small is None:
            raise ServerFault(f"the server sent {len(data)} of {version.size} bytes; get the file again")
        return small

    def _get_together(self, heads: _Heads, file_ids: Sequence[str], deadline: Deadline) -> Iterator[Small | None]:
        """The heads of files of one user, in order; None for each that is to be asked for alone, such as an error."""
        channel = self._channel
        request = store_pb2.GetManyRequest(
            user_id=heads.user_id,
            files=[store_pb2.FileReference(file_id=file_id) for file_id in file_ids],
            bytes_max=heads.bytes_max,
        )
        try:
            part = channel.unary(channel.store.GetFiles, request, deadline)
        except (CallNotOffered, PermissionDenied):  # an older server, or one that shows a link's file only
            self._are_shared = False
            return
        for result in part.results:
            yield _of_many(result, heads.bytes_max)


def _of_many(result: store_pb2.GetResult, bytes_max: int) -> Small | None:
    if result.HasField("error") or key_in(result.version.filename) is not None:
        return None
    return _small(result.version, result.data, bytes_max)


def _small(version: store_pb2.Version, data: bytes, bytes_max: int) -> Small | None:
    """A version with its content, or without it if it is large; None: the server sent something else."""
    if len(data) == version.size:
        return Small(version.version_id, version.size, data)
    if data or version.size <= min(bytes_max, GET_FILE_BYTES_MAX):
        return None
    return Small(version.version_id, version.size)
