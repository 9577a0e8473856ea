"""Reads ranges through GetStream, into memory or files, and resumes where a connection broke."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Protocol, Self, runtime_checkable

from storage import Version
from storage.errors import InvalidArgument
from storage.limits import BytesLike, sought
from storage.progress import Progress
from taskworker.client.channel import Channel, GetMessage
from taskworker.client.connection import IncomingMessages
from taskworker.client.deadline import Deadline
from taskworker.client.local_files import write_all
from taskworker.errors import ServerFault, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.rpc.conversion import version_from_proto
from taskworker.rpc.limits import KIB, MIB


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of a version; ``version_id`` None: the head; ``length`` None: up to the end."""

    file_id: str
    user_id: str
    version_id: str | None = None
    offset: int = 0
    length: int | None = None

    def stop_in(self, size: int) -> int:
        """Where it ends in a version of this size."""
        return size if self.length is None else min(self.offset + self.length, size)


class Fetched(Protocol):
    """The bytes of one range, in order; a context manager that cancels the rest.

    Attributes:
        version: the version that they are of.
        size: how many there are.
    """

    version: Version
    size: int

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the bytes."""

    def __enter__(self) -> Self:
        """Do nothing."""

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Cancel the rest."""

    def close(self) -> None:
        """Cancel the rest."""


Fetching = Callable[[Wanted], Fetched]
"""Starts to fetch a range."""


