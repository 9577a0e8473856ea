"""Tells whether users are using a store right now, so that background work can give way."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Activity:
    """Remembers until when users' data is read or written. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._last_s = float("-inf")

    def note(self, lasting_s: float = 0.0) -> None:
        """Note that a user's chunk is being read or written, or that chunks will be for so many seconds."""
        with self._lock:
            self._last_s = max(self._last_s, self._clock_s() + lasting_s)

    def is_busy(self, within_s: float) -> bool:
        """Whether a chunk was read or written within the last ``within_s`` seconds."""
        return self._clock_s() - self._last_s < within_s
