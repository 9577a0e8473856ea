"""Tells whether users are using a store right now, so that background work can give way."""

from __future__ import annotations

from collections.abc import Callable


class Activity:
    """Remembers when users' data was last read or written. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._last_s = float("-inf")

    def note(self) -> None:
        """Note that a user's chunk is being read or written."""
        self._last_s = self._clock_s()

    def is_busy(self, within_s: float) -> bool:
        """Whether a chunk was read or written within the last ``within_s`` seconds."""
        return self._clock_s() - self._last_s < within_s
