"""When to try again what failed."""

from __future__ import annotations

import math
import time

_FIRST_S = 0.25
_LAST_S = 10.0
_STEADY_S = 60.0  # what has gone well for so long had no part in a later failure


class Backoff:
    """Pauses that double from one failure to the next. Guarded by its user's lock."""

    def __init__(self, first_s: float = _FIRST_S, last_s: float = _LAST_S) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._pause_s = 0.0
        self._next_s = 0.0
        self._well_since_s = math.inf

    def due(self) -> bool:
        """Whether it is time for another attempt."""
        return time.monotonic() >= self._next_s

    def failed(self) -> None:
        """The attempt failed, or something to be tried again has just come up."""
        if self._was_steady():
            self._pause_s = 0.0
        self._well_since_s = math.inf
        self._pause_s = min(max(self._first_s, 2 * self._pause_s), self._last_s)
        self._next_s = time.monotonic() + self._pause_s

    def succeeded(self) -> None:
        """It went well, for now."""
        self._next_s = 0.0
        self._well_since_s = time.monotonic()

    def relapsed(self) -> None:
        """What had gone well has failed. It may be tried at once, or after a longer pause if that was only just."""
        if math.isfinite(self._well_since_s) and not self._was_steady():
            self.failed()
        else:
            self._pause_s = self._next_s = 0.0

    def _was_steady(self) -> bool:
        return time.monotonic() - self._well_since_s >= _STEADY_S
