"""A clock that only advances when the simulation says so."""

from __future__ import annotations

_START_NS = 1_700_000_000 * 1_000_000_000
_LOOK_NS = 1_000


class Clock:
    """A simulated clock. Each reading of the wall clock is a microsecond later, so that no two are equal.

    Attributes:
        wrong_ns: how far the wall clock is ahead of the true time, in nanoseconds.
    """

    def __init__(self) -> None:
        self._now_ns = _START_NS
        self._now_s = 0.0
        self.wrong_ns = 0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += int(seconds * 1e9)
        self._now_s = (self._now_ns - _START_NS) / 1e9

    def monotonic_s(self) -> float:
        """Return the seconds since the simulation began."""
        return self._now_s

    def wall_ns(self) -> int:
        """Return the nanoseconds since 1970, by a clock that may be wrong."""
        self._now_ns += _LOOK_NS
        self._now_s = (self._now_ns - _START_NS) / 1e9
        return self._now_ns + self.wrong_ns
