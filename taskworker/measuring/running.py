"""Runs an operation by several callers at once, for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from storage import StorageError

_FAILURES_MAX = 20


@dataclass(slots=True)
class Run:
    """What callers did.

    Attributes:
        durations_s: seconds of each operation that ended well.
        failures: what the others said.
        wall_s: seconds from the first one's start to the last one's end.
    """

    durations_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wall_s: float = 0.0


class Callers:
    """Callers that repeat an operation, each in a thread of its own.

    Args:
        count: how many.
        seconds: no operation begins after this time, but each caller makes at least one.
        operations_max: no more begin, of all callers together.
    """

    def __init__(self, count: int, seconds: float, operations_max: int) -> None:
        self._count = count
        self._seconds = seconds
        self._operations_max = operations_max
        self._lock = threading.Lock()
        self._begun = 0
        self._ended = threading.Event()
        self._until_s = 0.0
        self._run = Run()
        self._error: Exception | None = None

    def run(self, operation: Callable[[int], None]) -> Run:
        """Repeat an operation, which gets a number that no other has. It returns when all callers have ended.

        If it is interrupted, no more operations begin, and those that run come to their end first.

        Raises:
            Exception: what an operation raised, if that is no error of the store.
        """
        started = time.perf_counter()
        self._until_s = started + self._seconds
        threads = [
            threading.Thread(target=self._work, args=(operation,), name=f"caller-{number}", daemon=True)
            for number in range(self._count)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._ended.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
        self._run.wall_s = time.perf_counter() - started
        if self._error is not None:
            raise self._error
        return self._run

    def _next(self) -> int | None:
        with self._lock:
            enough = self._begun >= self._count and time.perf_counter() >= self._until_s
            if enough or self._begun >= self._operations_max or self._ended.is_set():
                return None
            if len(self._run.failures) >= _FAILURES_MAX:
                return None
            self._begun += 1
            return self._begun - 1

    def _work(self, operation: Callable[[int], None]) -> None:
        while (number := self._next()) is not None:
            started = time.perf_counter()
            try:
                operation(number)
            except StorageError as error:
                with self._lock:
                    self._run.failures.append(str(error) or type(error).__name__)
                continue
            except Exception as error:  # whoever waits for the callers is told
                self._error = error
                self._ended.set()
                return
            taken = time.perf_counter() - started
            with self._lock:
                self._run.durations_s.append(taken)
