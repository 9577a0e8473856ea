"""Listens for HTTP, within bounds that uvicorn does not set by itself, and serves a gateway's application."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import uvicorn

from taskworker.gateways.http_protocol import BoundedProtocol, HalfCloseProtocol, with_expectations
from taskworker.gateways.listening import address_of, listening
from taskworker.shares import SharedAmount

KEEP_ALIVE_S = 75
CONNECTIONS_MAX = 2048
"""Each may have a reply of 64 KiB that nobody reads. A host has half of them at most."""
_STOP_S = 10


class Application(Protocol):
    """A gateway by ASGI."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None:
        """Answer a request."""

    def close(self) -> None:
        """End what works for it, and its connections."""


class _Server(uvicorn.Server):
    """A server that says when it begins to stop.

    Args:
        config: of uvicorn.
        on_stop: called then.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for those that run."""
        self._on_stop()
        await super().shutdown(sockets)


class HttpServer:
    """A gateway that listens.

    Args:
        app: what to serve; closed with the server.
        listen: what to listen at: ``HOST:PORT``, with port 0 for any free one; or a socket that listens, which is
            closed with the server.
        certificate: file with the server's certificate, PEM; None: no TLS.
        key: file with its private key.
        half_close: whether callers may close their side once they have sent a request, as some programs do; not for
            replies that go on without end, whose callers are then missed later.
        on_stop: called in the event loop when the server begins to stop, to end replies that would go on without end.
        connections: how many there may be at once; a host may have as many as are free, so half at most.

    Attributes:
        address: ``HOST:PORT`` that it listens at.

    Raises:
        InvalidArgument: the address is malformed.
        OSError: it cannot be listened at, or the certificate cannot be read.
    """

    def __init__(
        self,
        app: Application,
        listen: str | socket.socket,
        *,
        certificate: Path | None = None,
        key: Path | None = None,
        half_close: bool = False,
        on_stop: Callable[[], None] = lambda: None,
        connections: int = CONNECTIONS_MAX,
    ) -> None:
        self._app = app
        protocol = HalfCloseProtocol if half_close else BoundedProtocol
        config = uvicorn.Config(
            with_expectations(app),
            http=type(protocol.__name__, (protocol,), {"places": SharedAmount(connections, times=1)}),
            loop="auto",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_S,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        config.load()
        self._server = _Server(config, on_stop)
        self._socket = listening(listen) if isinstance(listen, str) else listen
        self.address = address_of(self._socket)

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
