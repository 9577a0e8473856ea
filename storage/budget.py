"""Memory that all calls share: many at once take hardly more of it than one."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Somebody who wants so many bytes, and the event that tells them that they have them."""

    count: int
    had: threading.Event


class Budget:
    """Bytes that may be under way at once; first come, first served. Thread-safe.

    Args:
        limit: how many; somebody who wants more than that gets it when nobody else has any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()

    def take(self, count: int) -> None:
        """Wait for so many bytes, and have them."""
        with self._lock:
            if self._allows(count):
                self._taken += count
                return
            waiting = _Waiting(count, threading.Event())
            self._waiting.append(waiting)
        waiting.had.wait()

    def try_take(self, count: int) -> bool:
        """Have so many bytes if they are to be had at once."""
        with self._lock:
            allowed = self._allows(count)
            self._taken += count if allowed else 0
            return allowed

    def give_back(self, count: int) -> None:
        """Others may have them now."""
        with self._lock:
            self._taken -= count
            while self._waiting and self._fits(self._waiting[0].count):
                first = self._waiting.popleft()
                self._taken += first.count
                first.had.set()

    def _allows(self, count: int) -> bool:
        return not self._waiting and self._fits(count)

    def _fits(self, count: int) -> bool:
        return not self._taken or self._taken + count <= self._limit
