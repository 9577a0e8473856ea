"""Many callers of small operations, as threads of one process: rates, and percentiles of latency.

All callers of a pool, or of a bare server, share one channel, as the threads of a program share one client. Callers of
a web server have a connection each. Run as a module, it is the process of the callers.
"""

from __future__ import annotations

import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from benchmarks.bare_stream import BareClient
from benchmarks.cluster_processes import ClientProcess
from benchmarks.measure import seconds_of
from benchmarks.processes import obey
from benchmarks.s3_calls import S3Caller
from benchmarks.seaweed import HttpCaller
from benchmarks.workload import USER, small_content
from taskworker import Client

SMALL_BYTES = 4096
_STRIDE, _APART = 7919, 104729  # primes

Stored = Literal["pool", "bare", "web", "s3"]
"""What is called: a pool, a bare server (`benchmarks.bare_stream`), or a store with an HTTP interface or S3's."""
Operation = Literal["push", "get"]


@dataclass(frozen=True, slots=True)
class Latencies:
    """What callers measured together.

    Attributes:
        count: how many operations.
        rate: operations a second.
        p50_ms: median latency, in milliseconds.
        p99_ms: the latency that 99 % of the operations kept, in milliseconds.
    """

    count: int
    rate: float
    p50_ms: float
    p99_ms: float


class Callers:
    """A process of callers."""

    def __init__(self) -> None:
        self._process = ClientProcess("benchmarks.callers")

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fill(self, kind: Stored, address: str, count: int) -> None:
        """Store ``count`` files of 4 KiB, for "get"."""
        self._process.run("fill", kind=kind, address=address, count=count)

    def measure(self, kind: Stored, operation: Operation, address: str, callers: int, seconds: float) -> Latencies:
        """Make operations for ``seconds``, each caller one after another.

        Args:
            kind: what is at the address.
            operation: "push" stores new files of 4 KiB; "get" reads those of :meth:`fill`, or of a bare server any.
            address: ``host:port``.
            callers: how many threads.
            seconds: for how long.
        """
        return self.begin(kind, operation, address, callers, seconds)()

    def begin(
        self, kind: Stored, operation: Operation, address: str, callers: int, seconds: float
    ) -> Callable[[], Latencies]:
        """Begin what :meth:`measure` does; return a function that waits for its end."""
        arguments = {"kind": kind, "operation": operation, "address": address, "callers": callers, "seconds": seconds}
        outcome = self._process.begin("measure", **arguments)

        def latencies() -> Latencies:
            told = outcome()
            return Latencies(told["count"], told["rate"], told["p50_ms"], told["p99_ms"])

        return latencies

    def push_many(self, address: str, count: int) -> float:
        """Push ``count`` files of 4 KiB into a pool in one call; return the seconds until all are durable."""
        return float(self._process.run("push_many", address=address, count=count)["took"])

    def get_many(self, address: str) -> float:
        """Get the files of the last :meth:`push_many` in one call; return the seconds."""
        return float(self._process.run("get_many", address=address)["took"])


class _Caller(Protocol):
    """Makes single operations."""

    def push(self, name: str, content: bytes) -> str:
        """Store a file; return what :meth:`get` needs."""

    def get(self, key: str) -> bytes:
        """Return the content of a file."""


class _PoolCaller:
    def __init__(self, client: Client) -> None:
        self._client = client

    def push(self, name: str, content: bytes) -> str:
        return self._client.push(content, filename=name, user_id=USER).file_id

    def get(self, key: str) -> bytes:
        return self._client.get(key, user_id=USER)


class _WebCaller:
    def __init__(self, caller: HttpCaller) -> None:
        self._caller = caller

    def push(self, name: str, content: bytes) -> str:
        self._caller.put(f"/{name}?fsync=true", content)
        return name

    def get(self, key: str) -> bytes:
        return self._caller.get(f"/{key}")


class _S3Caller:
    def __init__(self, caller: S3Caller) -> None:
        self._caller = caller

    def push(self, name: str, content: bytes) -> str:
        self._caller.put(name, content)
        return name

    def get(self, key: str) -> bytes:
        return self._caller.get(key)


class _BareCaller:
    def __init__(self, client: BareClient) -> None:
        self._client = client

    def push(self, name: str, content: bytes) -> str:
        raise NotImplementedError("a bare server stores nothing")

    def get(self, key: str) -> bytes:
        return self._client.call()


