"""Carries out requests: sends them to hosts, retries, follows redirects, and reads responses."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
from hishel.httpx import AsyncCacheTransport
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from storage.clocks import wall_ms
from storage.errors import StorageError
from taskworker.calls.capabilities import ApiResponse
from taskworker.errors import ApiLimitExceeded, ApiUnreachable, CallAbandoned, DeadlineExceeded
from taskworker.outbound.egress.audit import AuditLog, AuditRecord
from taskworker.outbound.egress.bodies import decoder_for, read_body
from taskworker.outbound.egress.caching import PRIVATE, MemoryStorage, entry_key, place_key
from taskworker.outbound.egress.concurrency import Permit
from taskworker.outbound.egress.connections import ConnectionPools
from taskworker.outbound.egress.filling import Filling
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.outgoing import IDEMPOTENT, REDIRECTS, SAFE, Outgoing, redirected
from taskworker.outbound.egress.rules import RuleBook
from taskworker.outbound.egress.urls import place_of

log = logging.getLogger(__name__)

_OF_A_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_PASSING = frozenset({502, 503, 504})
"""Statuses of temporary failures."""
_WAIT_S, _WAIT_MAX_S = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """The response of one host; ``received`` counts the body's bytes as received."""

    status: int
    headers: tuple[tuple[str, str], ...]
    location: str | None
    body: bytes
    received: int
    from_cache: bool


@dataclass(slots=True)
class Exchange:
    """A function's request, with its redirects and retries."""

    sender: Sender
    function: str
    user: str
    outgoing: Outgoing
    filling: Filling
    permit: Permit
    cache: bool
    follow_redirects: bool
    abandoned: bool = False
    """Set before the exchange is ended because its call no longer waits for it."""

    @property
    def place(self) -> str:
        """Host and port of the current request."""
        return self.outgoing.url.place

    async def run(self) -> ApiResponse:
        """Send the request, and follow redirects."""
        for _ in range(self.sender.limits.redirects + 1):
            answer = await self.sender.answer(self)
            if not self._is_followed(answer):
                return self._told(answer)
            self.outgoing = redirected(
                self.outgoing, answer.status, answer.location or "", self.filling, self.sender.limits.url_chars
            )
            self.permit.let_go()
        raise ApiLimitExceeded(
            f"{self.place} redirects again: at most {self.sender.limits.redirects} redirects are followed"
        )

    def _is_followed(self, answer: _Answer) -> bool:
        return self.follow_redirects and answer.status in REDIRECTS and answer.location is not None

    def _told(self, answer: _Answer) -> ApiResponse:
        hide = self.filling.hide
        headers = tuple((name, hide(value)) for name, value in answer.headers)
        return ApiResponse(answer.status, headers, answer.body, self.outgoing.shown, answer.from_cache)


