"""The engine's threads, clocks and random bytes, determined by the seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from random import Random
from typing import Any, TypeVar, cast

from storage.runtime import Runtime
from tests.simulation.clock import Clock
from tests.simulation.network import Mailbox, Process

T = TypeVar("T")


class Ended(Future[T]):
    """A future of finished work, which needs no locks."""

    def __init__(self, outcome: T | None, error: Exception | None) -> None:
        self._outcome = outcome
        self._error = error

    def done(self) -> bool:
        return True

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def result(self, timeout: float | None = None) -> T:
        if self._error is not None:
            raise self._error
        return cast(T, self._outcome)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return self._error

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        fn(self)


class InlineExecutor(Executor):
    """Does work at once, in the caller's thread."""

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        try:
            return Ended(work(*arguments, **keywords), None)
        except Exception as error:
            return Ended(None, error)


class DeferredExecutor(Executor):
    """Keeps work until the simulation runs it, as background threads may run at any later time."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        self._waiting.append(lambda: work(*arguments, **keywords))
        return Future()

    def run(self) -> int:
        """Run all waiting work, including work that it submits; return how many pieces were run."""
        done = 0
        while self._waiting:
            self._waiting.popleft()()
            done += 1
        return done


class SimulatedRuntime(Runtime):
    """The runtime of one process of the pool."""

    def __init__(self, clock: Clock, rng: Random, process: Process) -> None:
        self._clock = clock
        self._rng = rng
        self._process = process
        self.background = DeferredExecutor()

    def mailbox(self) -> Mailbox:
        """See :meth:`Runtime.mailbox`."""
        return Mailbox(self._process)

    def executor(self, threads: int, name: str) -> Executor:
        """See :meth:`Runtime.executor`. Healing waits; everything else is done at once."""
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
