"""Spans by OpenTelemetry's API, with its names and attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from opentelemetry import context, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from taskworker.tracing.spans import Attributes, Headers

P = ParamSpec("P")
T = TypeVar("T")

# Names by the semantic conventions for RPC: https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_FAULTS_OF_SERVERS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)
_OK = "OK"
_ROUTINE = frozenset(("grpc.health.v1.Health/Check", "taskworker.pool.PoolService/Heartbeat"))
"""What is called all the time, and belongs to no trace."""


class ServedCall:
    """The span of a call that is answered.

    Args:
        span: OpenTelemetry's; None: it has none.
    """

    def __init__(self, span: trace.Span | None) -> None:
        self._span = span

    def ended(self, code: str) -> None:
        """See :class:`~taskworker.tracing.spans.Served`."""
        if self._span is not None:
            _end(self._span, code, is_fault=code in _FAULTS_OF_SERVERS)


class OpenTelemetryTracer:
    """Makes spans of a provider.

    Args:
        tracer: of the provider.
    """

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextmanager
    def server(self, method: str, headers: Headers) -> Iterator[ServedCall]:
        """See :class:`~taskworker.tracing.spans.Tracer`, as for all methods."""
        if method in _ROUTINE:
            yield ServedCall(None)
            return
        carrier = {name: value for name, value in headers if isinstance(value, str)}
        with self._tracer.start_as_current_span(
            method,
            propagate.extract(carrier),
            SpanKind.SERVER,
            _rpc(method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield ServedCall(span)

    def client(self, method: str, target: str) -> tuple[list[tuple[str, str]], Callable[[str], None]]:
        """Begin a call."""
        if method in _ROUTINE:
            return [], lambda _code: None
        span = self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes={**_rpc(method), **_server(target)})
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span))

        def ended(code: str) -> None:
            _end(span, code, is_fault=code != _OK)
            span.end()

        return list(carrier.items()), ended

    @contextmanager
    def internal(self, name: str, attributes: Attributes) -> Iterator[None]:
        """Do something. Of an error only the type is told, as its text may name files."""
        with self._tracer.start_as_current_span(
            name, attributes=dict(attributes), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(Status(StatusCode.ERROR))
                raise

    def bound(self, function: Callable[P, T]) -> Callable[P, T]:
        """Keep the present span."""
        present = context.get_current()

        @functools.wraps(function, updated=())
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            token = context.attach(present)
            try:
                return function(*args, **kwargs)
            finally:
                context.detach(token)

        return run

    def traceparent(self) -> str:
        """Name the present span."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier.get("traceparent", "")


def tracer_of_program() -> OpenTelemetryTracer | None:
    """Makes spans of the provider that this program has set; None: it has set none."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return OpenTelemetryTracer(trace.get_tracer("taskworker"))


def _rpc(method: str) -> dict[str, str]:
    return {"rpc.system.name": "grpc", "rpc.method": method}


def _server(target: str) -> dict[str, str | int]:
    """Where a call goes, of gRPC's name for it."""
    place = target.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
    host, _, port = place.rpartition(":")
    if place.startswith("unix:") or "," in place or not port.isdigit():
        return {"server.address": place}
    return {"server.address": host.removeprefix("[").removesuffix("]"), "server.port": int(port)}


def _end(span: trace.Span, code: str, *, is_fault: bool) -> None:
    span.set_attribute("rpc.response.status_code", code)
    if is_fault:
        span.set_attribute("error.type", code)
        span.set_status(Status(StatusCode.ERROR))
