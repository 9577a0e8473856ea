"""A memory limit that all calls share, so that many calls at once take hardly more memory than one."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A caller that waits for ``count`` bytes, and the event that is set when it has them."""

    count: int
    had: threading.Event


class Budget:
    """A number of bytes that may be in use at once; first come, first served. Thread-safe.

    Args:
        limit: how many bytes. A caller that wants more than that gets them when no other caller has any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes are free, and take them."""
        with self._lock:
            if self._allows(count):
                self._taken += count
                return
        waiting = _Waiting(count, threading.Event())
        try:
            with self._lock:
                self._waiting.append(waiting)
                self._grant()
            waiting.had.wait()
        except BaseException:  # interrupted
            self._withdraw(waiting)
            raise

    def try_take(self, count: int) -> bool:
        """Take ``count`` bytes if they are free now; return whether they were."""
        with self._lock:
            allowed = self._allows(count)
            self._taken += count if allowed else 0
            return allowed

    def give_back(self, count: int) -> None:
        """Return ``count`` bytes, and give them to waiting callers."""
        with self._lock:
            self._taken -= count
            self._grant()

    def _withdraw(self, waiting: _Waiting) -> None:
        """Take a caller out that waits no longer, or give back what it was given meanwhile."""
        with self._lock:
            if waiting.had.is_set():
                self._taken -= waiting.count
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            self._grant()

    def _grant(self) -> None:
        """Give what is free to those who wait, in order. The caller holds the lock."""
        while self._waiting and self._fits(self._waiting[0].count):
            first = self._waiting.popleft()
            self._taken += first.count
            first.had.set()

    def _allows(self, count: int) -> bool:
        return not self._waiting and self._fits(count)

    def _fits(self, count: int) -> bool:
        return not self._taken or self._taken + count <= self._limit
