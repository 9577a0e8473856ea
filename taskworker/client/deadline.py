"""Deadlines of whole operations, and retries within them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from taskworker.errors import DeadlineExceeded, StorageUnavailable

ResultT = TypeVar("ResultT")

_BACKOFF_S = 0.2

_ENDLESS_S = 100 * 365 * 86400
"""Longer limits count as none: gRPC counts nanoseconds since 1970 in 63 bits, and treats later times as past."""


class Deadline:
    """A point in time by which a whole operation must be done, with all its calls and retries."""

    __slots__ = ("_at", "_limit_s")

    def __init__(self, limit_s: float | None) -> None:
        self._limit_s = limit_s
        self._at = None if limit_s is None or limit_s >= _ENDLESS_S else time.monotonic() + limit_s

    def remaining_s(self) -> float | None:
        """Seconds left; None: no limit.

        Raises:
            DeadlineExceeded: no time is left.
        """
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"not done within {self._limit_s} s; allow more time, or try again to go on")
        return left

    @property
    def left_s(self) -> float | None:
        """Seconds left, also none or fewer; None: no limit."""
        return None if self._at is None else self._at - time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self._at is not None and time.monotonic() >= self._at

    def back_off(self, attempt: int) -> None:
        """Sleep before retry number ``attempt`` (1, 2, …), longer each time, but not past the deadline."""
        pause = _BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)
        left = self.remaining_s()
        time.sleep(pause if left is None else min(pause, left))


def retried(operation: Callable[[], ResultT], deadline: Deadline, retries: int) -> ResultT:
    """Run ``operation()``, and retry it while the server is unavailable; only for operations that may run twice."""
    attempt = 0
    while True:
        try:
            return operation()
        except StorageUnavailable:
            attempt += 1
            if attempt > retries:
                raise
            deadline.back_off(attempt)
