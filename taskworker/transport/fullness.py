"""Full workers: a worker that cannot write takes nothing new until it can again, and still serves what it holds."""

from __future__ import annotations

import math
from collections.abc import Callable

from storage.limits import MIB

_RETRY_S = 30.0  # it may have room without reporting it, or have refused by mistake
_RETRY_S_MAX = 600.0
_ROOM_MIN = 16 * MIB
_ROOM_SHARE = 50  # one part in this many of a disk: less room would be used up within moments


class Fullness:
    """Which workers are full. Not thread-safe: the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.

    Attributes:
        slots: slots of all workers that take nothing new.
        read_only: those of them whose disks take no writes.
        refusing: those of them that could not write for another reason than lack of space.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._free: dict[int, int] = {}  # bytes, by the last report
        self._until_s: dict[int, float] = {}
        self._period_s: dict[int, float] = {}
        self._believed_until_s: dict[int, float] = {}
        self._refused_at: dict[int, int] = {}  # bytes free when it refused, or less
        self.slots: frozenset[int] = frozenset()
        self.read_only: frozenset[int] = frozenset()
        self.refusing: frozenset[int] = frozenset()

    def refused(self, slot: int, *, read_only: bool = False, refusing: bool = False) -> bool:
        """Note that a worker could not write what it was given; return whether it counts as full only from now on."""
        period_s = self._period_s.get(slot, _RETRY_S)
        new = slot not in self.slots
        if new:
            self._period_s[slot] = min(2 * period_s, _RETRY_S_MAX)
            self._until_s[slot] = self._clock_s() + period_s
            self._refused_at[slot] = self._free.get(slot, 0)
            self.slots |= {slot}
        if read_only:
            self.read_only |= {slot}
        if refusing and new:
            self.refusing |= {slot}
        return new

    def told(self, slot: int, free: int, used: int) -> bool:
        """Note a worker's report of its disk, in bytes; return whether it has room again."""
        self._free[slot] = free
        if slot not in self.slots:
            return False
        least = self._refused_at[slot] = min(free, self._refused_at[slot])  # the earlier report may have been outdated
        if free < least + max(_ROOM_MIN, (free + used) // _ROOM_SHARE):
            return False
        return self.freed(slot)

    def freed(self, slot: int) -> bool:
        """Try a worker again that has room by its word; return whether it was full.

        It is not believed again within half a minute: a liar that refuses what it has asked for keeps others busy.
        """
        if slot not in self.slots or self._clock_s() < self._believed_until_s.get(slot, -math.inf):
            return False
        self._believed_until_s[slot] = self._clock_s() + _RETRY_S
        self._period_s.pop(slot, None)
        self.forget(slot)
        return True

    def lapse(self) -> bool:
        """Try workers again that were full for some time; return whether there are any."""
        over = [slot for slot in self.slots if self._clock_s() >= self._until_s[slot]]
        for slot in over:
            self.forget(slot)
        return bool(over)

    def forget(self, slot: int) -> None:
        """Note that a worker is not full, or no longer exists."""
        self.slots -= {slot}
        self.read_only -= {slot}
        self.refusing -= {slot}
