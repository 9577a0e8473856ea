"""When to try again what failed."""

from __future__ import annotations

import time

_FIRST_S = 0.25
_LAST_S = 10.0


class Backoff:
    """Pauses that double from one failure to the next. Guarded by its user's lock."""

    def __init__(self, first_s: float = _FIRST_S, last_s: float = _LAST_S) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._pause_s = 0.0
        self._next_s = 0.0

    def due(self) -> bool:
        """Whether it is time for another attempt."""
        return time.monotonic() >= self._next_s

    def failed(self) -> None:
        """The attempt failed, or something to be tried again has just come up."""
        self._pause_s = min(max(self._first_s, 2 * self._pause_s), self._last_s)
        self._next_s = time.monotonic() + self._pause_s

    def succeeded(self) -> None:
        """It went well."""
        self._pause_s = self._next_s = 0.0
