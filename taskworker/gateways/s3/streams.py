"""Bodies and contents between the event loop, which has the connection, and the thread that works on a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

from taskworker.gateways.s3.errors import S3Error

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_PIECE = 256 * 1024
_STOP_S = 10.0
"""How much longer a thread waits for the event loop, which may have been stopped."""
PIECE_S = 60.0
"""How long a piece of a body may take, or of a reply: a peer that is slower than 4 KiB/s would hold a thread."""


class ClientGone(Exception):
    """The caller closed the connection."""


class Incoming:
    """The body of a request.

    Args:
        receive: of ASGI.
        piece_s: how long a piece may take, in seconds.
    """

    def __init__(self, receive: Receive, piece_s: float = PIECE_S) -> None:
        self._receive = receive
        self._piece_s = piece_s
        self._loop = asyncio.get_running_loop()
        self.ended = False

    async def whole(self, most: int) -> bytes:
        """All of it.

        Raises:
            S3Error: it has more than ``most`` bytes, or comes too slowly.
            ClientGone: it breaks off.
        """
        pieces: list[bytes] = []
        size = 0
        while not self.ended:
            piece = await self.next_piece()
            size += len(piece)
            if size > most:
                raise S3Error("MaxMessageLengthExceeded", f"the body of this request may have at most {most} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def next_piece(self) -> bytes:
        """The next part of it, of about 256 KiB unless it is the last one.

        Raises:
            S3Error: it comes too slowly.
            ClientGone: it breaks off.
        """
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._piece_s):
                while size < _PIECE and not self.ended:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    piece = message.get("body", b"")
                    size += len(piece)
                    pieces.append(piece)
                    self.ended = not message.get("more_body", False)
        except TimeoutError:
            raise S3Error(
                "RequestTimeout", f"{_PIECE} bytes of the body did not come within {self._piece_s:.0f} s"
            ) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """All of it, for another thread.

        Raises:
            S3Error: it comes too slowly.
            ClientGone: it breaks off.
        """
        while not self.ended:
            yield asyncio.run_coroutine_threadsafe(self.next_piece(), self._loop).result(self._piece_s + _STOP_S)


class Outgoing:
    """The content of a reply, which another thread writes.

    Args:
        send: of ASGI.
        receive: likewise; it tells when the caller is gone.
        piece_s: how long the caller may take for a piece, in seconds.
    """

    def __init__(self, send: Send, receive: Receive, piece_s: float = PIECE_S) -> None:
        self._send = send
        self._receive = receive
        self._piece_s = piece_s
        self._loop = asyncio.get_running_loop()
        self._sending: Future[None] | None = None
        self._gone = False

    async def watch(self) -> None:
        """Return when the caller is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True

    def write(self, data: bytes | memoryview) -> int:
        """Send these bytes; return as soon as those before are sent.

        Raises:
            ClientGone: the caller is gone, or takes too long.
        """
        piece = bytes(data)
        self.flush()
        if self._gone:
            raise ClientGone
        message = {"type": "http.response.body", "body": piece, "more_body": True}
        self._sending = asyncio.run_coroutine_threadsafe(self._sent(message), self._loop)
        return len(piece)

    def flush(self) -> None:
        """Return when all is sent; raises as :meth:`write`."""
        if self._sending is not None:
            self._sending.result(self._piece_s + _STOP_S)
            self._sending = None

    async def _sent(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._piece_s):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None
