"""The machine's clocks, as the defaults of constructors that take a clock."""

from __future__ import annotations

import time


def monotonic_s() -> float:
    """Seconds since some unspecified moment; never goes back."""
    return time.monotonic()


def wall_ms() -> int:
    """Milliseconds since 1970, by a clock that may be set forward or back, even to before 1970."""
    return time.time_ns() // 1_000_000
