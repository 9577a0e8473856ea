"""Time that passes only when the simulation says so."""

from __future__ import annotations

_START_NS = 1_700_000_000 * 1_000_000_000
_LOOK_NS = 1_000


class Clock:
    """Each look at the wall clock is a microsecond later, so that no two things happen at once.

    Attributes:
        wrong_ns: by how much the wall clock is ahead of the true time.
    """

    def __init__(self) -> None:
        self._now_ns = _START_NS
        self.wrong_ns = 0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_ns += int(seconds * 1e9)

    def monotonic_s(self) -> float:
        """Seconds since the simulation began."""
        return (self._now_ns - _START_NS) / 1e9

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, by a clock that may be wrong."""
        self._now_ns += _LOOK_NS
        return self._now_ns + self.wrong_ns
