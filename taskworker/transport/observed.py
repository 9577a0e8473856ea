"""Tells an observer of the calls of a shard server, if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from taskworker.errors import CallAbandoned
from taskworker.metrics.observers import OBSERVERS, CallObserver
from taskworker.rpc import status
from taskworker.transport.wire.outgoing import Parts, length_of
from taskworker.transport.wire.serving import Caller, Method, Style

Once = Callable[[memoryview, Caller], Parts]
Stream = Callable[[memoryview, Caller], Iterator[Parts]]


def observed(methods: Mapping[int, Method]) -> dict[int, Method]:
    """The methods, each of which tells its observer; unchanged if nobody wants to know."""
    return {number: _observed(method) for number, method in methods.items()}


def _observed(method: Method) -> Method:
    observer = OBSERVERS.of_shards(method.name)
    if observer is None:
        return method
    if method.style is Style.STREAM:
        return method._replace(serve=_each(cast(Stream, method.serve), observer))
    return method._replace(serve=_once(cast(Once, method.serve), observer))


def _once(serve: Once, observer: CallObserver) -> Once:
    def told(body: memoryview, caller: Caller) -> Parts:
        began_s = time.perf_counter()
        observer.received(len(body))
        outcome: Exception | None = None
        try:
            parts = serve(body, caller)
            observer.sent(length_of(parts))
        except Exception as error:
            outcome = error
            raise
        finally:
            observer.ended(time.perf_counter() - began_s, status.code_name(outcome))
        return parts

    return told


def _each(serve: Stream, observer: CallObserver) -> Stream:
    def told(body: memoryview, caller: Caller) -> Iterator[Parts]:
        began_s = time.perf_counter()
        observer.received(len(body))
        # Not in the generator, as the body's memory is used again before its first step.
        return passed_on(serve(body, caller), began_s)

    def passed_on(messages: Iterator[Parts], began_s: float) -> Iterator[Parts]:
        outcome: Exception | None = None
        try:
            for parts in messages:
                observer.sent(length_of(parts))
                yield parts
        except GeneratorExit:
            outcome = CallAbandoned("the caller went away")
            raise
        except Exception as error:
            outcome = error
            raise
        finally:
            close = getattr(messages, "close", None)
            if close is not None:
                close()
            observer.ended(time.perf_counter() - began_s, status.code_name(outcome))

    return told
