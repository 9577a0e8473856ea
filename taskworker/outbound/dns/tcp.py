"""DNS over TCP (RFC 7766)."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskworker.outbound.dns import messages
from taskworker.outbound.dns.resolver import Resolver

log = logging.getLogger(__name__)

IDLE_S = 10.0
CLIENTS_MAX = 64
_WAITING_MAX = 16  # questions of one client
_LENGTH = struct.Struct("!H")


class _Client:
    """A client; it counts as idle while none of its questions is being looked up (RFC 7766, 6.2.3).

    Args:
        writer: writes to its connection.
        idle_s: seconds that it may be idle.
    """

    def __init__(self, writer: asyncio.StreamWriter, idle_s: float) -> None:
        self.writer = writer
        self._idle_s = idle_s
        self._looked_up = 0
        self._reading: asyncio.Timeout | None = None

    @property
    def waits(self) -> bool:
        """Whether one of its questions is being looked up."""
        return self._looked_up > 0

    def asked(self) -> None:
        """Note that one of its questions is being looked up."""
        self._looked_up += 1
        self._wait_until(None)

    def found(self) -> None:
        """Note that the lookup of a question is done. After the last one, the client is idle from now on."""
        self._looked_up -= 1
        if not self.waits:
            self._wait_until(asyncio.get_running_loop().time() + self._idle_s)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """A context for reading from it, which ends when it has been idle for too long.

        Raises:
            TimeoutError: it has been idle for too long.
        """
        async with asyncio.timeout(None if self.waits else self._idle_s) as self._reading:
            try:
                yield
            finally:
                self._reading = None

    def _wait_until(self, when: float | None) -> None:
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(when)


class TcpService:
    """Answers questions over TCP connections. All methods must run in the thread of its event loop.

    If the limit on clients is reached, a new client replaces the one that has been idle longest, or, if all wait for
    answers, the one whose last question is oldest, so that clients that hold connections lock nobody out.

    Args:
        resolver: answers the questions.
        idle_s: seconds after which a client that is idle, or does not read its answers, is disconnected.
    """

    def __init__(self, resolver: Resolver, *, idle_s: float = IDLE_S) -> None:
        self._resolver = resolver
        self._idle_s = idle_s
        self._clients: dict[_Client, asyncio.Task[None]] = {}  # the most recently active one is last

    async def start(self, bound: socket.socket) -> None:
        """Start serving on a bound socket, which this object closes in the end."""
        self._server = await asyncio.start_server(self._welcome, sock=bound)

    async def stop(self) -> None:
        """Accept no more questions, and drop pending ones."""
        self._server.close()
        tasks = list(self._clients.values())
        for client in list(self._clients):
            self._drop(client)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            idle = (client for client in self._clients if not client.waits)
            self._drop(next(idle, next(iter(self._clients))))
        client = _Client(writer, self._idle_s)
        task = asyncio.create_task(self._converse(reader, client))
        self._clients[client] = task
        task.add_done_callback(lambda _done: self._drop(client))

    def _drop(self, client: _Client) -> None:
        task = self._clients.pop(client, None)
        if task is not None:
            task.cancel()
        client.writer.transport.abort()

    def _was_active(self, client: _Client) -> None:
        if client in self._clients:
            self._clients[client] = self._clients.pop(client)

    async def _converse(self, reader: asyncio.StreamReader, client: _Client) -> None:
        places = asyncio.Semaphore(_WAITING_MAX)
        waiting: set[asyncio.Task[None]] = set()
        writer = client.writer
        try:
            while (wire := await self._question(reader, client)) is not None:
                self._was_active(client)
                await places.acquire()
                task = asyncio.create_task(self._answer(wire, client, places))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            await asyncio.gather(*waiting)
            async with asyncio.timeout(self._idle_s):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, TimeoutError) as error:
            log.debug("a conversation over TCP ended: %r", error)
        finally:
            for task in waiting:
                task.cancel()

    async def _question(self, reader: asyncio.StreamReader, client: _Client) -> bytes | None:
        """The next question; None after the last one, or if it is far too long."""
        async with client.reading():
            try:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            except asyncio.IncompleteReadError:
                return None
            return None if length > messages.QUERY_BYTES_MAX else await reader.readexactly(length)

    async def _answer(self, wire: bytes, client: _Client, places: asyncio.Semaphore) -> None:
        writer = client.writer
        try:
            reply = await self._looked_up(wire, client)
            if reply:
                writer.write(_LENGTH.pack(len(reply)) + reply)
                async with asyncio.timeout(self._idle_s):
                    await writer.drain()
        except (OSError, TimeoutError) as error:
            log.debug("a reply over TCP was not taken: %r", error)
            writer.transport.abort()
        finally:
            places.release()

    async def _looked_up(self, wire: bytes, client: _Client) -> bytes:
        client.asked()
        try:
            return await self._reply(wire)
        finally:
            client.found()
            self._was_active(client)

    async def _reply(self, wire: bytes) -> bytes:
        try:
            question = messages.read(wire, over_tcp=True)
            if question is None or isinstance(question, bytes):
                return question or b""
            if question.settled is not None:
                return messages.reply(question, question.settled)
            found = await self._resolver.resolve(question.name, question.kind)
            return messages.reply(question, found.answer)
        except Exception as error:  # whatever it was, go on with the next question
            log.error("a question over TCP could not be answered", exc_info=error)
            return messages.failed(wire)
