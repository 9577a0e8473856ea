"""Shares the threads that resolve names, and the loop that reads responses, fairly among functions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import httpcore

T = TypeVar("T")

_LOOKUPS = 8
_FIRST_BYTES = 8 << 10
_LEAST_BYTES = 2 << 10
_MOST_BYTES = 64 << 10
_STEP_S = 0.005
"""Seconds that the parser may take for a piece of a response before pieces become smaller."""


class FunctionShare:
    """The share of one function. For one event loop.

    Args:
        threads: the threads, shared by all functions; work in them cannot be cancelled.
        clock_s: monotonic seconds.
    """

    def __init__(self, threads: Executor, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.clock_s = clock_s
        self._threads = threads
        self._lookups = asyncio.Semaphore(_LOOKUPS)
        self._reading = asyncio.Lock()

    async def in_thread(self, act: Callable[[], T]) -> T:
        """Run ``act`` in a thread; its place becomes free when the thread is done, even if the caller gave up."""
        await self._lookups.acquire()
        loop = asyncio.get_running_loop()
        try:
            doing = self._threads.submit(act)
        except RuntimeError:
            self._lookups.release()
            raise
        doing.add_done_callback(lambda _: self._give_back(loop))
        return await asyncio.wrap_future(doing)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._lookups.release)

    async def read_turn(self) -> None:
        """Wait until the next piece may be parsed: one piece of each function in each iteration of the loop."""
        async with self._reading:
            await asyncio.sleep(0)


class FunctionShares:
    """The shares of all functions; each exists while it is used.

    Args:
        threads: see ``FunctionShare``.
        clock_s: monotonic seconds.
    """

    def __init__(self, threads: Executor, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._threads = threads
        self._clock_s = clock_s
        self._shares: WeakValueDictionary[str, FunctionShare] = WeakValueDictionary()

    def of(self, function: str) -> FunctionShare:
        """The share of a function."""
        share = self._shares.get(function)
        if share is None:
            share = self._shares[function] = FunctionShare(self._threads, self._clock_s)
        return share


class SharedStream(httpcore.AsyncNetworkStream):
    """A connection that is read in its function's share, in pieces that take the parser a few milliseconds at most.

    A host may split its response so that one read contains thousands of parts, which would keep the parser busy.

    Args:
        stream: the connection.
        share: the share of its function.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream, share: FunctionShare) -> None:
        self._stream = stream
        self._share = share
        self._clock_s = share.clock_s
        self._bytes = _FIRST_BYTES
        self._given_s: float | None = None
        self._unparsed = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the port's
        """See ``AsyncNetworkStream``."""
        if self._given_s is not None:
            slow = self._clock_s() - self._given_s > _STEP_S
            self._bytes = max(_LEAST_BYTES, self._bytes // 2) if slow else min(_MOST_BYTES, self._bytes * 2)
        self._given_s = None
        if not self._unparsed:
            self._unparsed = await self._stream.read(min(max_bytes, self._bytes), timeout)
        # The reader may be cancelled here, and over HTTP/2, other requests go on with the data that has arrived.
        await self._share.read_turn()
        data, self._unparsed = self._unparsed, b""
        self._given_s = self._clock_s()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """See ``AsyncNetworkStream``."""
        self._given_s = None  # a new request: the time between two requests is not the parser's
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """See ``AsyncNetworkStream``."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """See ``AsyncNetworkStream``."""
        return SharedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._share)

    def get_extra_info(self, info: str) -> Any:
        """See ``AsyncNetworkStream``."""
        return self._stream.get_extra_info(info)
