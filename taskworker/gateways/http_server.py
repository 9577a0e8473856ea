"""Listens for HTTP, within bounds that uvicorn does not set by itself, and serves a gateway's application."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from storage.errors import InvalidArgument

HEAD_BYTES_MAX = 32 * 1024
"""The longest request line and headers together; Amazon's limit is 8 KiB for headers."""
HEAD_S = 30.0
"""How long they may take."""
KEEP_ALIVE_S = 75
CONNECTIONS_MAX = 4096
_BACKLOG = 1024
_STOP_S = 10


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request heads are bounded in length and time."""

    _heading = True
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and end the connection if it begins with too long a head."""
        if self._heading:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._heading and self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response("The request line and headers are too long.")

    def on_message_begin(self) -> None:
        """Expect the rest of a head."""
        super().on_message_begin()
        self._heading = True
        self._head_bytes = 0
        if self._deadline is None:
            self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or end the connection if too much follows a body."""
        super().on_header(name, value)
        if not self._heading:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > 2 * HEAD_BYTES_MAX:
                self.transport.abort()

    def on_headers_complete(self) -> None:
        """Let a body take its own time, which the application limits."""
        self._heading = False
        self._expect_nothing()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Application(Protocol):
    """A gateway by ASGI."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Answer a request."""

    def close(self) -> None:
        """End what works for it, and its connections."""


class HttpServer:
    """A gateway that listens.

    Args:
        app: what to serve; closed with the server.
        listen: ``HOST:PORT``; port 0: any free one.
        certificate: file with the server's certificate, PEM; None: no TLS.
        key: file with its private key.

    Attributes:
        address: ``HOST:PORT`` that it listens at.

    Raises:
        InvalidArgument: the address is malformed.
        OSError: it cannot be listened at, or the certificate cannot be read.
    """

    def __init__(
        self, app: Application, listen: str, *, certificate: Path | None = None, key: Path | None = None
    ) -> None:
        self._app = app
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_S,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._socket = _listening(listen)
        host, port = self._socket.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def run(self, ready: Callable[[], Any] = lambda: None) -> None:
        """Serve until :meth:`stop`, or in the main thread until SIGINT or SIGTERM.

        Args:
            ready: called before the first request is taken.
        """
        try:
            ready()
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._app.close()

    def stop(self) -> None:
        """Take no more requests, and return from :meth:`run` when those that run have ended, or after some seconds."""
        self._server.should_exit = True


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"{listen!r} is no address to listen at; give HOST:PORT, such as 127.0.0.1:9000")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    return socket.create_server((bare, int(port)), family=family, backlog=_BACKLOG)
