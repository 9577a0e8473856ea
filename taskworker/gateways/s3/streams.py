"""Bodies and contents between the event loop, which has the connection, and the thread that works on a request.

The pieces of a long one wait in a pipe between the two, so that neither waits for the other at each piece. Without TLS,
the thread writes contents to the connection itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from storage.clocks import monotonic_s
from taskworker.gateways.pipes import PIECE_BYTES, PIECE_S, Divert, PeerGone, Pipe
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.straight_bodies import StraightBody, TooSlow

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_WRITTEN_BYTES = 512 * 1024
"""How much of a reply is handed over at once."""


async def disconnected(receive: Receive) -> None:
    """Return when the connection is closed; ``receive`` is that of ASGI, for a request whose body has come."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Incoming:
    """The body of a request.

    Args:
        receive: of ASGI.
        divert: the server's way to put it into a pipe.
        piece_s: how long a piece may take, in seconds.
        whose: the host that sends it.

    Attributes:
        divert: see above.
        whose: whose share of what there is little of it takes: the host's, or the user's once that is known.
        ended: whether all of it has come.
        received: bytes that have come.
    """

    def __init__(self, receive: Receive, divert: Divert, piece_s: float = PIECE_S, whose: str = "") -> None:
        self._receive = receive
        self.divert = divert
        self.whose = whose
        self._piece_s = piece_s
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None
        self._straight: StraightBody | None = None
        self._early = b""
        self._let_go = asyncio.Event()
        self._abandoned = False
        self.ended = False
        self.received = 0

    async def whole(self, most: int) -> bytes:
        """All of it.

        Raises:
            S3Error: it has more than ``most`` bytes, or comes too slowly.
            PeerGone: it breaks off.
        """
        pieces: list[bytes] = []
        size = 0
        while not self.ended:
            piece = await self._next_piece()
            size += len(piece)
            if size > most:
                raise S3Error("MaxMessageLengthExceeded", f"the body of this request may have at most {most} bytes")
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def skip(self, most: int) -> None:
        """Take all of it, and keep nothing.

        Raises: as :meth:`whole`.
        """
        if self._straight is not None:
            await self._let_go.wait()
        size = 0
        while not self.ended:
            size += len(await self._next_piece())
            if size > most:
                raise S3Error("MaxMessageLengthExceeded", f"the body of this request may have at most {most} bytes")

    def straighten(self) -> None:
        """Let :meth:`pieces` read a large body from the connection itself, if that is possible. For the event loop."""
        found = None if self.ended else self.divert.straight_body(self._stop_straight)
        if found is not None:
            self._early, length, connection = found
            took = partial(self._tell, self._note_taken)
            self._straight = StraightBody(connection, length, took, self._piece_s)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """All of it, for another thread.

        Raises:
            S3Error: it comes too slowly.
            PeerGone: it breaks off.
        """
        if self.ended:
            return
        if self._straight is not None:
            yield from self._straight_pieces(self._straight)
            return
        pipe = self._pipe = Pipe(lambda: self._tell(self.divert.go_on))
        self._tell(self._begin, pipe)
        try:
            while pieces := pipe.take(self._piece_s):
                self.received += sum(map(len, pieces))
                yield from pieces
            if pieces is None:
                raise self._too_slow()
            self.ended = True
        finally:
            pipe.fail()

    def abandon(self) -> None:
        """Give no thread anything any more; what is left can be had by :meth:`skip`. For the event loop."""
        self._abandoned = True
        self._stop_straight()
        if self._pipe is not None:
            self._pipe.fail()
            self.divert.end()

    async def gone(self) -> None:
        """Return when it is known that the connection is closed, as another thread has noticed."""
        if self._straight is not None:
            self.divert.abort()
            await disconnected(self._receive)

    def _straight_pieces(self, straight: StraightBody) -> Iterator[bytes]:
        self.received += len(self._early)
        yield self._early
        try:
            for piece in straight.pieces():
                self.received += len(piece)
                yield piece
        except TooSlow:
            raise self._too_slow() from None
        self.ended = True

    def _stop_straight(self) -> None:
        if self._straight is not None:
            self._straight.stop()

    def _note_taken(self, count: int, is_over: bool) -> None:
        self.divert.took(count)
        if is_over:
            self.divert.end()
            self._let_go.set()

    def _begin(self, pipe: Pipe) -> None:
        if self._abandoned:  # the thread began to read when the request had failed
            pipe.fail()
        else:
            self.divert.begin(pipe)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:  # the event loop was stopped, and all connections with it
            raise PeerGone from None

    async def _next_piece(self) -> bytes:
        """The next part of it, of about 256 KiB unless it is the last one."""
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._piece_s):
                while size < PIECE_BYTES and not self.ended:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise PeerGone
                    piece = message.get("body", b"")
                    size += len(piece)
                    pieces.append(piece)
                    self.ended = not message.get("more_body", False)
        except TimeoutError:
            raise self._too_slow() from None
        self.received += size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_slow(self) -> S3Error:
        return S3Error("RequestTimeout", f"{PIECE_BYTES} bytes of the body did not come within {self._piece_s:.0f} s")


