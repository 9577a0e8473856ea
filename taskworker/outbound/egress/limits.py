"""Limits on functions' requests to outside APIs."""

from __future__ import annotations

from dataclasses import dataclass

from taskworker.calls.capabilities import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class EgressLimits:
    """Limits of one pool. Sizes are in bytes, times in seconds.

    Attributes:
        request_bytes: size of a request's body, after secrets are filled in.
        response_bytes: size of a response's body, both as received and decoded.
        url_chars: characters of a URL.
        request_headers: how many a function may set.
        request_header_bytes: total size of their names and values.
        response_headers: how many a response may have. The parsers themselves refuse headers beyond 64 KiB (HTTP/2) or
            100 KiB (HTTP/1.1) in total.
        redirects: redirects followed for one request.
        connect_s: time for resolving a name, and for making a connection.
        total_s: time for a request, including redirects and retries.
        rate: average requests per second of each function.
        burst: requests that each function may make at once after a pause.
        concurrency: concurrent requests of each function.
        function_bytes: bytes of responses held at once for a function, so that it cannot fill the pool's memory.
        held_bytes: the same for all functions together.
        attempts: attempts at an idempotent request, including the first.
        cache_bytes: bytes of cached responses of all functions together.
        functions: functions for which connections are kept.
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
