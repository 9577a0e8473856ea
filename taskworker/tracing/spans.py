"""What the code does is told as spans: to nobody, until somebody wants to know."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Attributes = Mapping[str, str | int | float | bool]
Headers = Iterable[tuple[str, str | bytes]]


class Served(Protocol):
    """The span of a call that is answered."""

    def ended(self, code: str) -> None:
        """Note how the call ended, by the name of its status code."""


class Tracer(Protocol):
    """Makes spans. Thread-safe."""

    def server(self, method: str, headers: Headers) -> AbstractContextManager[Served]:
        """The span of a call of gRPC that is answered within the context, as a child of the caller's."""

    def client(self, method: str, target: str) -> tuple[list[tuple[str, str]], Callable[[str], None]]:
        """Begin the span of a call of gRPC that is made: headers to send with it, and what to call with its code."""

    def internal(self, name: str, attributes: Attributes) -> AbstractContextManager[object]:
        """The span of what is done within the context; an error that leaves it is noted, by its type."""

    def bound(self, function: Callable[P, T]) -> Callable[P, T]:
        """The function, to be called by other threads, whose spans are children of the present one."""

    def traceparent(self) -> str:
        """The present span for other programs, in the form of W3C's Trace Context; empty: there is none."""


class Spans:
    """The spans of this process. They cost a comparison as long as nobody wants them."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None

    def begin(self, tracer: Tracer) -> None:
        """Have spans made from now on; of connections, those of channels that are made from now on."""
        self._tracer = tracer

    @property
    def tracer(self) -> Tracer | None:
        """Who makes spans; None: nobody wants them."""
        return self._tracer

    def internal(self, name: str, attributes: Callable[[], Attributes] = dict) -> AbstractContextManager[object]:
        """See :class:`Tracer`; the attributes are asked for only if they are needed."""
        return nullcontext() if self._tracer is None else self._tracer.internal(name, attributes())

    def bound(self, function: Callable[P, T]) -> Callable[P, T]:
        """See :class:`Tracer`."""
        return function if self._tracer is None else self._tracer.bound(function)

    def traceparent(self) -> str:
        """See :class:`Tracer`."""
        return "" if self._tracer is None else self._tracer.traceparent()


SPANS = Spans()
"""One for the process."""


def has_program_tracing() -> bool:
    """Whether the program uses OpenTelemetry itself."""
    return "opentelemetry.sdk.trace" in sys.modules


def is_traced() -> bool:
    """Whether each call has a span of its own: the package's or the program's."""
    return SPANS.tracer is not None or has_program_tracing()
