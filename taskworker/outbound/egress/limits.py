"""Bounds on what functions may do outside."""

from __future__ import annotations

from dataclasses import dataclass

from taskworker.calls.capabilities import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Bounds of one pool. Sizes are bytes, times seconds.

    Attributes:
        request_bytes: of a request's body, once its secrets are filled in.
        response_bytes: of a response's body, both as it comes and decoded.
        url_chars: of a URL.
        request_headers: how many a function may set.
        request_header_bytes: names and values of those together.
        response_headers: how many an answer may have. The parsers end a head beyond 64 KiB (HTTP/2) or
            100 KiB (HTTP/1.1) themselves.
        redirects: followed in one request.
        connect_s: for a name's resolution and a connection, each.
        total_s: for a request, redirects, retries and all.
        rate: requests a second that each function may make on average.
        burst: requests that each function may make at once after a pause.
        concurrency: requests of each function under way at once.
        function_bytes: of answers held at once for a function. More would let one function fill the pool's memory.
        held_bytes: likewise for all functions.
        attempts: to get an answer to an idempotent request, the first one included.
        cache_bytes: of answers kept by HTTP's rules, for all functions together.
        functions: that connections are kept for.
    """

    request_bytes: int = REQUEST_BYTES_MAX
    response_bytes: int = RESPONSE_BYTES_MAX
    url_chars: int = 8192
    request_headers: int = 64
    request_header_bytes: int = 32 << 10
    response_headers: int = 256
    redirects: int = 5
    connect_s: float = 5.0
    total_s: float = 30.0
    rate: float = 200.0
    burst: int = 400
    concurrency: int = 100
    function_bytes: int = 48 << 20
    held_bytes: int = 192 << 20
    attempts: int = 3
    cache_bytes: int = 32 << 20
    functions: int = 64


DEFAULT_LIMITS = EgressLimits()