class _Tasks:
    """The tasks of the process. Channels stay open between tasks."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._bare: dict[str, BareClient] = {}
        self._keys: dict[str, list[str]] = {}
        self._pushed: list[str] = []
        self._series = itertools.count()

    def fill(self, kind: Stored, address: str, count: int) -> None:
        """See :meth:`Callers.fill`."""
        with ExitStack() as stack:
            caller = self._caller(kind, address, stack)
            self._keys[address] = [caller.push(f"fill/{index}", _content("fill", index)) for index in range(count)]

    def measure(
        self, kind: Stored, operation: Operation, address: str, callers: int, seconds: float
    ) -> dict[str, float]:
        """See :meth:`Callers.measure`."""
        with ExitStack() as stack:
            made = [self._caller(kind, address, stack) for _ in range(callers)]
            if operation == "push":
                series = f"{kind}-{os.getpid()}-{next(self._series)}"
                actions = [self._pushes(caller, f"{series}-{number}") for number, caller in enumerate(made)]
            else:
                actions = [self._gets(caller, address, number) for number, caller in enumerate(made)]
            taken, whole_s = _repeat(actions, seconds)
        taken.sort()
        p99 = taken[min(len(taken) - 1, len(taken) * 99 // 100)]
        return {
            "count": len(taken),
            "rate": len(taken) / whole_s,
            "p50_ms": statistics.median(taken) * 1e3,
            "p99_ms": p99 * 1e3,
        }

    def push_many(self, address: str, count: int) -> dict[str, float]:
        """See :meth:`Callers.push_many`."""
        client, series = self._client(address), f"many-{os.getpid()}-{next(self._series)}"
        files = [(f"{series}/{index}", _content(series, index)) for index in range(count)]

        def action() -> None:
            self._pushed = [outcome.result().file_id for outcome in client.push_many(files, user_id=USER)]

        return {"took": seconds_of(action)}

    def get_many(self, address: str) -> dict[str, float]:
        """See :meth:`Callers.get_many`."""
        client = self._client(address)

        def action() -> None:
            for outcome in client.get_many(self._pushed, user_id=USER):
                _check(outcome.result())

        return {"took": seconds_of(action)}

    def _client(self, address: str) -> Client:
        if address not in self._clients:
            self._clients[address] = Client(address)
        return self._clients[address]

    def _caller(self, kind: Stored, address: str, stack: ExitStack) -> _Caller:
        if kind == "web":
            return _WebCaller(stack.enter_context(HttpCaller(address)))
        if kind == "s3":
            return _S3Caller(stack.enter_context(S3Caller(address)))
        if kind == "bare":
            if address not in self._bare:
                self._bare[address] = BareClient(address)
            return _BareCaller(self._bare[address])
        return _PoolCaller(self._client(address))

    def _pushes(self, caller: _Caller, series: str) -> Callable[[], object]:
        indices = itertools.count()

        def once() -> None:
            index = next(indices)
            caller.push(f"{series}/{index}", _content(series, index))

        return once

    def _gets(self, caller: _Caller, address: str, number: int) -> Callable[[], object]:
        """Return an action that gets one file after another, in strides, so that successive ones are not neighbours."""
        keys = self._keys.get(address, [""])
        positions = itertools.count(number * _APART, _STRIDE)

        def once() -> None:
            _check(caller.get(keys[next(positions) % len(keys)]))

        return once


def _check(content: bytes) -> None:
    if len(content) != SMALL_BYTES:
        raise AssertionError(f"a file of {SMALL_BYTES} bytes was got as {len(content)} bytes")


def _content(series: str, index: int) -> bytes:
    return small_content(series, index, SMALL_BYTES)


def _repeat(actions: Sequence[Callable[[], object]], seconds: float) -> tuple[list[float], float]:
    """Repeat each action in a thread of its own for ``seconds``; return the seconds of all, and those of the whole.

    Each action is done once before, so that first use is not measured.
    """
    taken: list[list[float]] = [[] for _ in actions]
    failures: list[BaseException] = []
    ready = threading.Barrier(len(actions) + 1)

    def repeat(action: Callable[[], object], into: list[float]) -> None:
        try:
            action()
            ready.wait()
            now = time.perf_counter()
            until = now + seconds
            while now < until:
                begun, _ = now, action()
                now = time.perf_counter()
                into.append(now - begun)
        except BaseException as error:  # raised again below, in the main thread
            failures.append(error)
            ready.abort()

    threads = [threading.Thread(target=repeat, args=each) for each in zip(actions, taken, strict=True)]
    for thread in threads:
        thread.start()
    with suppress(threading.BrokenBarrierError):
        ready.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    whole_s = time.perf_counter() - begun
    if failures:
        raise next((error for error in failures if not isinstance(error, threading.BrokenBarrierError)), failures[0])
    return [one for each in taken for one in each], whole_s


if __name__ == "__main__":
    obey(_Tasks())
