"""Members that are away, and how long the pool waits for them before it rebuilds their shards on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from storage.fleet.layout import Layout
from storage.fleet.placement import partition_of
from storage.keys import StripeKey, data_shards, shard_count
from taskworker.transport.targets import Targets


@dataclass(slots=True)
class _Record:
    """A member: since when it is away (or present), and how much of its grace time earlier absences used up."""

    away: bool
    since_s: float
    spent_s: float


class Expected:
    """The members that are waited for, and which shards they may have.

    Args:
        slots: those members.
        layouts: the layouts by which shards were placed.
        targets: the targets by which shards were written meanwhile.
        until_s: when the next of these members is no longer waited for, unless members come or go before.
    """

    def __init__(
        self, slots: frozenset[int], layouts: Sequence[Layout], targets: Sequence[Targets], until_s: float
    ) -> None:
        self.slots = slots
        self.until_s = until_s
        self._layouts = layouts
        self._targets = targets
        self._known: dict[tuple[int, int, int], frozenset[int]] = {}

    def shards_of(self, stripe: StripeKey) -> frozenset[int]:
        """The shards of a stripe that these members may have."""
        partition, k, n = partition_of(stripe), data_shards(stripe), shard_count(stripe)
        found = self._known.get((partition, k, n))
        if found is None:
            rows = [layout.row(partition, n) for layout in self._layouts]
            rows += [targets.row(partition, k, n) for targets in self._targets]
            held = (index for row in rows for index, slot in enumerate(row) if slot in self.slots)
            found = self._known[partition, k, n] = frozenset(held)
        return found


class Absences:
    """Who is waited for. Not thread-safe; the fleet's lock guards it.

    Each member may be away for the grace time. A short absence uses up some of it, and time spent with the pool
    restores as much, so that the pool does not wait for ever for a member that comes and goes all the time.

    Args:
        grace_s: how long a member may be away.
        clock_s: monotonic seconds.
    """

    def __init__(self, grace_s: float, clock_s: Callable[[], float]) -> None:
        self._grace_s = grace_s
        self._clock_s = clock_s
        self._records: dict[int, _Record] = {}

    def note(self, slot: int, *, away: bool) -> None:
        """Note whether a member is away; noting the same again changes nothing."""
        now_s = self._clock_s()
        record = self._records.get(slot)
        if record is None:
            self._records[slot] = _Record(away, now_s, 0.0)
        elif record.away != away:
            passed_s = now_s - record.since_s
            spent_s = record.spent_s + (passed_s if record.away else -passed_s)
            self._records[slot] = _Record(away, now_s, max(0.0, spent_s))

    def forget(self, slot: int) -> None:
        """Forget a member."""
        self._records.pop(slot, None)

    def left_s(self, slot: int) -> float:
        """Seconds for which a member is still waited for; 0 if it is present, or has been away for too long."""
        record = self._records.get(slot)
        if record is None or not record.away:
            return 0.0
        return max(0.0, self._grace_s - record.spent_s - (self._clock_s() - record.since_s))

    def awaited(self, slots: Iterable[int]) -> dict[int, float]:
        """Those of the given members that are waited for, each with the seconds left."""
        return {slot: left_s for slot in slots if (left_s := self.left_s(slot)) > 0}

    def expected(self, slots: Iterable[int], layouts: Sequence[Layout], targets: Sequence[Targets]) -> Expected:
        """Those of the given members that are waited for, and the shards that they may have.

        Args:
            slots: slots of all members.
            layouts: the layouts by which shards were placed.
            targets: the targets by which shards may have been written since everything was last in its place.
        """
        awaited = self.awaited(slots)
        until_s = self._clock_s() + min(awaited.values(), default=math.inf)
        return Expected(frozenset(awaited), layouts, targets, until_s)
