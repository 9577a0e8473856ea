"""The engine's threads, clocks and random bytes, decided by the seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from random import Random
from typing import Any, TypeVar

from storage.runtime import Runtime
from tests.simulation.clock import Clock

T = TypeVar("T")


class InlineExecutor(Executor):
    """Does the work at once, in the caller's thread."""

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(work(*arguments, **keywords))
        except Exception as error:
            future.set_exception(error)
        return future


class DeferredExecutor(Executor):
    """Keeps the work until the simulation has it done: background threads get to run at any later time."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        self._waiting.append(lambda: work(*arguments, **keywords))
        return Future()

    def run(self) -> int:
        """Do what waits, and what comes of it; how much that was."""
        done = 0
        while self._waiting:
            self._waiting.popleft()()
            done += 1
        return done


class SimulatedRuntime(Runtime):
    """One per process of the pool."""

    def __init__(self, clock: Clock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng
        self.background = DeferredExecutor()

    def executor(self, threads: int, name: str) -> Executor:
        """See :meth:`Runtime.executor`: healing waits, all else is done at once."""
        return self.background if name == "healer" else InlineExecutor()

    def monotonic_s(self) -> float:
        """See :meth:`Runtime.monotonic_s`."""
        return self._clock.monotonic_s()

    def wall_ns(self) -> int:
        """See :meth:`Runtime.wall_ns`."""
        return self._clock.wall_ns()

    def token_bytes(self, count: int) -> bytes:
        """See :meth:`Runtime.token_bytes`."""
        return self._rng.randbytes(count)
