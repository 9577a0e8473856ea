"""Reading frames from a stream, straight into the memory that their receiver gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from storage.limits import KIB
from taskworker.transport.wire.framing import HEADER_BYTES, Header, WireError, unpack_header
from taskworker.transport.wire.streams import Stream

# Headers and small bodies arrive in one system call. Of a large body, this many bytes at most are copied once more.
_AHEAD_BYTES = 8 * KIB
_SCRAP_BYTES = 64 * KIB
_WAITS_MAX = 4


class ConnectionEnded(ConnectionError):
    """The other end closed the connection, in the middle of a frame or not."""


OpenBody = Callable[[Header], Sequence[memoryview] | None]
"""Judges a header, and gives the memory for its body, with exactly its length in all; None: drop the body.

Raises `WireError` if the frame is not allowed, or `NotNow` if there is no memory for it now.
"""


class NotNow(Exception):
    """There is no memory for a body now."""


class FrameReader:
    """Reads frames one after another. Used by one thread at a time.

    Args:
        stream: where the frames come from.
        open_body: judges headers, and gives memory for bodies.

    Attributes:
        received: number of bytes received so far.
        starved: whether the last :meth:`read` ended because there was no memory for a body.
    """

    def __init__(self, stream: Stream, open_body: OpenBody) -> None:
        self._stream = stream
        self._open_body = open_body
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._start = self._stop = 0  # what was received ahead
        self._header: Header | None = None
        self._opened = False
        self._buffers: list[memoryview] | None = []  # what is left of the body's memory; None: the body is dropped
        self._missing = 0
        self.received = 0
        self.starved = False

    @property
    def is_inside(self) -> bool:
        """Whether a part of a frame has arrived, but not all of it."""
        return self._header is not None or self._stop > self._start

    @property
    def call(self) -> int:
        """The number of the call whose frame is being read; 0 if there is none."""
        return 0 if self._header is None else self._header.call

    def take(self, count: int, *, wait: bool) -> memoryview | None:
        """The next ``count`` bytes as they are, before any frame; None if they have not arrived.

        Raises:
            ConnectionEnded, OSError: the connection ended.
        """
        while self._stop - self._start < count:
            if not self._refill(wait):
                return None
        self._start += count
        return self._ahead[self._start - count : self._start]

    def read(self, *, wait: bool) -> Header | None:
        """Read on; return the header of a frame that is complete now, or None if its rest has not arrived.

        Args:
            wait: wait a moment for bytes, see :class:`Stream`; a few times if few of them arrive each time.

        Raises:
            WireError: the frame is not allowed.
            ConnectionEnded, OSError: the connection ended.
        """
        self.starved = False
        waits = 0
        while self._header is None:
            if self._stop - self._start >= HEADER_BYTES:
                self._header = unpack_header(self._ahead, self._start)
                self._start += HEADER_BYTES
            elif waits >= _WAITS_MAX or not self._refill(wait):
                return None
            else:
                waits += wait
        if not self._opened and not self._open(self._header):
            return None
        while self._missing:
            if waits >= _WAITS_MAX or not self._fill(wait):
                return None
            waits += wait
        header, self._header, self._opened = self._header, None, False
        return header

    def divert(self, call: int) -> None:
        """Drop the rest of the body that is being read if it belongs to this call."""
        if self.call == call and self._opened:
            self._buffers = None

    def forget(self) -> None:
        """Let the memory go that was given for a body. Nothing may be read any more."""
        self._buffers, self._header, self._missing = None, None, 0

    def _open(self, header: Header) -> bool:
        try:
            buffers = self._open_body(header)
        except NotNow:
            self.starved = True
            return False
        if buffers is not None and sum(map(len, buffers)) != header.length:
            raise WireError(f"a body of {header.length:,} bytes where others are expected")
        self._opened = True
        length = self._missing = header.length
        if not length:
            self._buffers = []
        elif buffers is not None and len(buffers) == 1 and self._stop - self._start >= length:  # the usual case
            buffers[0][:] = self._ahead[self._start : self._start + length]
            self._start += length
            self._missing, self._buffers = 0, []
        else:
            self._buffers = None if buffers is None else [buffer for buffer in buffers if buffer]
            if self._stop > self._start:
                self._use_ahead()
        return True

    def _use_ahead(self) -> None:
        """Move what was received ahead to where it belongs."""
        count = min(self._missing, self._stop - self._start)
        at = self._start
        for buffer in self._buffers or ():
            if at == self._start + count:
                break
            step = min(len(buffer), self._start + count - at)
            buffer[:step] = self._ahead[at : at + step]
            at += step
        self._start += count
        self._advance(count)

    def _refill(self, wait: bool) -> bool:
        """Receive ahead; False if nothing has arrived."""
        if self._start:
            left = self._stop - self._start
            if left:
                self._ahead[:left] = bytes(self._ahead[self._start : self._stop])
            self._start, self._stop = 0, left
        count = self._receive((self._ahead[self._stop :] if self._stop else self._ahead,), wait)
        self._stop += count
        return count > 0

    def _fill(self, wait: bool) -> bool:
        """Receive into the body; False if nothing has arrived."""
        if self._buffers is None:
            count = self._receive([memoryview(bytearray(min(self._missing, _SCRAP_BYTES)))], wait)
        else:
            count = self._receive(self._buffers, wait)
        self._advance(count)
        return count > 0

    def _receive(self, buffers: Sequence[memoryview], wait: bool) -> int:
        count = self._stream.receive(buffers, wait=wait)
        if count is None:
            return 0
        if count == 0:
            raise ConnectionEnded("the other end closed the connection")
        self.received += count
        return count

    def _advance(self, count: int) -> None:
        self._missing -= count
        buffers = self._buffers
        while count and buffers:
            first = buffers[0]
            if count < len(first):
                buffers[0] = first[count:]
                return
            count -= len(first)
            del buffers[0]
