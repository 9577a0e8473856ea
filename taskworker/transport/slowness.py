"""Slow workers: a worker that repeatedly keeps all others waiting gets nothing to write for a while.

So does one whose part of a write was not waited for, and one that cannot read what it claims to hold, for whatever
reason: an excuse proves neither a lie nor that the shard exists.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from statistics import median

_SLOW_S = 2.0
_TIMES_SLOWER = 5.0
_STRIKES = 3
_UNREAD_MAX = 8
_UNREAD_WITHIN_S = 3600.0  # failures that lie further apart than this are unrelated
_SHUNNED_S = 20.0  # shorter than the usual grace time, so that its shards are not rebuilt because of one bad moment
_LATE_S = 5.0  # a worker that was late once may be sound
_SHUNNED_S_MAX = 3600.0
_FORGIVEN_AFTER_TIMES = 10


class Slowness:
    """Which workers took much longer than the others several times in a row. Not thread-safe.

    A slow worker is tried again after 20 seconds, one that was late after 5; then after twice as long each time. If it
    then keeps up for ten times as long as it was last left out, it starts again.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._strikes: Counter[int] = Counter()
        self._unread: Counter[int] = Counter()
        self._unread_since_s: dict[int, float] = {}
        self._period_s: dict[int, float] = {}
        self._until_s: dict[int, float] = {}
        self.slow: frozenset[int] = frozenset()

    def note(self, took_s: Mapping[int, float]) -> bool:
        """Note how long each worker took over one common request; return whether one is slow from now on."""
        if len(took_s) < 2:
            return False
        if max(took_s.values()) <= _SLOW_S:  # the usual case, with every push
            for slot in took_s:
                self._strikes.pop(slot, None)
            return False
        limit_s = max(_SLOW_S, _TIMES_SLOWER * median(took_s.values()))
        before = self.slow
        for slot, seconds in took_s.items():
            self._strikes[slot] = self._strikes[slot] + 1 if seconds > limit_s else 0
            if self._strikes[slot] >= _STRIKES and slot not in self.slow:
                self._shun(slot)
        return self.slow != before

    def note_late(self, slots: Collection[int]) -> bool:
        """Note that a write did not wait for these workers; return whether one is slow from now on."""
        before = self.slow
        for slot in slots:
            if slot not in self.slow:
                self._shun(slot, _LATE_S)
        return self.slow != before

    def note_unread(self, slot: int) -> bool:
        """Note that a worker could not read a shard it claims to hold; return whether it counts as slow from now on."""
        if self._clock_s() - self._unread_since_s.get(slot, -math.inf) > _UNREAD_WITHIN_S:
            self._unread[slot] = 0
            self._unread_since_s[slot] = self._clock_s()
        self._unread[slot] += 1
        if self._unread[slot] < _UNREAD_MAX or slot in self.slow:
            return False
        self._unread[slot] = 0
        self._shun(slot)
        return True

    def _shun(self, slot: int, first_s: float = _SHUNNED_S) -> None:
        period_s = self._next_period_s(slot, first_s)
        self._period_s[slot] = period_s
        self._until_s[slot] = self._clock_s() + period_s
        self._strikes[slot] = _STRIKES - 1  # one more slow answer is enough when it is tried again
        self.slow |= {slot}

    def _next_period_s(self, slot: int, first_s: float) -> float:
        last_s = self._period_s.get(slot)
        if last_s is None or self._clock_s() - self._until_s[slot] >= _FORGIVEN_AFTER_TIMES * last_s:
            return first_s
        return min(2 * last_s, _SHUNNED_S_MAX)

    def lapse(self) -> bool:
        """Try workers again whose time is over; return whether there are any."""
        over = {slot for slot in self.slow if self._clock_s() >= self._until_s[slot]}
        self.slow -= over
        return bool(over)
