"""Slow workers: who keeps all others waiting, push after push, is given nothing to write for a while.

So is who cannot read what it says it holds, for whatever reason: an excuse is no proof of a lie, nor of a shard.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from statistics import median

_SLOW_S = 2.0
_TIMES_SLOWER = 5.0
_STRIKES = 3
_UNREAD_MAX = 8
_UNREAD_WITHIN_S = 3600.0  # bad moments that lie further apart than this have nothing to do with one another
_SHUNNED_S = 20.0  # shorter than the usual grace: what it holds is not made again for one bad moment
_SHUNNED_S_MAX = 3600.0
_FORGIVEN_AFTER_TIMES = 10


class Slowness:
    """Which workers took much longer than the others several times in a row. Not thread-safe.

    A slow one is tried again after twenty seconds, then after forty, eighty and so on. One that then keeps up
    for ten times as long as it was left out last time begins with twenty seconds again.

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
        """How long each worker took over what all were asked at once; whether one is slow from now on."""
        if len(took_s) < 2:
            return False
        if max(took_s.values()) <= _SLOW_S:  # nearly always, and with every push
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

    def note_unread(self, slot: int) -> bool:
        """A worker could not read a shard that it says it holds; whether it is as good as slow from now on."""
        if self._clock_s() - self._unread_since_s.get(slot, -math.inf) > _UNREAD_WITHIN_S:
            self._unread[slot] = 0
            self._unread_since_s[slot] = self._clock_s()
        self._unread[slot] += 1
        if self._unread[slot] < _UNREAD_MAX or slot in self.slow:
            return False
        self._unread[slot] = 0
        self._shun(slot)
        return True

    def _shun(self, slot: int) -> None:
        period_s = self._next_period_s(slot)
        self._period_s[slot] = period_s
        self._until_s[slot] = self._clock_s() + period_s
        self._strikes[slot] = _STRIKES - 1  # once more is enough when it is tried again
        self.slow |= {slot}

    def _next_period_s(self, slot: int) -> float:
        last_s = self._period_s.get(slot)
        if last_s is None or self._clock_s() - self._until_s[slot] >= _FORGIVEN_AFTER_TIMES * last_s:
            return _SHUNNED_S
        return min(2 * last_s, _SHUNNED_S_MAX)

    def lapse(self) -> bool:
        """Try those again whose time is over; whether there are any."""
        over = {slot for slot in self.slow if self._clock_s() >= self._until_s[slot]}
        self.slow -= over
        return bool(over)
