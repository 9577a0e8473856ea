"""Connections of HTTP, within bounds that uvicorn does not set by itself, and with fewer copies of bodies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from taskworker.gateways.pipes import DIVERT, PIECE_S, Pipe
from taskworker.hosts import host_of
from taskworker.shares import SharedAmount

HEAD_BYTES_MAX = 32 * 1024
"""The longest request line and headers together; Amazon's limit is 8 KiB for headers."""
HEAD_S = 30.0
"""How long they may take."""
PIPELINED_MAX = 16
"""Requests that may wait for the answer to one before them, on one connection."""
_TOGETHER = 64 * 1024
_STRAIGHT_MIN = 1024 * 1024
"""Bodies of which less is to come are read by the event loop."""
_PASSED_OVER = bytes(64 * 1024)
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CROWDED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"
    b"There are too many connections, of your address or in all; close some, or try again later.\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose request heads are bounded in length, time and number, and whose replies must be read.

    Attributes:
        places: connections of all servers of the class, which hosts share; None: there may be any number.
    """

    places: SharedAmount | None = None
    _host: str | None = None
    _heading = True
    _head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _diversion: _Diversion | None = None
    _served: RequestResponseCycle | None = None
    _joining: _Joining
    _body_bytes = 0
    _passes_over = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request, or close the connection if its host has too many."""
        self._joining = _Joining(transport, self.loop)
        super().connection_made(self._joining)  # type: ignore[arg-type]  # it does what is used of one
        self._expect_head()
        if self.places is not None:
            host = host_of(transport.get_extra_info("peername"))
            if self.places.take(host):
                self._host = host
            else:
                self._joining.write(_CROWDED)
                self._joining.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        if self.places is not None and self._host is not None:
            self.places.give_back(self._host)
            self._host = None
        self._expect_nothing()
        self._note_read()
        if self._diversion is not None:
            self._diversion.fail()
        if self._served is not None:  # uvicorn tells only the last one of several requests
            self._served.disconnected = not self._served.response_complete
            self._served.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """Send what is held of a reply; asyncio then closes the connection."""
        self._joining.flush()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and end the connection if it begins with too long a head."""
        if self._diversion is not None and self._diversion.is_straight:  # it is not for us to read: all of it is lost
            self._diversion.fail()
            self.transport.abort()
            return
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
        self._body_bytes = 0
        self._expect_nothing()
        if len(self.pipeline) >= PIPELINED_MAX:
            self.transport.abort()
        if self.transport.is_closing():
            return
        diversion = _Diversion(self)
        self.scope["extensions"] = {DIVERT: diversion}  # type: ignore[dict-item]  # one of our own
        super().on_headers_complete()
        diversion.cycle = self.cycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._served = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Give a piece of a body to whoever takes it."""
        diversion = self._diversion
        self._body_bytes += len(body)
        if self._passes_over or self.transport.is_closing():
            return
        if diversion is None or diversion.cycle is not self.cycle:
            super().on_body(body)
        elif diversion.put(body):
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        """Note the end of a body."""
        if self.transport.is_closing():
            return
        super().on_message_complete()
        diversion = self._diversion
        if diversion is not None and diversion.cycle is self.cycle:
            diversion.complete()

    def on_response_complete(self) -> None:
        """Expect the rest of a request that was answered before it had come, and the next head, in time."""
        super().on_response_complete()
        self._joining.flush()
        is_left = self.cycle.response_complete and self.cycle.more_body
        if is_left and self._deadline is None and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """Expect that what was sent is read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(PIECE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Send more."""
        super().resume_writing()
        self._note_read()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection that is not used, also if its last reply was not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def divert(self, diversion: _Diversion | None) -> None:
        """Give the rest of the body that comes in to this diversion; None: to the application."""
        self._diversion = diversion

    def body_left(self) -> int:
        """How many bytes of the body are to come; 0 if that is not known."""
        fields = dict(self.headers)  # the parser has refused a second length, or one that is none
        if b"transfer-encoding" in fields:
            return 0
        return max(0, int(fields.get(b"content-length", b"0")) - self._body_bytes)

    def pass_over(self, count: int) -> None:
        """Have the parser pass over so much of the body, as another thread has read it."""
        self._passes_over = True
        try:
            while count > 0 and not self.transport.is_closing():
                self.parser.feed_data(_PASSED_OVER[:count])
                count -= len(_PASSED_OVER)
        finally:
            self._passes_over = False

    def straight(self) -> socket.socket | None:
        """See :class:`~taskworker.gateways.pipes.Divert`."""
        self._joining.flush()
        return None if self.transport.get_write_buffer_size() else self.shared_socket()

    def shared_socket(self) -> socket.socket | None:
        """The connection with a descriptor of its own; None if it is encrypted, or closes."""
        transport = self.transport
        if transport.is_closing() or transport.get_extra_info("sslcontext"):
            return None
        with contextlib.suppress(OSError):  # no descriptor is left
            return socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        return None

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self.transport.close)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _note_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class HalfCloseProtocol(BoundedProtocol):
    """A connection whose other side may be closed once a request was sent: the reply still comes, except with TLS.

    Whether the caller is there at all is then known only when something is sent.
    """

    def eof_received(self) -> bool:  # type: ignore[override]  # the others always close
        """Return whether to keep the connection until the reply is sent."""
        super().eof_received()
        if self.cycle is None:  # before the first request, whatever uvicorn's annotation says
            return False  # type: ignore[unreachable]
        cycle = self.cycle
        if cycle.response_complete or cycle.more_body or self.transport.get_extra_info("sslcontext"):
            return False
        cycle.keep_alive = False
        return True


