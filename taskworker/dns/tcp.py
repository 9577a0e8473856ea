"""DNS over TCP (RFC 7766)."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

from taskworker.dns import messages
from taskworker.dns.resolver import Resolver

log = logging.getLogger(__name__)

IDLE_S = 10.0
CLIENTS_MAX = 64
_WAITING_MAX = 16  # questions of one client
_LENGTH = struct.Struct("!H")


class TcpService:
    """Answers streams of questions; in the thread of its event loop alone.

    When there are as many clients as are allowed, a new one takes the place of the one that was idle longest:
    clients that hold on to their places shut nobody out.

    Args:
        resolver: who answers.
        idle_s: after so long without a question, or without taking its answers, a client is sent away.
    """

    def __init__(self, resolver: Resolver, *, idle_s: float = IDLE_S) -> None:
        self._resolver = resolver
        self._idle_s = idle_s
        self._clients: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}  # the one idle longest first

    async def start(self, bound: socket.socket) -> None:
        """Begin, on a socket that is closed in the end."""
        self._server = await asyncio.start_server(self._welcome, sock=bound)

    async def stop(self) -> None:
        """Take no more questions, and drop those under way."""
        self._server.close()
        tasks = list(self._clients.values())
        for writer in list(self._clients):
            self._drop(writer)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            self._drop(next(iter(self._clients)))
        task = asyncio.create_task(self._converse(reader, writer))
        self._clients[writer] = task
        task.add_done_callback(lambda _done: self._drop(writer))

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        task = self._clients.pop(writer, None)
        if task is not None:
            task.cancel()
        writer.transport.abort()

    def _was_active(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._clients:
            self._clients[writer] = self._clients.pop(writer)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        places = asyncio.Semaphore(_WAITING_MAX)
        waiting: set[asyncio.Task[None]] = set()
        try:
            while (wire := await self._question(reader)) is not None:
                self._was_active(writer)
                await places.acquire()
                task = asyncio.create_task(self._answer(wire, writer, places))
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

    async def _question(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next question; None once the client has no more, or one that is far too long."""
        async with asyncio.timeout(self._idle_s):
            try:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            except asyncio.IncompleteReadError:
                return None
            return None if length > messages.QUERY_BYTES_MAX else await reader.readexactly(length)

    async def _answer(self, wire: bytes, writer: asyncio.StreamWriter, places: asyncio.Semaphore) -> None:
        try:
            reply = await self._reply(wire)
            if reply:
                writer.write(_LENGTH.pack(len(reply)) + reply)
                async with asyncio.timeout(self._idle_s):
                    await writer.drain()
        except (OSError, TimeoutError) as error:
            log.debug("a reply over TCP was not taken: %r", error)
            writer.transport.abort()
        finally:
            places.release()

    async def _reply(self, wire: bytes) -> bytes:
        try:
            question = messages.read(wire, over_tcp=True)
            if question is None or isinstance(question, bytes):
                return question or b""
            if question.settled is not None:
                return messages.reply(question, question.settled)
            found = await self._resolver.resolve(question.name, question.kind)
            return messages.reply(question, found.answer)
        except Exception as error:  # whatever it was, the next question is to be answered
            log.error("a question over TCP could not be answered", exc_info=error)
            return messages.failed(wire)
