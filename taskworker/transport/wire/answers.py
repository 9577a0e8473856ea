"""Answers that callers wait for: one message, or a stream of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from taskworker.transport.wire.connection import Connection, Room, Signal
from taskworker.transport.wire.framing import LAST, Header, WireError


class Refused(Exception):
    """The other end answered with a failure, which ``description`` describes."""

    def __init__(self, description: bytes) -> None:
        super().__init__()
        self.description = description


class OneAnswer:
    """See :class:`taskworker.transport.wire.connection.Answer`. An answer of one message.

    Args:
        signal: for which the caller waits.
        bytes_max: largest message that is accepted.
    """

    __slots__ = ("_error", "_memory", "_signal", "bytes_max")

    def __init__(self, signal: Signal, bytes_max: int) -> None:
        self._signal = signal
        self.bytes_max = bytes_max
        self._memory = bytearray()
        self._error: Exception | None = None

    def memory(self, header: Header) -> Sequence[memoryview]:
        """See :class:`Answer`."""
        self._memory = bytearray(header.length)
        return [memoryview(self._memory)]

    def arrived(self, header: Header) -> None:
        """See :class:`Answer`."""
        if not header.flags & LAST:
            raise WireError("a second message of an answer that has only one")
        self._signal.set()

    def refused(self, description: bytes) -> None:
        """See :class:`Answer`."""
        self.lost(Refused(description))

    def dropped(self) -> None:
        """See :class:`Answer`. Nobody waits any more."""

    def lost(self, error: Exception) -> None:
        """See :class:`Answer`."""
        self._error = error
        self._signal.set()

    def wait(self) -> bytearray:
        """Wait for the message.

        Raises:
            Refused: the other end answered with a failure.
            WireError, OSError: the connection failed.
        """
        self._signal.wait()
        if self._error is not None:
            raise self._error
        return self._memory


class ManyAnswers:
    """See :class:`taskworker.transport.wire.connection.Answer`. A stream of messages, few of which wait to be taken.

    Args:
        room: where the caller waits; gets the lock that guards this object.
        bytes_max: largest message that is accepted.
    """

    def __init__(self, room: Callable[[threading.Lock], Room], bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._changed = room(self._lock)
        self._messages: deque[bytes] = deque()
        self._memory = bytearray()
        self._ended = False
        self._error: Exception | None = None

    def memory(self, header: Header) -> Sequence[memoryview]:
        """See :class:`Answer`."""
        self._memory = bytearray(header.length)
        return [memoryview(self._memory)]

    def arrived(self, header: Header) -> None:
        """See :class:`Answer`."""
        with self._lock:
            if header.flags & LAST:
                self._ended = True
            else:
                self._messages.append(bytes(self._memory))
            self._changed.notify_all()

    def refused(self, description: bytes) -> None:
        """See :class:`Answer`."""
        self.lost(Refused(description))

    def dropped(self) -> None:
        """See :class:`Answer`. Nobody waits any more."""

    def lost(self, error: Exception) -> None:
        """See :class:`Answer`."""
        with self._lock:
            self._error = error
            self._changed.notify_all()

    def take(self, connection: Connection, number: int, patience_s: Callable[[], float]) -> Iterator[bytes]:
        """Yield the messages of this answer to call ``number``, and ask for more of them.

        Args:
            connection: where the call was made.
            number: its number there.
            patience_s: returns how many seconds to wait for the next message.

        Raises:
            TimeoutError: the next message took longer.
            Refused: the other end answered with a failure.
            WireError, OSError: the connection failed.
        """
        try:
            while (message := self._next(patience_s())) is not None:
                yield message
                connection.more(number, 1)
        finally:
            if not self._ended:
                connection.cancel(number)

    def _next(self, within_s: float) -> bytes | None:
        with self._lock:
            while not self._messages and not self._ended and self._error is None:
                if not self._changed.wait(within_s):
                    raise TimeoutError
            if self._messages:
                return self._messages.popleft()
            if self._error is not None:
                raise self._error
            return None
