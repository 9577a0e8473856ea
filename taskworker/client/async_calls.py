"""Runs the calls of ``Client`` in threads for ``AsyncClient``, and cancels them with the awaiting coroutine."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc

from storage.limits import BytesLike
from storage.sealing.master_keys import MasterKeys
from taskworker.client.client import Client
from taskworker.client.scope import CallScope, current_scope
from taskworker.client.sources import Pushable

ResultT = TypeVar("ResultT")

_THREADS = 32


class AsyncCalls:
    """A client whose calls run in threads; subclasses define the calls.

    Args:
        address: address of the server.
        timeout_s: seconds for operations that are given no timeout of their own; None: no limit.
        channel: a gRPC channel to the server to use in place of one of its own; it stays open.
        token: the token to show, or a link to a file; None: that of this user's context for the address.
        key: a key of the user's own, with which files are sealed: its 32 bytes, or a key file; None: they are not.
        direct: whether to read large files from a pool's workers themselves, and write them there; None: unless
            ``TASKWORKER_DIRECT=0``.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float | None = None,
        channel: grpc.Channel | None = None,
        token: str | None = None,
        key: bytes | str | os.PathLike[str] | MasterKeys | None = None,
        direct: bool | None = None,
    ) -> None:
        self.address = address
        self._client = Client(address, timeout_s=timeout_s, channel=channel, token=token, key=key, direct=direct)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="client")

    async def close(self) -> None:
        """Close the connection, and wait for running calls, which fail."""
        self._client.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, operation: Callable[[], ResultT]) -> ResultT:
        """Run ``operation()`` in a thread; cancelling this coroutine cancels the calls it makes."""
        scope = CallScope()
        context = contextvars.copy_context()
        context.run(current_scope.set, scope)
        running = asyncio.get_running_loop().run_in_executor(self._threads, context.run, operation)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            scope.cancel()
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()  # retrieved so that asyncio does not log it
            raise

    async def _each(self, items: Iterator[ResultT]) -> AsyncGenerator[ResultT, None]:
        """Yield items one by one, each fetched in a thread; closing this generator closes their source."""
        ended = object()
        try:
            while (item := await self._run(lambda: next(items, ended))) is not ended:
                yield cast("ResultT", item)
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                await self._run(close)

    def _readable(self, source: Pushable | AsyncIterable[BytesLike]) -> Pushable:
        """Make a source readable from another thread."""
        return _iterated_here(source) if isinstance(source, AsyncIterable) else source


def _iterated_here(source: AsyncIterable[BytesLike]) -> Iterator[BytesLike]:
    """An iterator, for another thread, over an asynchronous ``source`` of the running event loop."""
    loop = asyncio.get_running_loop()
    pieces = aiter(source)

    async def following() -> BytesLike | None:
        return await anext(pieces, None)

    def iterate() -> Iterator[BytesLike]:
        while (piece := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
            yield piece

    return iterate()
