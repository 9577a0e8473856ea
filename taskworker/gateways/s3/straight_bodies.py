"""Bodies that the thread which works on a request reads from its connection itself."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator

from storage.clocks import monotonic_s
from taskworker.gateways.pipes import PIECE_BYTES, PIECE_S, PeerGone

_READ_BYTES = 2 * PIECE_BYTES
_TOLD_BYTES = 8 * 1024 * 1024
"""The event loop is told of what was read each time that it is so much, as it passes over it then: 1 ms of its time."""
_LOOK_S = 0.25
"""How soon a thread that waits for the body notices that nobody wants it any more."""


class TooSlow(Exception):
    """A piece of a body took too long."""


class StraightBody:
    """The rest of a body, read by another thread than that of the event loop: with fewer copies, and fewer wake-ups.

    Args:
        connection: what to read from; it does not block, and is closed in the end.
        length: how many bytes are to come.
        took: called with numbers of bytes that were read, which are ``length`` in all unless it breaks off; and with
            whether nothing more is read. By the thread that reads, or by that of :meth:`stop`.
        piece_s: how long a piece may take, in seconds.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        connection: socket.socket,
        length: int,
        took: Callable[[int, bool], None],
        piece_s: float = PIECE_S,
        *,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._connection = connection
        self._left = length
        self._took = took
        self._piece_s = piece_s
        self._clock_s = clock_s
        self._untold = 0
        self._least = 1
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)
        self._lock = threading.Lock()
        self._is_reading = self._is_stopped = self._is_over = False

    def pieces(self) -> Iterator[bytes]:
        """Its bytes. Can be called once.

        Raises:
            TooSlow: a piece takes too long.
            PeerGone: it breaks off, or :meth:`stop` was called.
        """
        try:
            while self._left:
                yield self._next()
            if self._is_unwanted():  # somebody else may have read from the connection
                raise PeerGone
        finally:
            self._end()

    def stop(self) -> None:
        """Read no more; ``took`` tells when that is so."""
        with self._lock:
            self._is_stopped = True
            if self._is_reading:  # whoever does so notices
                return
        self._end()

    def _next(self) -> bytes:
        with self._lock:
            self._is_reading = not self._is_stopped
        if not self._is_reading:
            raise PeerGone
        try:
            return self._read()
        finally:
            with self._lock:
                self._is_reading = False
            if self._is_unwanted():  # nobody may ask for the next piece any more
                self._end()

    def _read(self) -> bytes:
        self._want(min(PIECE_BYTES, self._left))
        until_s = self._clock_s() + self._piece_s
        while not self._is_unwanted():
            left_s = until_s - self._clock_s()
            if left_s <= 0:
                raise TooSlow
            if not self._readable.poll(min(left_s, _LOOK_S) * 1000):
                continue
            try:
                piece = self._connection.recv(min(_READ_BYTES, self._left))
            except BlockingIOError:
                continue
            except OSError:
                raise PeerGone from None
            if not piece:
                raise PeerGone
            self._note(len(piece))
            return piece
        raise PeerGone

    def _is_unwanted(self) -> bool:
        with self._lock:
            return self._is_stopped

    def _want(self, least: int) -> None:
        """Have the kernel say that there is something to read when it is so much, or all that comes."""
        if least != self._least:
            self._least = least
            with contextlib.suppress(OSError):  # the kernel tells of each packet instead
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    def _note(self, count: int) -> None:
        self._left -= count
        self._untold += count
        if self._untold >= _TOLD_BYTES:
            self._tell(is_over=False)

    def _end(self) -> None:
        with self._lock:
            was_over, self._is_over = self._is_over, True
        if was_over:
            return
        self._want(1)
        self._connection.close()
        self._tell(is_over=True)

    def _tell(self, *, is_over: bool) -> None:
        count, self._untold = self._untold, 0
        self._took(count, is_over)
