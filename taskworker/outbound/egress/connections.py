"""Pooled connections, separate for each function, so that no function suffers from another's connections."""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx

from taskworker.outbound.egress.addresses import Resolve
from taskworker.outbound.egress.connecting import PinnedBackend, PinnedTransport
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.sharing import FunctionShares

_RESOLVER_THREADS = 128
"""Started as needed. A slow name holds a thread for as long as the system's resolver tries."""


class _Connections:
    """A function's connections, either to private or to public addresses."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport
        self.users = 0
        self.retired = False


class ConnectionPools:
    """Transports by function. For one event loop.

    Args:
        resolve: returns the addresses of a name; blocking.
        tls: the trusted authorities and TLS versions.
        limits: the pool's limits.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        resolve: Resolve,
        tls: ssl.SSLContext,
        limits: EgressLimits,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolve = resolve
        self._tls = tls
        self._limits = limits
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="egress-resolve")
        self._shares = FunctionShares(self._threads, clock_s)
        self._open: OrderedDict[tuple[str, bool], _Connections] = OrderedDict()

    @asynccontextmanager
    async def transport(self, function: str, *, private: bool) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """The transport of a function, while a request uses it.

        After a request was cut off, later ones get new connections: over HTTP/2, the peer would go on sending, and
        would go on counting the request as running.
        """
        connections = await self._find((function, private))
        connections.users += 1
        try:
            yield connections.transport
        except BaseException:
            self._retire((function, private), connections)
            raise
        finally:
            connections.users -= 1
            if connections.retired and connections.users == 0:
                await connections.transport.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for connections in self._open.values():
            await connections.transport.aclose()
        self._open.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _find(self, key: tuple[str, bool]) -> _Connections:
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _Connections(self._new(*key))
        self._open.move_to_end(key)
        while len(self._open) > self._limits.functions:
            await self._close(*next(iter(self._open.items())))
        return found

    def _new(self, function: str, private: bool) -> PinnedTransport:
        share = self._shares.of(function)
        backend = PinnedBackend(self._resolve, share, private=private, connect_s=self._limits.connect_s)
        return PinnedTransport(backend, self._tls, self._limits.concurrency)

    async def _close(self, key: tuple[str, bool], connections: _Connections) -> None:
        self._retire(key, connections)
        if connections.users == 0:
            await connections.transport.aclose()

    def _retire(self, key: tuple[str, bool], connections: _Connections) -> None:
        """Keep further requests from using these connections; the last request that uses them closes them."""
        connections.retired = True
        if self._open.get(key) is connections:
            del self._open[key]
