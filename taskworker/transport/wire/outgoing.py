"""Answers on their way to a caller: sent at once if the caller takes them, kept while it does not.

The thread that has an answer sends it itself, and does not copy it. What a slow caller does not take waits here, so
that no thread waits with it; its bytes are charged to memory that all connections share.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from storage.limits import KIB, BytesLike
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.sending import bytes_of, rest_of
from taskworker.transport.wire.streams import Stream

# A peer that takes nothing for so long is as good as away; one that takes less is not worth its memory.
_STALLED_S = 20.0
_BYTES_PER_S_MIN = 16 * KIB
_PIECE_BYTES = 64 * KIB  # of a file, for a caller that is slow
_OWN_ERRORS = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EBADF)


class FilePart(NamedTuple):
    """Bytes of an open file, as a part of an answer.

    Attributes:
        file: keeps the file open.
        descriptor: its descriptor.
        offset: where the bytes begin.
        length: their number.
        failed: called if they cannot all be read; zeros are sent in the place of the rest.
    """

    file: object
    descriptor: int
    offset: int
    length: int
    failed: Callable[[], None]


class _Zeros(NamedTuple):
    """Zeros in the place of bytes that cannot be read: no memory is charged for them."""

    length: int


Parts = Sequence["BytesLike | FilePart"]
_Piece = list["BytesLike"] | FilePart | _Zeros


class SendFailed(Exception):
    """An answer cannot be sent: the connection is broken, or there is no memory for what the caller does not take."""


def length_of(parts: Parts) -> int:
    """The length of all parts together, in bytes."""
    length = 0
    for part in parts:
        if isinstance(part, FilePart):
            length += part.length
        else:
            length += part.nbytes if isinstance(part, memoryview) else len(part)
    return length


class Outgoing:
    """What is to be sent on one connection, in order. Thread-safe.

    Args:
        stream: where it is sent.
        memory: bounds what waits on all connections.
        is_crowded: whether others wait for a thread, so that none may wait for this caller.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, stream: Stream, memory: Budget, is_crowded: Callable[[], bool], clock_s: Callable[[], float]
    ) -> None:
        self._stream = stream
        self._memory = memory
        self._is_crowded = is_crowded
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._waiting: deque[_Piece] = deque()
        self._charged = 0
        self._blocked = False
        self._sent = 0  # since something began to wait
        self._since_s = self._progress_s = 0.0

    @property
    def is_blocked(self) -> bool:
        """Whether something waits for :meth:`flush`."""
        return self._blocked

    def put(self, parts: Parts) -> None:
        """Send a frame behind what waits, or as much of it as the caller takes within a moment.

        Raises:
            SendFailed: the connection is broken, or there is no memory to keep the rest.
        """
        with self._lock:
            if self._waiting:
                self._waiting.extend(_pieces(parts))
            elif self._send_at_once(parts):
                return
            self._blocked = True
            self._charge()

    def flush(self, *, wait: bool) -> bool:
        """Send what waits, as much of it as the caller takes; return whether that is all.

        Args:
            wait: wait a moment for the caller, see :class:`Stream`.

        Raises:
            SendFailed: the connection is broken.
        """
        with self._lock:
            if self._waiting:
                self._send(wait=wait)
            if not self._waiting:
                self._blocked = False
                self._give_back()
            return not self._waiting

    def is_stuck(self, now_s: float) -> bool:
        """Whether the caller takes nothing, or too little, of what waits."""
        with self._lock:
            if not self._waiting or now_s - self._since_s <= _STALLED_S:
                return False
            enough = _BYTES_PER_S_MIN * (now_s - self._since_s - _STALLED_S)
            return now_s - self._progress_s > _STALLED_S or self._sent < enough

    def drop(self) -> None:
        """Forget what waits."""
        with self._lock:
            self._waiting.clear()
            self._blocked = False
            self._give_back()

    # -- under the lock --------------------------------------------------------------------------

    def _send_at_once(self, parts: Parts) -> bool:
        """Send a frame when nothing waits; return whether the caller has taken all of it."""
        pieces = _pieces(parts)
        first = pieces[0] if pieces else []
        if len(pieces) <= 1 and isinstance(first, list):  # most answers are small
            try:
                count = self._stream.send(first, wait=True)
            except OSError as error:
                raise SendFailed from error
            if count == bytes_of(first):
                return True
            pieces = [[*rest_of(first, count)]]
        self._waiting.extend(pieces)
        self._sent = 0
        self._since_s = self._progress_s = self._clock_s()
        self._send(wait=not self._is_crowded())
        return not self._waiting

    def _charge(self) -> None:
        waiting = sum(bytes_of(piece) for piece in self._waiting if isinstance(piece, list))
        if waiting > self._charged:
            if not self._memory.take(waiting - self._charged):
                raise SendFailed
            self._charged = waiting

    def _give_back(self) -> None:
        if self._charged:
            self._memory.give_back(self._charged)
            self._charged = 0

    def _send(self, *, wait: bool) -> None:
        while self._waiting:
            piece = self._waiting.popleft()
            more = bool(self._waiting)
            try:
                if isinstance(piece, FilePart):
                    count, rest = self._send_file(piece, wait=wait, more=more)
                elif isinstance(piece, _Zeros):
                    count, rest = self._send_zeros(piece, wait=wait, more=more)
                else:
                    count, rest = self._send_bytes(piece, wait=wait, more=more)
            except OSError as error:
                raise SendFailed from error
            if rest is not None:
                self._waiting.appendleft(rest)
            if count:
                self._sent += count
                self._progress_s = self._clock_s()
            elif rest is not None:
                return
            wait = wait and not self._is_crowded()

    def _send_bytes(self, parts: list[BytesLike], *, wait: bool, more: bool) -> tuple[int, _Piece | None]:
        count = self._stream.send(parts, wait=wait, more=more)
        rest = rest_of(parts, count)
        return count, list(rest) or None

    def _send_zeros(self, zeros: _Zeros, *, wait: bool, more: bool) -> tuple[int, _Piece | None]:
        piece = _ZEROS[: zeros.length]
        count = self._stream.send([piece], wait=wait, more=more or len(piece) < zeros.length)
        left = zeros.length - count
        return count, _Zeros(left) if left else None

    def _send_file(self, part: FilePart, *, wait: bool, more: bool) -> tuple[int, _Piece | None]:
        """Send from a file; if it cannot be read, zeros take the place of what is left."""
        try:
            if wait:
                count = self._stream.send_file(part.descriptor, part.offset, part.length)
            else:
                piece = os.pread(part.descriptor, min(part.length, _PIECE_BYTES), part.offset)
                if not piece:
                    raise EOFError
                count = self._stream.send([piece], wait=False, more=more or len(piece) < part.length)
        except EOFError:
            return self._fail(part)
        except OSError as error:
            if error.errno in _OWN_ERRORS:
                raise
            return self._fail(part)
        if count == part.length:
            return count, None
        return count, part._replace(offset=part.offset + count, length=part.length - count)

    def _fail(self, part: FilePart) -> tuple[int, _Piece]:
        part.failed()
        return 1, _Zeros(part.length)  # not 0, so that the zeros are tried at once


_ZEROS = memoryview(bytes(64 * KIB))


def _pieces(parts: Parts) -> list[_Piece]:
    """The parts, with those that are bytes joined into lists."""
    pieces: list[_Piece] = []
    for part in parts:
        if isinstance(part, FilePart):
            if part.length:
                pieces.append(part)
        elif pieces and isinstance(pieces[-1], list):
            pieces[-1].append(part)
        else:
            pieces.append([part])
    return pieces