class Fetch:
    """The bytes of one range as views, in order; a context manager that cancels the rest.

    The version is known once the object exists. If the connection breaks, the rest is requested from the
    same version.
    """

    def __init__(self, channel: Channel, wanted: Wanted, *, deadline: Deadline, retries: int) -> None:
        self._channel = channel
        self._wanted = wanted
        self._deadline = deadline
        self._retries = retries
        self._attempt = 0
        self._done = 0
        self._messages: IncomingMessages[GetMessage] | None = None
        self._early = memoryview(b"")
        self.version = self._opened()
        self.size = wanted.stop_in(self.version.size) - wanted.offset

    def __iter__(self) -> Iterator[memoryview]:
        while self._done < self.size:
            data = self._next()
            self._attempt = 0
            self._done += len(data)
            yield data

    def __enter__(self) -> Fetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the call if it has not ended."""
        if self._messages is not None:
            self._messages.close()

    def _next(self) -> memoryview:
        early, self._early = self._early, memoryview(b"")
        if early:
            return early
        try:
            assert self._messages is not None, "opened"
            message = next(self._messages, None)
        except StorageUnavailable as error:
            self._back_off(error)
            self._opened(self.version.version_id)
            return self._next()
        if not isinstance(message, memoryview):
            raise ServerFault(f"the server's stream ended after {self._done} of {self.size} bytes; get the file again")
        return message

    def _opened(self, version_id: str | None = None) -> Version:
        while True:
            try:
                return self._open(version_id)
            except StorageUnavailable as error:
                self._back_off(error)

    def _open(self, version_id: str | None) -> Version:
        wanted = self._wanted
        request = store_pb2.GetStreamRequest(
            file_id=wanted.file_id,
            user_id=wanted.user_id,
            version_id=version_id or wanted.version_id or "",
            offset=wanted.offset + self._done,
            length=None if wanted.length is None else wanted.length - self._done,
        )
        self._messages = self._channel.get(request, self._deadline)
        first = next(self._messages, None)
        if not isinstance(first, store_pb2.GetPart):
            raise ServerFault("the server's stream does not begin with a version; is it a TaskWorker server?")
        self._early = memoryview(first.data)
        return version_from_proto(first.version)

    def _back_off(self, error: StorageUnavailable) -> None:
        self._attempt += 1
        if self._attempt > self._retries:
            raise error
        self._deadline.back_off(self._attempt)


def writable(buffer: BytesLike) -> memoryview:
    """A view of memory to write to, as bytes.

    Raises:
        InvalidArgument: it is not contiguous memory that can be written to.
    """
    try:
        view = memoryview(buffer)
    except TypeError:
        raise InvalidArgument(f"buffer must be memory such as a bytearray, not {type(buffer).__name__}") from None
    if view.readonly or not view.c_contiguous:
        raise InvalidArgument("buffer must be contiguous memory that can be written to, such as a bytearray")
    return view.cast("B")


@runtime_checkable
class Fills(Protocol):
    """What can put the bytes of a range straight into memory."""

    def fill(self, target: memoryview, progress: Progress | None) -> int:
        """Write all bytes to ``target``, which has room for them; return how many there are."""


def fill(fetch: Fetched, target: memoryview, progress: Progress | None) -> int:
    """Write all of ``fetch`` to memory; return how many bytes there are."""
    if isinstance(fetch, Fills):
        return fetch.fill(target, progress)
    done = 0
    for piece in fetch:
        target[done : done + len(piece)] = piece
        done += len(piece)
        if progress is not None:
            progress(done, fetch.size)
    return done


def write_to(fetch: Fetched, target: BinaryIO, progress: Progress | None) -> None:
    """Write all of ``fetch`` to a binary file."""
    done = 0
    for data in fetch:
        write_all(target, data)
        done += len(data)
        if progress is not None:
            progress(done, fetch.size)


_AHEAD_BYTES_MIN = 256 * KIB
_AHEAD_BYTES_MAX = 64 * MIB


class _RemoteStream(io.RawIOBase):
    """A version on a server, unbuffered except for data that was fetched ahead.

    The amount fetched ahead grows with sequential reads, and starts small again after a seek.

    Attributes:
        version: the version that is read, even if the file gets newer ones meanwhile.
    """

    def __init__(self, fetching: Fetching, wanted: Wanted) -> None:
        super().__init__()
        self._fetching = fetching
        self._position = 0
        self._ahead = _AHEAD_BYTES_MIN
        self._fetch: Fetched | None = None
        self._pieces: Iterator[memoryview] = iter(())
        self._rest = memoryview(b"")
        self._rest_at = 0
        with fetching(Wanted(wanted.file_id, wanted.user_id, wanted.version_id, 0, 0)) as probe:
            self.version = probe.version
        self._user_id = wanted.user_id

    @property
    def size(self) -> int:
        """Bytes of the version."""
        return self.version.size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; it may be past the end, where reads return nothing.

        Raises:
            ValueError: see :func:`~storage.limits.sought`.
        """
        self._position = sought(offset, whence, self._position, self.size)
        return self._position

    def readinto(self, buffer: BytesLike) -> int:  # type: ignore[override]  # typeshed's is any buffer
        """Fill ``buffer`` from the position on, and return the number of bytes read, 0 at the end.

        Raises:
            StorageError: as for ``Client.get``.
        """
        if self.closed:
            raise ValueError("read of a closed file")
        target = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        done = 0
        while done < len(target):
            self._have_position(len(target) - done)
            count = min(len(self._rest), len(target) - done)
            target[done : done + count] = self._rest[:count]
            self._consume(count)
            done += count
        return done

    def close(self) -> None:
        """End a running fetch."""
        self._drop()
        super().close()

    def _consume(self, count: int) -> None:
        self._rest = self._rest[count:]
        self._rest_at += count
        self._position += count

    def _have_position(self, wanted: int) -> None:
        """Fetch, so that ``_rest`` has at least one byte at the position."""
        skip = self._position - self._rest_at
        if self._rest and 0 <= skip < len(self._rest):
            self._rest, self._rest_at = self._rest[skip:], self._position
            return
        if skip != len(self._rest) or self._fetch is None:
            self._drop()
            self._ahead = _AHEAD_BYTES_MIN
        self._rest, self._rest_at = next(self._pieces, memoryview(b"")), self._position
        if not self._rest:
            self._start(max(wanted, self._ahead))
            self._ahead = min(2 * self._ahead, _AHEAD_BYTES_MAX)

    def _start(self, length: int) -> None:
        version = self.version
        self._fetch = self._fetching(Wanted(version.file_id, self._user_id, version.version_id, self._position, length))
        self._pieces = iter(self._fetch)
        self._rest, self._rest_at = next(self._pieces), self._position

    def _drop(self) -> None:
        fetch, self._fetch = self._fetch, None
        self._pieces, self._rest = iter(()), memoryview(b"")
        if fetch is not None:
            fetch.close()


_BUFFER_BYTES = 64 * KIB


class RemoteFile(io.BufferedReader):
    """A version on a server as a seekable binary stream. Not thread-safe.

    It supports what a file opened with ``open(path, "rb")`` does: ``peek``, lines, wrapping in ``io.TextIOWrapper``.
    """

    def __init__(self, fetching: Fetching, wanted: Wanted) -> None:
        stream = _RemoteStream(fetching, wanted)
        super().__init__(stream, buffer_size=_BUFFER_BYTES)
        self._stream = stream

    @property
    def version(self) -> Version:
        """The version that is read, even if the file gets newer ones meanwhile."""
        return self._stream.version

    @property
    def size(self) -> int:
        """Bytes of the version."""
        return self._stream.size

    def readall(self) -> bytes:
        """Read everything from the position to the end into memory."""
        return self.read()
