"""Trust: which workers' answers about shards count.

A worker that was caught lying a few times is distrusted: others take new shards in its place, its shards are rebuilt
elsewhere, and none of its copies justifies dropping another. After some time without a lie, it is trusted again, since
a single fault of a disk or program may look like a lie. A worker that goes on lying is drained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

_LIES_BEARABLE = 2  # a shard may be dropped legitimately between two questions about it
_TRUSTED_AGAIN_S = 600.0
LIES_BEFORE_DRAIN = 8


class Trust:
    """Lies by slot, and the workers that are distrusted for them. Not thread-safe: the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._recent: Counter[int] = Counter()  # since trust was last restored
        self._total: Counter[int] = Counter()
        self._latest_s: dict[int, float] = {}
        self._until_s: dict[int, float] = {}
        self.distrusted: frozenset[int] = frozenset()

    def note_lie(self, slot: int) -> bool:
        """Count a lie; return whether the worker has just lost trust."""
        self._recent[slot] += 1
        self._latest_s[slot] = self._clock_s()
        self._total[slot] += 1
        if self._recent[slot] <= _LIES_BEARABLE and slot not in self.distrusted:
            return False
        return self.distrust(slot)

    def distrust(self, slot: int) -> bool:
        """Distrust a worker from now on; return whether it was trusted before."""
        self._until_s[slot] = self._clock_s() + _TRUSTED_AGAIN_S
        lost = slot not in self.distrusted
        self.distrusted |= {slot}
        return lost

    def is_spotless(self, slot: int) -> bool:
        """Whether a worker is trusted, and has no recent lie counted."""
        return not self._recent[slot] and slot not in self.distrusted

    def lapse(self) -> list[int]:
        """Trust workers again that have not lied for long enough; return those that were distrusted."""
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
        """Trust a worker again; its total of lies stays counted."""
        self._until_s.pop(slot, None)
        self._recent.pop(slot, None)
        self.distrusted -= {slot}

    def total(self, slot: int) -> int:
        """How many lies of a worker were found since the pool started."""
        return self._total[slot]

    def proven_liars(self) -> list[int]:
        """Distrusted workers that have lied so often that the pool should drain them."""
        return [slot for slot in sorted(self.distrusted) if self._total[slot] >= LIES_BEFORE_DRAIN]