def with_expectations(app: Any) -> Any:
    """Return an ASGI application whose replies suit callers that wait before they send a body.

    A caller that was told of no ``100 Continue`` may send its body after the final reply or may leave it out (RFC 9110,
    section 10.1.1), so what follows on that connection cannot be told apart: it is closed. Where there is no body,
    ``100 Continue`` comes before the reply although it may be left out, because botocore takes the next reply on the
    connection for a part of this one otherwise, and waits for a minute.

    Args:
        app: an application that :class:`BoundedProtocol` serves.
    """

    async def served(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            cycle = scope["extensions"][DIVERT].cycle
            if cycle.waiting_for_100_continue and message["type"] == "http.response.start":
                if cycle.more_body:
                    cycle.keep_alive = False
                elif not cycle.body:
                    cycle.transport.write(_CONTINUE)
            await send(message)

        is_expecting = scope["http_version"] != "1.0" and any(name == b"expect" for name, _ in scope["headers"])
        await app(scope, receive, sent if is_expecting else send)

    return served


class _Diversion:
    """Leads the body of a request, and the content of its reply; see :class:`~taskworker.gateways.pipes.Divert`.

    Attributes:
        cycle: uvicorn's state of the request.
    """

    cycle: RequestResponseCycle

    def __init__(self, protocol: BoundedProtocol) -> None:
        self._protocol = protocol
        self._pipe: Pipe | None = None
        self._failed: Callable[[], None] | None = None

    @property
    def is_straight(self) -> bool:
        return self._failed is not None

    def begin(self, pipe: Pipe) -> None:
        cycle, protocol = self.cycle, self._protocol
        self._pipe = pipe
        if cycle.body:
            pipe.put(bytes(cycle.body))
            cycle.body = bytearray()
        if cycle.disconnected:
            pipe.fail()
        elif not cycle.more_body:
            pipe.end()
        else:
            protocol.divert(self)
            self._ask_for_it()
            protocol.flow.resume_reading()

    def straight_body(self, failed: Callable[[], None]) -> tuple[bytes, int, socket.socket] | None:
        cycle, protocol = self.cycle, self._protocol
        left = protocol.body_left() if cycle.more_body and protocol.cycle is cycle else 0
        if left < _STRAIGHT_MIN or cycle.disconnected or (connection := protocol.shared_socket()) is None:
            return None
        early, cycle.body = bytes(cycle.body), bytearray()
        self._failed = failed
        protocol.flow.pause_reading()
        protocol.divert(self)
        self._ask_for_it()
        return early, left, connection

    def took(self, count: int) -> None:
        self._protocol.pass_over(count)

    def _ask_for_it(self) -> None:
        if self.cycle.waiting_for_100_continue:
            self._protocol.transport.write(_CONTINUE)
            self.cycle.waiting_for_100_continue = False

    def go_on(self) -> None:
        self._protocol.flow.resume_reading()

    def end(self) -> None:
        was_straight, self._failed = self.is_straight, None
        if self._pipe is not None or was_straight:
            self._pipe = None
            self._protocol.divert(None)
        if was_straight and not self._protocol.transport.is_closing():
            self._protocol.flow.resume_reading()

    def straight(self) -> socket.socket | None:
        return None if self.cycle.chunked_encoding else self._protocol.straight()

    def wrote(self, count: int) -> None:
        self.cycle.expected_content_length -= count

    def abort(self) -> None:
        self._protocol.transport.abort()

    def put(self, piece: bytes) -> bool:
        return self._pipe is not None and self._pipe.put(piece)

    def complete(self) -> None:
        if self._pipe is not None:
            self._pipe.end()
        self._protocol.divert(None)

    def fail(self) -> None:
        if self._pipe is not None:
            self._pipe.fail()
        if self._failed is not None:
            self._failed()


class _Joining:
    """A transport that sends the head of a reply together with what follows at once."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes | memoryview] = []
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        if not data:
            return
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        self._size += len(data)
        if self._size >= _TOGETHER:
            self.flush()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def abort(self) -> None:
        self._held, self._size = [], 0
        connection = self._transport.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:  # the kernel shall not keep what nobody reads
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def get_write_buffer_size(self) -> int:
        return self._size + self._transport.get_write_buffer_size()

    def flush(self) -> None:
        held, size = self._held, self._size
        self._held, self._size = [], 0
        if self._transport.is_closing():  # uvloop raises errors where asyncio drops what is written
            return
        if size < _TOGETHER:
            held = [b"".join(held)] if held else held
        for data in held:
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
