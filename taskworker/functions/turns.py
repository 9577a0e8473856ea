"""Who may run now: so many calls of a function at once, so many waiting in order of arrival, the rest refused."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from taskworker.errors import DeadlineExceeded, FunctionBusy


class Turns:
    """Hands out turns for one function. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[threading.Event] = deque()

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        with self._lock:
            return self._running, len(self._waiting)

    @contextmanager
    def turn(self, concurrency: int, queue: int, timeout_s: float | None) -> Iterator[None]:
        """Hold a turn, after waiting for it if need be.

        Raises:
            FunctionBusy: as many run and wait as may.
            DeadlineExceeded: the time ran out before its turn came.
        """
        self._take(concurrency, queue, timeout_s)
        try:
            yield
        finally:
            self._pass_on()

    def _take(self, concurrency: int, queue: int, timeout_s: float | None) -> None:
        with self._lock:
            if self._running < concurrency:
                self._running += 1
                return
            if len(self._waiting) >= queue:
                raise FunctionBusy(
                    f"function {self._name} has {self._running} calls running and {len(self._waiting)} waiting, as "
                    "many as are allowed; try again in a second"
                )
            mine = threading.Event()
            self._waiting.append(mine)
        started = time.monotonic()
        if mine.wait(timeout_s):
            return
        with self._lock:
            if not mine.is_set():
                self._waiting.remove(mine)
                waited_s = time.monotonic() - started
                raise DeadlineExceeded(f"function {self._name}: its turn did not come within {waited_s:.1f} s")

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # the turn goes over to the next
            else:
                self._running -= 1
