"""Recent latency of each function on each worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_WEIGHT = 0.2
_ALIKE = 2.0
"""Latencies whose ratio is below this count as equal; those of a single worker vary as much."""
_FRESH_S = 1.0
_KEPT = 4096


@dataclass(slots=True)
class _Pace:
    seconds: float
    at: float


class Latencies:
    """Moving averages of call times by function and worker. Callers must hold a common lock.

    A worker that has not run the function lately counts as fast, so that it is tried again.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._latencies: dict[tuple[str, str], _Pace] = {}

    def took(self, function: str, worker: str, seconds: float) -> None:
        """Record that a call succeeded after so many seconds."""
        known = self._fresh(function, worker)
        if known is None:
            self._latencies.pop((function, worker), None)  # newest last
            self._latencies[function, worker] = _Pace(seconds, self._clock_s())
            while len(self._latencies) > _KEPT:
                del self._latencies[next(iter(self._latencies))]
        else:
            known.seconds += _WEIGHT * (seconds - known.seconds)
            known.at = self._clock_s()

    def forget(self, function: str) -> None:
        """Forget a function that was removed."""
        for key in [key for key in self._latencies if key[0] == function]:
            del self._latencies[key]

    def slowness(self, function: str, workers: Sequence[str]) -> dict[str, float]:
        """How many times slower each worker is than the fastest of them; 1 if they are about equal."""
        known = {worker: pace.seconds for worker in workers if (pace := self._fresh(function, worker)) is not None}
        quickest = min(known.values(), default=0.0)
        if quickest <= 0.0:
            return dict.fromkeys(workers, 1.0)
        ratios = {worker: known.get(worker, quickest) / quickest for worker in workers}
        return {worker: ratio if ratio >= _ALIKE else 1.0 for worker, ratio in ratios.items()}

    def _fresh(self, function: str, worker: str) -> _Pace | None:
        pace = self._latencies.get((function, worker))
        if pace is None or self._clock_s() - pace.at > _FRESH_S + 2 * pace.seconds:
            return None
        return pace
