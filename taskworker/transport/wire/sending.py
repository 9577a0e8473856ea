"""What is left of frames that a stream did not take at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from storage.limits import BytesLike
from taskworker.transport.wire.streams import Stream

_TOGETHER = 16


def bytes_of(parts: Sequence[BytesLike]) -> int:
    """The length of all parts together, in bytes."""
    total = 0
    for part in parts:
        total += part.nbytes if isinstance(part, memoryview) else len(part)
    return total


def rest_of(parts: Sequence[BytesLike], sent: int) -> list[BytesLike]:
    """What follows the first ``sent`` bytes; nothing is copied."""
    for at, part in enumerate(parts):
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        if sent < size:
            return [memoryview(part)[sent:], *parts[at + 1 :]]
        sent -= size
    return []


class Outbox:
    """Frames to send, in order. What the stream takes at once is not copied. Guarded by the connection's lock."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: deque[memoryview] = deque()
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, parts: Sequence[BytesLike]) -> None:
        """Send a frame, or as much of it as the stream takes now; keep a copy of the rest for :meth:`flush`.

        Raises:
            OSError: the connection failed.
        """
        sent = 0 if self._waiting else self._stream.send(parts, wait=False)
        if sent == bytes_of(parts):
            return
        rest = memoryview(b"".join(rest_of(parts, sent)))  # a frame may have thousands of small parts
        self._waiting.append(rest)
        self.size += len(rest)

    def flush(self) -> None:
        """Send what waits, as much of it as the stream takes now.

        Raises:
            OSError: the connection failed.
        """
        while self._waiting:
            together = [self._waiting[at] for at in range(min(_TOGETHER, len(self._waiting)))]
            sent = self._stream.send(together, wait=False)
            if not sent:
                return
            self.size -= sent
            while sent:
                first = self._waiting[0]
                if sent < len(first):
                    self._waiting[0] = first[sent:]
                    break
                sent -= len(first)
                self._waiting.popleft()
