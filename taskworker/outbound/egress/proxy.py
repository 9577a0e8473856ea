"""The pool's proxy for outside APIs: takes a function's request from the checks to the response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from storage.clocks import wall_ms
from storage.errors import StorageError, StoreClosed
from taskworker.calls.capabilities import ApiRequest, ApiResponse
from taskworker.errors import CallAbandoned, DeadlineExceeded
from taskworker.outbound.egress.addresses import Resolve, resolve_by_system
from taskworker.outbound.egress.audit import AuditLog, AuditRecord
from taskworker.outbound.egress.concurrency import Permit, RequestLimiter
from taskworker.outbound.egress.filling import Fill, Filling, no_secrets
from taskworker.outbound.egress.limits import DEFAULT_LIMITS, EgressLimits
from taskworker.outbound.egress.outgoing import prepare
from taskworker.outbound.egress.rules import RuleBook
from taskworker.outbound.egress.urls import parse_url, place_of

if TYPE_CHECKING:  # loaded with the first request, as they take a fifth of the time that a pool needs to start
    from taskworker.outbound.egress.requesting import Exchange, Sender

_TALKATIVE = ("httpx", "httpcore", "hpack", "hishel")
"""Libraries whose log messages below WARNING show URLs and headers, including secrets."""
_CLOSE_S = 5.0
_LOOK_S = 0.25
"""How often a long request checks whether its call still waits for it."""


class EgressProxy:
    """Calls outside APIs for functions. Thread-safe; an event loop in a thread of its own keeps the connections.

    Args:
        rules: which function may call which hosts.
        audit: records every request.
        limits: limits on requests.
        resolve: returns the addresses of a name.
        fill: fills in secrets.
        tls: the trusted authorities; None: those of certifi.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        rules: RuleBook,
        audit: AuditLog,
        *,
        limits: EgressLimits = DEFAULT_LIMITS,
        resolve: Resolve = resolve_by_system,
        fill: Fill = no_secrets,
        tls: ssl.SSLContext | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.rules = rules
        self.audit = audit
        self._limits = limits
        self._resolve = resolve
        self._fill = fill
        self._tls = tls
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._limiter = RequestLimiter(limits, clock_s)
        self._loop = asyncio.new_event_loop()
        self._sender: Sender | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="egress", daemon=True)
        self._closed = False
        self._starting = threading.Lock()

    def request(
        self, function: str, user: str, request: ApiRequest, is_wanted: Callable[[], bool] = lambda: True
    ) -> ApiResponse:
        """Call an outside API for a function, on behalf of a user.

        Args:
            function: its name.
            user: on whose behalf it runs.
            request: the request.
            is_wanted: called periodically; False ends the request.

        Raises:
            InvalidArgument: the request is malformed or too large.
            PermissionDenied: the function may not call this host, or its address is not allowed.
            ApiBusy: there are too many requests, or too many at once.
            ApiLimitExceeded: the response is too large, or there are too many redirects.
            ApiUnreachable: the host gave no usable response.
            DeadlineExceeded: it took longer than allowed.
            CallAbandoned: the call no longer waits for it.
            StoreClosed: the pool is being stopped.
        """
        with self._limiter.permit(function, user) as permit:
            exchange = self._prepared(function, user, request, permit)
            return self._run(exchange, self._allowed_s(request), is_wanted)

    def close(self) -> None:
        """End running requests, and close all connections."""
        with self._starting:
            closed, self._closed = self._closed, True
        if closed:
            return
        if self._thread.is_alive():
            try:
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(_CLOSE_S)
            except TimeoutError:
                logging.getLogger(__name__).warning("connections to outside APIs did not close within %g s", _CLOSE_S)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self.audit.close()

    def _allowed_s(self, request: ApiRequest) -> float:
        allowed_s = self._limits.total_s
        return allowed_s if request.timeout_s is None else min(allowed_s, request.timeout_s)

    def _prepared(self, function: str, user: str, request: ApiRequest, permit: Permit) -> Exchange:
        """Make all checks that need no outside host; refusals are audited as well."""
        host = ""
        try:
            url = parse_url(request.url, self._limits.url_chars)
            host = place_of(url.host, url.port)
            self.rules.require(function, url)
            filling = Filling(self._fill, function, url.host)
            outgoing = prepare(request, url, filling, self._limits)
        except StorageError as error:
            method = request.method[:20]
            now, kind = self._now_ms(), type(error).__name__
            self.audit.add(AuditRecord(now, function, user, host, method, 0, len(request.body), 0, 0.0, kind))
            raise
        from taskworker.outbound.egress.requesting import Exchange

        return Exchange(
            self._ready_sender(), function, user, outgoing, filling, permit, request.cache, request.follow_redirects
        )

    def _ready_sender(self) -> Sender:
        with self._starting:
            if self._sender is None:
                self._sender = self._made_sender()
            return self._sender

    def _made_sender(self) -> Sender:
        import httpx

        from taskworker.outbound.egress.connections import ConnectionPools
        from taskworker.outbound.egress.requesting import Sender

        tls = self._tls or httpx.create_ssl_context(trust_env=False)
        pools = ConnectionPools(self._resolve, tls, self._limits, self._clock_s)
        return Sender(pools, self.rules, self.audit, self._limits, self._clock_s, self._now_ms)

    async def _within(self, total_s: float, exchange: Exchange) -> ApiResponse:
        try:
            async with asyncio.timeout(total_s):
                return await exchange.run()
        except TimeoutError:
            raise DeadlineExceeded(f"{exchange.place} did not answer in full within {total_s:g} s") from None

    def _run(self, exchange: Exchange, total_s: float, is_wanted: Callable[[], bool]) -> ApiResponse:
        with self._starting:
            if self._closed:
                raise StoreClosed("the pool is being stopped")
            if not self._thread.is_alive():
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(self._within(total_s, exchange), self._loop)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    return future.result(_LOOK_S)
                if not is_wanted():
                    exchange.abandoned = True
                    future.cancel()
                    raise CallAbandoned("the call that requested an outside API has ended")
        except CancelledError:
            raise StoreClosed("the pool is being stopped") from None

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sender is not None:
            await self._sender.aclose()
        await self._loop.shutdown_asyncgens()
        await asyncio.sleep(0)  # sockets are closed in the next iteration of the loop