class Outgoing:
    """The content of a reply, which another thread writes.

    Args:
        send: of ASGI.
        receive: likewise; it tells when the caller is gone.
        piece_s: how long the caller may take for a piece, in seconds.

    Attributes:
        sent: bytes that were sent.
    """

    def __init__(self, send: Send, receive: Receive, piece_s: float = PIECE_S) -> None:
        self._send = send
        self._receive = receive
        self._piece_s = piece_s
        self._loop = asyncio.get_running_loop()
        self._pipe = Pipe()
        self._filled = asyncio.Event()
        self._is_gone = False
        self.sent = 0

    async def run(self) -> None:
        """Send what is written, until :meth:`end`; then, or if the caller is gone, return.

        However it ends, nothing can be written any more: no thread waits for somebody to take what it writes.
        """
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while pieces := self._pipe.take(0.0, 1):
                    for piece in pieces:
                        async with asyncio.timeout(self._piece_s):
                            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                        if self._is_gone:  # then the server drops what it is given
                            raise PeerGone
                        self.sent += len(piece)
                if pieces is not None:
                    return
        except (TimeoutError, PeerGone):
            pass  # ``sent`` tells that it was not all
        finally:
            self._pipe.fail()
            watching.cancel()

    def write(self, data: bytes | memoryview) -> int:
        """Send the first of these bytes, which may change afterwards; return how many when there is room for more.

        Raises:
            PeerGone: the caller is gone, or takes too long.
        """
        if not self._pipe.wait_for_room(2 * self._piece_s):
            raise PeerGone
        piece = bytes(data[:_WRITTEN_BYTES])  # the event loop, and what it writes to, keep it for longer
        self._pipe.put(piece)
        self._wake()
        return len(piece)

    def end(self) -> None:
        """Write nothing any more."""
        self._pipe.end()
        self._wake()

    def give_up(self) -> None:
        """Send nothing any more."""
        self._pipe.fail()
        self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the event loop was stopped
            raise PeerGone from None

    async def _watch(self) -> None:
        """Note when the caller is gone."""
        await disconnected(self._receive)
        self._is_gone = True
        self._pipe.fail()
        self._filled.set()


class Straight:
    """The content of a reply, which another thread writes to the connection itself: without copies, nor the event loop.

    Args:
        connection: what to write to; closed in the end.
        receive: of ASGI; it tells when the caller is gone.
        piece_s: how long the caller may take for a piece, in seconds.
        clock_s: monotonic seconds.

    Attributes:
        sent: bytes that were sent.
    """

    def __init__(
        self,
        connection: socket.socket,
        receive: Receive,
        piece_s: float = PIECE_S,
        *,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._receive = receive
        self._piece_s = piece_s
        self._clock_s = clock_s
        self._writable = select.poll()
        self._writable.register(connection, select.POLLOUT)
        self._lock = threading.Lock()
        self._is_closed = False
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.sent = 0

    async def run(self) -> None:
        """Return when all is written, by :meth:`end`, or the caller is gone; then nothing can be written any more."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._ended.wait()
        finally:
            watching.cancel()
            self._stop()

    def write(self, data: bytes | memoryview) -> int:
        """Send the first of these bytes, and return how many.

        Raises:
            PeerGone: the caller is gone, or takes too long.
        """
        piece = memoryview(data)[:PIECE_BYTES]
        until_s = self._clock_s() + self._piece_s
        done = 0
        while done < len(piece):
            try:
                done += self._connection.send(piece[done:])
            except BlockingIOError:
                if not self._writable.poll(max(0.0, until_s - self._clock_s()) * 1000):
                    raise PeerGone from None
            except OSError:
                raise PeerGone from None
        self.sent += done
        return done

    def end(self) -> None:
        """Write nothing any more."""
        with self._lock:
            self._is_closed = True
            self._connection.close()
        with contextlib.suppress(RuntimeError):  # the event loop was stopped
            self._loop.call_soon_threadsafe(self._ended.set)

    def give_up(self) -> None:
        """Send nothing any more."""
        self.end()

    def _stop(self) -> None:
        """Let no thread wait for somebody to read what it writes."""
        with self._lock, contextlib.suppress(OSError):  # the other side was faster
            if not self._is_closed:
                self._connection.shutdown(socket.SHUT_RDWR)

    async def _watch(self) -> None:
        """Note when the caller is gone."""
        await disconnected(self._receive)
        self._ended.set()
