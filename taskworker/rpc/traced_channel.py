"""Channels whose calls are told as spans, and carry the caller's trace to the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from taskworker.tracing.spans import SPANS, Tracer, has_program_tracing


class _Details(NamedTuple):
    """What gRPC says of a call; it asks for an object with these attributes."""

    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _TracedCalls(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, tracer: Tracer, target: str) -> None:
        self._tracer = tracer
        self._target = target

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        method = details.method if isinstance(details.method, str) else details.method.decode()
        headers, ended = self._tracer.client(method.removeprefix("/"), self._target)
        try:
            call = continuation(
                _Details(
                    details.method,
                    details.timeout,
                    [*(details.metadata or ()), *headers],
                    details.credentials,
                    details.wait_for_ready,
                    details.compression,
                ),
                request,
            )
        except BaseException:
            ended("UNKNOWN")
            raise
        call.add_done_callback(lambda done: ended(done.code().name))
        return call

    intercept_unary_unary: Any = _intercept
    intercept_unary_stream: Any = _intercept
    intercept_stream_unary: Any = _intercept
    intercept_stream_stream: Any = _intercept


def traced(channel: grpc.Channel, target: str) -> grpc.Channel:
    """The channel, with spans for its calls if somebody wants them.

    Args:
        channel: the channel.
        target: gRPC's name for where it leads.
    """
    tracer = SPANS.tracer or _tracer_of_program()
    return channel if tracer is None else grpc.intercept_channel(channel, _TracedCalls(tracer, target))


def _tracer_of_program() -> Tracer | None:
    """Makes spans for a program that uses OpenTelemetry itself; None: it does not."""
    if not has_program_tracing():
        return None
    from taskworker.tracing.opentelemetry import tracer_of_program

    return tracer_of_program()
