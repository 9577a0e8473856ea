"""Trust: whose word about shards is counted on.

A worker that was shown to say what is not so a few times is distrusted: others take its place for new shards, what it
holds is made again elsewhere, and none of its copies is a reason to drop another. It is trusted again after some
time without a lie, because a single disk or program fault may look like one; who goes on lying is drained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

_LIES_BEARABLE = 2  # a shard may be dropped for good reasons between two questions about it
_TRUSTED_AGAIN_S = 600.0
LIES_BEFORE_DRAIN = 8


class Trust:
    """Lies by slot, and who is distrusted for them. Not thread-safe: the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._recent: Counter[int] = Counter()  # since it was trusted last
        self._total: Counter[int] = Counter()
        self._latest_s: dict[int, float] = {}
        self._until_s: dict[int, float] = {}
        self.distrusted: frozenset[int] = frozenset()

    def note_lie(self, slot: int) -> bool:
        """One more; whether the worker has lost trust by it."""
        self._recent[slot] += 1
        self._latest_s[slot] = self._clock_s()
        self._total[slot] += 1
        if self._recent[slot] <= _LIES_BEARABLE and slot not in self.distrusted:
            return False
        return self.distrust(slot)

    def distrust(self, slot: int) -> bool:
        """Do not believe a worker from now on; whether it was believed before."""
        self._until_s[slot] = self._clock_s() + _TRUSTED_AGAIN_S
        lost = slot not in self.distrusted
        self.distrusted |= {slot}
        return lost

    def is_spotless(self, slot: int) -> bool:
        """Whether no lie of a worker has come to light since it was trusted last."""
        return not self._recent[slot] and slot not in self.distrusted

    def lapse(self) -> list[int]:
        """Those that are trusted again, as they have not lied for long enough."""
        back = [slot for slot, until_s in self._until_s.items() if self._clock_s() >= until_s]
        for slot in back:
            self.forget(slot)
        old = [slot for slot, at_s in self._latest_s.items() if self._clock_s() >= at_s + _TRUSTED_AGAIN_S]
        for slot in old:
            del self._latest_s[slot]
            if slot not in self.distrusted:
                self._recent.pop(slot, None)
        return back

    def forget(self, slot: int) -> None:
        """Trust a worker again; what it said in all stays counted."""
        self._until_s.pop(slot, None)
        self._recent.pop(slot, None)
        self.distrusted -= {slot}

    def total(self, slot: int) -> int:
        """How many lies of a worker came to light since the pool started."""
        return self._total[slot]

    def proven_liars(self) -> list[int]:
        """Those that are distrusted and have lied so often that they should be done without."""
        return [slot for slot in sorted(self.distrusted) if self._total[slot] >= LIES_BEFORE_DRAIN]
