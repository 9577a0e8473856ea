"""Who may run now: so many calls of a function at once, so many waiting in order of arrival, the rest refused."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy
from taskworker.functions.calls import RunningCall


class _Place:
    """One of those that wait; woken when it is its turn, or when nobody waits for the call any more."""

    __slots__ = ("has_turn", "woken")

    def __init__(self) -> None:
        self.has_turn = False
        self.woken = threading.Event()


class Turns:
    """Hands out turns for one function. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[_Place] = deque()

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        with self._lock:
            return self._running, len(self._waiting)

    @contextmanager
    def turn(self, concurrency: int, queue: int, timeout_s: float | None, running: RunningCall) -> Iterator[None]:
        """Hold a turn, after waiting for it if need be.

        Raises:
            FunctionBusy: as many run and wait as may.
            DeadlineExceeded: the time ran out before its turn came.
            CallAbandoned: ``running`` was ended before.
        """
        self._take(concurrency, queue, timeout_s, running)
        try:
            yield
        finally:
            self._pass_on()

    def _take(self, concurrency: int, queue: int, timeout_s: float | None, running: RunningCall) -> None:
        with self._lock:
            if self._running < concurrency:
                self._running += 1
                return
            if len(self._waiting) >= queue:
                raise FunctionBusy(
                    f"function {self._name} has {self._running} calls running and {len(self._waiting)} waiting, as "
                    "many as are allowed; try again in a second"
                )
            mine = _Place()
            self._waiting.append(mine)
        started = time.monotonic()
        with running.ended_by(mine.woken.set):
            mine.woken.wait(timeout_s)
        with self._lock:
            if mine.has_turn:
                return
            self._waiting.remove(mine)
        if running.cancelled:
            raise CallAbandoned(f"the call of {self._name} was cancelled before its turn came")
        waited_s = time.monotonic() - started
        raise DeadlineExceeded(f"function {self._name}: its turn did not come within {waited_s:.1f} s")

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting:
                following = self._waiting.popleft()  # the turn goes over to it
                following.has_turn = True
                following.woken.set()
            else:
                self._running -= 1
