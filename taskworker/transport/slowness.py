"""Slow workers: a worker that repeatedly keeps all others waiting gets nothing to write for a while.

So does one that cannot read what it claims to hold, for whatever reason: an excuse proves neither a lie nor that the
shard exists. A worker whose part of a write was not waited for is behind: it gets nothing to write until it has caught
up, which takes it a moment if a packet was lost. It counts as slow only if it does not catch up, or if it is late with
many of its writes, as a sound worker behind a link that loses packets is late now and then.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from statistics import median

_SLOW_S = 2.0
_TIMES_SLOWER = 5.0
_STRIKES = 3
_UNREAD_MAX = 8
_UNREAD_WITHIN_S = 3600.0  # failures that lie further apart than this are unrelated
_SHUNNED_S = 20.0  # shorter than the usual grace time, so that its shards are not rebuilt because of one bad moment
_BEHIND_S = 5.0  # a worker that has not caught up by then is slow
_WRITES = 16  # the latest of each worker that count
_LATE_MAX = 4  # as many late ones among them make a worker slow
_LATE_KEPT = 2  # of those, so many still count when it is tried again
_SHUNNED_S_MAX = 3600.0
_FORGIVEN_AFTER_TIMES = 10


class Slowness:
    """Which workers took much longer than the others several times in a row. Not thread-safe.

    A slow worker is tried again after 20 seconds, then after twice as long each time. If it then keeps up for ten times
    as long as it was last left out, or with 16 writes in a row, it starts again.

    Args:
        clock_s: monotonic seconds.

    Attributes:
        slow: workers that get nothing to write for now, as they are slow or behind.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._strikes: Counter[int] = Counter()
        self._unread: Counter[int] = Counter()
        self._unread_since_s: dict[int, float] = {}
        self._period_s: dict[int, float] = {}
        self._until_s: dict[int, float] = {}
        self._behind_until_s: dict[int, float] = {}
        self._were_late: dict[int, deque[bool]] = {}  # of the latest writes; only if one was
        self.slow: frozenset[int] = frozenset()

    @property
    def behind(self) -> frozenset[int]:
        """Those of the slow workers that have not caught up with a write, and may be sound."""
        return frozenset(self._behind_until_s)

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

    def note_late(self, slots: Collection[int], kept_up: Collection[int]) -> bool:
        """Note which workers a write did not wait for, and which kept up; return whether more are left out now."""
        before = self.slow
        for slot in self._were_late.keys() & kept_up:
            self._note_on_time(slot)
        for slot in slots:
            writes = self._were_late.setdefault(slot, deque(maxlen=_WRITES))
            writes.append(True)
            if writes.count(True) >= _LATE_MAX:
                self._were_late[slot] = deque([True] * _LATE_KEPT, _WRITES)
                self._shun(slot)
            elif slot not in self.slow:
                self._behind_until_s[slot] = self._clock_s() + _BEHIND_S
                self.slow |= {slot}
        return not self.slow <= before

    def _note_on_time(self, slot: int) -> None:
        writes = self._were_late[slot]
        writes.append(False)
        if not any(writes):
            del self._were_late[slot]
            self._period_s.pop(slot, None)

    def note_caught_up(self, slot: int) -> bool:
        """Note that a worker has answered all writes that did not wait; return whether it is left out no longer."""
        if self._behind_until_s.pop(slot, None) is None:
            return False
        self.slow -= {slot}
        return True

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

    def _shun(self, slot: int) -> None:
        self._behind_until_s.pop(slot, None)
        period_s = self._next_period_s(slot)
        self._period_s[slot] = period_s
        self._until_s[slot] = self._clock_s() + period_s
        self._strikes[slot] = _STRIKES - 1  # one more slow answer is enough when it is tried again
        self.slow |= {slot}

    def _next_period_s(self, slot: int) -> float:
        last_s = self._period_s.get(slot)
        if last_s is None or self._clock_s() - self._until_s[slot] >= _FORGIVEN_AFTER_TIMES * last_s:
            return _SHUNNED_S
        return min(2 * last_s, _SHUNNED_S_MAX)

    def lapse(self) -> bool:
        """Try workers again whose time is over, and leave out those that have not caught up.

        Returns:
            Whether there are any.
        """
        now_s = self._clock_s()
        stuck = [slot for slot, until_s in self._behind_until_s.items() if now_s >= until_s]
        for slot in stuck:
            self._shun(slot)
        over = {slot for slot in self.slow - self.behind if now_s >= self._until_s[slot]}
        self.slow -= over
        return bool(over or stuck)
