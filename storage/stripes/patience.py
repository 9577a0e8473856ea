"""When calls to stores are overdue, which stores are slow, and how slow distant ones are."""

from __future__ import annotations

import bisect
import statistics
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_HEDGE_S_MIN = 0.004  # shorter delays may come from the scheduler, not from a slow worker
_SAMPLES = 256
_HEDGE_S_MAX = 1.0  # unless most calls take longer than a quarter of it, over links that are slow as a whole
_TIMES_MEDIAN_MAX = 4
_HEDGE_S_FIRST = 0.05  # until there are enough samples
_SHUNNED_S = 2.0
_FAR_S = 0.02
_COMPARED_MIN = 3  # stores
_TIMES_MAX = 8.0
_LEARNED, _FORGOTTEN = 0.3, 0.1  # with each read


@dataclass(slots=True, eq=False)
class Owed:
    """An answer that a store owes. Only :class:`Slowness` changes it.

    Attributes:
        store: slot of the store.
        overdue: whether it takes longer than most.
        ended: whether it has come, or will never come.
    """

    store: int
    overdue: bool = False
    ended: bool = False


class Slowness:
    """Which stores to ask last because they are slow. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._lately: dict[int, float] = {}  # store → until when it counts as slow
        self._owing: Counter[int] = Counter()  # overdue answers that have not come, by store

    def note_overdue(self, owed: Owed) -> None:
        """Note that an answer takes longer than most."""
        with self._lock:
            self._lately[owed.store] = self._clock_s() + _SHUNNED_S
            if not owed.ended and not owed.overdue:
                self._owing[owed.store] += 1
            owed.overdue = True

    def note_ended(self, owed: Owed) -> None:
        """Note that an answer has come, or will never come."""
        with self._lock:
            owed.ended = True
            if owed.overdue:
                self._owing[owed.store] -= 1

    def ranks(self) -> dict[int, int]:
        """Return which stores to ask last: 1 for slow ones, 2 for those with overdue calls."""
        with self._lock:
            now = self._clock_s()
            self._lately = {store: until for store, until in self._lately.items() if until > now}
            self._owing = +self._owing
            return dict.fromkeys(self._lately, 1) | dict.fromkeys(self._owing, 2)


class Patience:
    """How long calls usually take, by their size. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._sorted: defaultdict[int, list[float]] = defaultdict(list)

    def note(self, size: int, taken_s: float) -> None:
        """Note the duration of a call for ``size`` bytes."""
        with self._lock:
            recent, ordered = self._recent[_magnitude(size)], self._sorted[_magnitude(size)]
            if len(recent) == _SAMPLES:
                del ordered[bisect.bisect_left(ordered, recent[0])]
            recent.append(taken_s)
            bisect.insort(ordered, taken_s)

    @property
    def are_far(self) -> bool:
        """Whether even the fastest call took long, of the last calls of each size of which there were enough."""
        with self._lock:
            fastest = [ordered[0] for ordered in self._sorted.values() if len(ordered) >= _SAMPLES // 8]
        return bool(fastest) and min(fastest) >= _FAR_S

    def of(self, size: int) -> float:
        """Return the seconds after which a call for ``size`` bytes is overdue."""
        with self._lock:
            ordered = self._sorted[_magnitude(size)]
            if len(ordered) < _SAMPLES // 8:
                return _HEDGE_S_FIRST
            p95, median = ordered[len(ordered) * 95 // 100], ordered[len(ordered) // 2]
        return min(max(1.5 * p95, _HEDGE_S_MIN), max(_HEDGE_S_MAX, _TIMES_MEDIAN_MAX * median))


class Asked(NamedTuple):
    """What a read asked a store for.

    Attributes:
        size: how many bytes.
        taken_s: how many seconds it took, or has taken so far.
    """

    size: int
    taken_s: float


class RelativeTimes:
    """How many times as long as most each distant store takes for as many bytes, lately. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[int, float] = {}

    def of(self, store: int) -> float:
        """How many times as long it takes; 1 if nothing is known of it."""
        return self._times.get(store, 1.0)

    def note(self, asked: Mapping[int, Asked]) -> None:
        """Note what the stores of one read were asked for.

        Of one that was asked for much less than others, little can be seen but how distant it is: what is known of it
        is forgotten by and by, so that it is asked for more again.
        """
        if len(asked) < _COMPARED_MIN:
            return
        size = statistics.median(each.size for each in asked.values())
        if size <= 0:
            return  # objects without bytes
        each_s = {store: each.taken_s / each.size for store, each in asked.items() if 2 * each.size >= size}
        usual_s = statistics.median(each_s.values())
        if usual_s <= 0:
            return
        with self._lock:
            for store in self._times.keys() | each_s.keys():
                known = self._times.get(store, 1.0)
                if store in each_s:
                    known += _LEARNED * (min(each_s[store] / usual_s, _TIMES_MAX) - known)
                else:
                    known += _FORGOTTEN * (1.0 - known)
                self._times[store] = known


def _magnitude(size: int) -> int:
    """Return a class for sizes, each within a factor of four."""
    return size.bit_length() // 2
