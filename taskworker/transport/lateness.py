"""How long a write waits for its slowest workers, given how long recent writes took."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection
from statistics import median

_SAMPLES = 256
_SAMPLES_MIN = 16
_TIMES = 2.0  # longer than what recent writes took, or this one took the others
# Flushes of a busy disk take as long as this now and then, and a lost packet of a distant link is sent again by then.
_LATE_S_MIN = 0.25
_LATE_S_FIRST = 1.0  # until there are enough samples


class Lateness:
    """Decides which workers are late. Thread-safe.

    A worker is late if it takes twice as long as 95 % of recent writes took all workers but the slowest, and twice as
    long as the median of this write. So a write that is large, or over links that are slow as a whole, is waited for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=_SAMPLES)
        self._sorted: list[float] = []

    def note(self, took_s: Collection[float]) -> None:
        """Note how many seconds each worker took over one write."""
        if len(took_s) < 2:
            return
        second = sorted(took_s)[-2]
        with self._lock:
            if len(self._recent) == _SAMPLES:
                del self._sorted[bisect_left(self._sorted, self._recent[0])]
            self._recent.append(second)
            insort(self._sorted, second)

    def usual_s(self) -> float:
        """The seconds within which no worker is late, whatever this write takes the others."""
        with self._lock:
            if len(self._sorted) < _SAMPLES_MIN:
                return _LATE_S_FIRST
            p95 = self._sorted[len(self._sorted) * 95 // 100]
        return max(_LATE_S_MIN, _TIMES * p95)

    def limit_s(self, others_s: Collection[float]) -> float:
        """The seconds after which a worker is late.

        Args:
            others_s: how many seconds this write took each worker that has ended it. None, if nobody else has a part in
                it: then recent writes decide.
        """
        return max(self.usual_s(), _TIMES * median(others_s)) if others_s else self.usual_s()
