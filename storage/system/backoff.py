"""Backoff between attempts."""

from __future__ import annotations

import math
from collections.abc import Callable

from storage.clocks import monotonic_s

_FIRST_S = 0.25
_LAST_S = 10.0
_STEADY_S = 60.0  # after working for so long, a failure counts as a new one


class Backoff:
    """Pauses that double with each failure. Callers must hold a lock.

    Args:
        first_s: seconds of the first pause.
        last_s: seconds of the longest pause.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, first_s: float = _FIRST_S, last_s: float = _LAST_S, clock_s: Callable[[], float] = monotonic_s
    ) -> None:
        self._clock_s = clock_s
        self._first_s = first_s
        self._last_s = last_s
        self._pause_s = 0.0
        self._next_s = 0.0
        self._well_since_s = math.inf

    def due(self) -> bool:
        """Whether another attempt is due."""
        return self._clock_s() >= self._next_s

    def failed(self) -> None:
        """Note that an attempt failed, or that something has just failed for the first time."""
        if self._was_steady():
            self._pause_s = 0.0
        self._well_since_s = math.inf
        self._pause_s = min(max(self._first_s, 2 * self._pause_s), self._last_s)
        self._next_s = self._clock_s() + self._pause_s

    def succeeded(self) -> None:
        """Note that an attempt succeeded."""
        self._next_s = 0.0
        self._well_since_s = self._clock_s()

    def relapsed(self) -> None:
        """Note a failure after a success: retry at once, or after a longer pause if the success was only recent."""
        if math.isfinite(self._well_since_s) and not self._was_steady():
            self.failed()
        else:
            self._pause_s = self._next_s = 0.0

    def _was_steady(self) -> bool:
        return self._clock_s() - self._well_since_s >= _STEADY_S