class Sender:
    """Sends requests. For one event loop.

    Args:
        pools: the connections.
        rules: which function may call which hosts.
        audit: records every request.
        limits: limits on requests.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        pools: ConnectionPools,
        rules: RuleBook,
        audit: AuditLog,
        limits: EgressLimits,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        self.limits = limits
        self._now_ms = now_ms
        self._pools = pools
        self._rules = rules
        self._audit = audit
        self._storage = MemoryStorage(limits.cache_bytes, limits.response_bytes, clock_s)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pools.aclose()

    async def answer(self, exchange: Exchange) -> _Answer:
        """The response of the next host; retries if that may help.

        Raises:
            StorageError: there is none; see ``EgressProxy.request``.
        """
        tries = self.limits.attempts if exchange.outgoing.method in IDEMPOTENT else 1
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(httpx.TransportError)
            | retry_if_result(lambda answer: answer.status in _PASSING),
            stop=stop_after_attempt(tries),
            wait=wait_random_exponential(_WAIT_S, _WAIT_MAX_S),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        place = exchange.place
        try:
            found: _Answer = await retrying(self._audited, exchange)
        except httpx.TransportError as error:
            # Texts of the libraries may quote the request, so only the kind of failure is reported.
            reason = _WORDS.get(type(error), "it does not answer")
            raise ApiUnreachable(f"{place} cannot be reached: {reason}") from None
        return found

    async def _audited(self, exchange: Exchange) -> _Answer:
        exchange.permit.let_go()  # bytes of an earlier attempt
        started, now = time.perf_counter(), self._now_ms()
        status, received, outcome = 0, 0, ""
        try:
            answer = await self._ask(exchange)
            status, received, outcome = answer.status, answer.received, "cache" if answer.from_cache else "ok"
        except StorageError as error:
            outcome = type(error).__name__
            raise
        except httpx.TransportError:
            outcome = ApiUnreachable.__name__
            raise
        except Exception as error:
            # Hostile responses may trigger any error of a parser. It ends only this request; only its kind is reported.
            log.warning(
                "%s sent a response that the HTTP libraries cannot parse: %s", exchange.place, type(error).__name__
            )
            outcome = ApiUnreachable.__name__
            raise ApiUnreachable(f"{exchange.place} answered with something that is not HTTP") from None
        except asyncio.CancelledError:
            outcome = (CallAbandoned if exchange.abandoned else DeadlineExceeded).__name__
            raise
        finally:
            outgoing, ms = exchange.outgoing, (time.perf_counter() - started) * 1000
            host = place_of(outgoing.url.host, outgoing.url.port)
            self._audit.add(
                AuditRecord(
                    time_ms=now,
                    function=exchange.function,
                    user_id=exchange.user,
                    host=host,
                    method=outgoing.method,
                    status=status,
                    sent=len(outgoing.body),
                    received=received,
                    ms=round(ms, 3),
                    outcome=outcome,
                )
            )
        return answer

    async def _ask(self, exchange: Exchange) -> _Answer:
        outgoing = exchange.outgoing
        rule = self._rules.require(exchange.function, outgoing.url)
        request = httpx.Request(
            outgoing.method,
            outgoing.url.url,
            headers=outgoing.sent_headers(),
            content=outgoing.body if outgoing.body or outgoing.method in ("POST", "PUT", "PATCH") else None,
            # Only the whole exchange has a timeout: over HTTP/2, a timeout of one request would end others.
            extensions={"timeout": {"connect": self.limits.connect_s}},
        )
        place = self._place(exchange, request.url)
        moment = self._storage.moment
        async with self._pools.transport(exchange.function, private=rule.private) as transport:
            if exchange.cache:
                request.extensions["caching"] = {"key": entry_key(place, outgoing.credentials)}
                transport = AsyncCacheTransport(transport, self._storage, PRIVATE)
            try:
                return await self._exchanged(transport, request, exchange)
            finally:
                if outgoing.method not in SAFE:  # even without a response
                    self._storage.changed(place)
                elif self._storage.changed_since(place, moment):
                    self._storage.forget(place)

    def _place(self, exchange: Exchange, url: httpx.URL) -> str:
        return place_key(exchange.function, exchange.user, str(url))

    async def _exchanged(
        self, transport: httpx.AsyncBaseTransport, request: httpx.Request, exchange: Exchange
    ) -> _Answer:
        response = await transport.handle_async_request(request)
        if request.method not in SAFE:
            for url in _also_changed(request.url, response):
                self._storage.changed(self._place(exchange, url))
        try:
            return await self._read(response, exchange)
        finally:
            await response.aclose()

    async def _read(self, response: httpx.Response, exchange: Exchange) -> _Answer:
        place, limits = exchange.place, self.limits
        headers = response.headers
        if len(headers.raw) > limits.response_headers:
            raise ApiLimitExceeded(f"{place} answered with more than {limits.response_headers} headers")
        decoder = decoder_for(headers.get("content-encoding", ""), place)
        body, received = await read_body(
            response.aiter_raw(), decoder, limits.response_bytes, exchange.permit.hold, place
        )
        told = tuple((name, value) for name, value in headers.multi_items() if name not in _OF_A_CONNECTION)
        from_cache = bool(response.extensions.get("caching", {}).get("from_cache"))
        return _Answer(response.status_code, told, headers.get("location"), body, received, from_cache)


def _also_changed(url: httpx.URL, response: httpx.Response) -> Iterator[httpx.URL]:
    """Other URLs of the same host that a response names as created or changed."""
    for name in ("location", "content-location"):
        try:
            found = url.join(response.headers.get(name, ""))
        except (httpx.InvalidURL, ValueError):
            continue  # not a URL
        if (found.scheme, found.host, found.port) == (url.scheme, url.host, url.port):
            yield found.copy_with(fragment=None)


_WORDS: dict[type[httpx.TransportError], str] = {
    httpx.ConnectError: "it does not accept connections, or TLS cannot be negotiated",
    httpx.ConnectTimeout: "it does not accept connections in time",
    httpx.ReadError: "the connection broke",
    httpx.WriteError: "the connection broke",
    httpx.RemoteProtocolError: "its answer is not HTTP, has too large a header, or is cut off",
    httpx.LocalProtocolError: "the request cannot be sent as HTTP",
}
