"""Servers that stand for the world outside, on loopback; a thread with an event loop each."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trustme

Writer = asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Behave = Callable[[Received, Writer], Awaitable[None]]


class Server:
    """Counts connections, keeps what it was asked, and answers as it is told; a context manager."""

    def __init__(
        self, behave: Behave, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._behave = behave
        self._tls = tls
        self.connections = 0
        self.received: list[Received] = []
        self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        starting = asyncio.start_server(self._connected, sock=self._socket, ssl=self._tls, limit=1 << 22)
        self._server = self._loop.run_until_complete(starting)
        self._thread.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # for transports to be closed, which they are not at once

    def _connected(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._converse(reader, writer)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Received(method, target, headers, body)
            self.received.append(request)
            await self._behave(request, writer)


def answer(
    writer: Writer, body: bytes = b"", *, status: str = "200 OK", headers: str = "", length: int | None = None
) -> None:
    """Write a whole answer; ``headers`` are lines, each with its end."""
    size = len(body) if length is None else length
    writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + body)


async def plain(request: Received, writer: Writer) -> None:
    """Tells what was asked."""
    answer(writer, f"{request.method} {request.target}".encode(), headers="Content-Type: text/plain\r\n")


def canary(host: str = "127.0.0.1", port: int = 0) -> Server:
    """Who connects to it has gone where nobody may go."""
    return Server(plain, host=host, port=port)


Behave2 = Callable[[h2.connection.H2Connection, int, socket.socket], None]


def _say_h2(state: h2.connection.H2Connection, stream: int, _connection: socket.socket) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "2")])
    state.send_data(stream, b"h2", end_stream=True)


class Http2Server:
    """A server that speaks HTTP/2 only, by ALPN over TLS; counts connections and streams."""

    def __init__(self, tls: ssl.SSLContext, behave: Behave2 | None = None) -> None:
        tls.set_alpn_protocols(["h2"])
        self._tls = tls
        self._behave = behave or _say_h2
        self.connections = 0
        self.streams = 0
        self.authorities: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._accepting.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with (
            contextlib.suppress(OSError, h2.exceptions.ProtocolError),
            self._tls.wrap_socket(raw, server_side=True) as connection,
        ):
            self.connections += 1
            state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
            state.initiate_connection()
            connection.sendall(state.data_to_send())
            while data := connection.recv(65536):
                for event in state.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.streams += 1
                        self.authorities.append(dict(event.headers)[":authority"])  # type: ignore[arg-type, index]
                        self._behave(state, event.stream_id, connection)
                connection.sendall(state.data_to_send())


def contexts(*names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for these names, and a client's that trusts it."""
    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return serving, trusting
