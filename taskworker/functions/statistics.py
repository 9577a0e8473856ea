"""How a function's calls do: counts, rate, and how long they take."""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass

_KEPT = 4096
_RATE_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class CallFigures:
    """Of one function since the pool started; percentiles in seconds over its latest 4096 calls."""

    calls: int = 0
    errors: int = 0
    cached: int = 0
    moved: int = 0
    rate: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0


class CallStatistics:
    """Counts the calls of one function. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = self._errors = self._cached = self._moved = 0
        self._ended = 0  # calls that took time
        # Of the latest calls, round and round: 64 KiB, where tuples would come to take 450.
        self._ended_at = array("d", bytes(8 * _KEPT))
        self._taken_s = array("d", bytes(8 * _KEPT))

    def ended(self, taken_s: float, *, failed: bool) -> None:
        """A call came to its end."""
        with self._lock:
            place = self._ended % _KEPT
            self._ended_at[place], self._taken_s[place] = time.monotonic(), taken_s
            self._ended += 1
            self._calls += 1
            self._errors += failed

    def from_cache(self) -> None:
        """A call was answered with an earlier result."""
        with self._lock:
            self._calls += 1
            self._cached += 1

    def was_moved(self) -> None:
        """A call's worker was lost, and another one took it."""
        with self._lock:
            self._moved += 1

    def figures(self) -> CallFigures:
        """As they are now."""
        with self._lock:
            kept = min(self._ended, _KEPT)
            ended_at, taken_s = list(self._ended_at[:kept]), sorted(self._taken_s[:kept])
            counts = (self._calls, self._errors, self._cached, self._moved)
        since = time.monotonic() - _RATE_WINDOW_S
        recent = [at for at in ended_at if at >= since]
        # Where the window holds more than is kept, what is kept tells over how long.
        over_s = _RATE_WINDOW_S if len(recent) < _KEPT else time.monotonic() - min(recent)
        return CallFigures(*counts, len(recent) / over_s, *(_percentile(taken_s, share) for share in (0.5, 0.95, 0.99)))


def _percentile(ordered: list[float], share: float) -> float:
    """By nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
