"""Whether users are at work on a store right now, so that background work can make way."""

from __future__ import annotations

from collections.abc import Callable


class Activity:
    """When users' data last moved. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._last_s = float("-inf")

    def note(self) -> None:
        """A chunk of a user's is being read or written."""
        self._last_s = self._clock_s()

    def is_busy(self, within_s: float) -> bool:
        """Whether one was within the last ``within_s`` seconds."""
        return self._clock_s() - self._last_s < within_s
