"""Workers' reports of rotten shards: limits how often one worker can start a search for missing shards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

_FIRST_S = 30.0
_LONGEST_S = 3600.0


@dataclass(slots=True)
class _Told:
    waiting: int = 0
    due_s: float = 0.0
    interval_s: float = _FIRST_S


class RotReports:
    """Numbers of rotten shards by slot that were not acted on yet. Thread-safe.

    A worker's first report is acted on at once, further ones after half a minute, a minute, two and so on up to an
    hour.
    After an hour without reports, the next one is acted on at once again.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._told: dict[int, _Told] = {}
        self._lock = threading.Lock()

    def add(self, slot: int, found: int) -> None:
        """Record that a worker found this many more rotten shards."""
        with self._lock:
            self._told.setdefault(slot, _Told()).waiting += found

    def due(self) -> list[tuple[int, int]]:
        """(slot, number) of the reports to act on now."""
        now_s = self._clock_s()
        with self._lock:
            ready = [(slot, told) for slot, told in self._told.items() if told.waiting and now_s >= told.due_s]
            found = [(slot, told.waiting) for slot, told in ready]
            for _, told in ready:
                quiet = now_s >= told.due_s + _LONGEST_S
                interval_s = _FIRST_S if quiet else told.interval_s
                told.waiting, told.due_s = 0, now_s + interval_s
                told.interval_s = min(2 * interval_s, _LONGEST_S)
        return found
