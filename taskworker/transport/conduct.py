"""The conduct of workers: who lies, who is slow, who is full, and how much was rebuilt for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from storage.errors import InsufficientWorkers, StorageError, StoreFull
from storage.shards import VolumeUnavailable
from taskworker.errors import WorkerReadOnly
from taskworker.transport.fullness import Fullness
from taskworker.transport.repair_budget import RepairBudget
from taskworker.transport.slowness import Slowness
from taskworker.transport.trust import Trust

_LIES_TOLD_MAX = 1 << 32  # a larger number must be made up by a worker


class Standing(NamedTuple):
    """Workers that get no new shards at one moment, by the reason.

    ``undurable``: those of the full workers that could not make durable what they had taken.
    """

    slow: frozenset[int]
    distrusted: frozenset[int]
    full: frozenset[int]
    undurable: frozenset[int]


class Conduct:
    """What is known of each worker's conduct, by slot.

    Any thread may read the properties, which are replaced as a whole. Everything else is not thread-safe; the fleet's
    lock guards it.

    Args:
        clock_s: monotonic seconds.
        grace_s: how long the pool waits for a worker that is away.
    """

    def __init__(self, clock_s: Callable[[], float], grace_s: float) -> None:
        self._trust = Trust(clock_s)
        self._slowness = Slowness(clock_s)
        self._fullness = Fullness(clock_s)
        self._repairs = RepairBudget(clock_s, grace_s)
        self._undurable: frozenset[int] = frozenset()
        self._wrong: Counter[int] = Counter()  # wrong or rotten shards, sent or reported

    # -- conclusions -----------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """The workers that get no new shards now."""
        return Standing(self.slow, self.distrusted, self.full, self.undurable)

    @property
    def distrusted(self) -> frozenset[int]:
        """Workers whose answers about shards do not count."""
        return self._trust.distrusted

    @property
    def slow(self) -> frozenset[int]:
        """Workers that keep everybody waiting."""
        return self._slowness.slow

    @property
    def behind(self) -> frozenset[int]:
        """Those of the slow workers that have not caught up with a write, and may be sound."""
        return self._slowness.behind

    @property
    def avoided(self) -> frozenset[int]:
        """Workers that are distrusted or slow: others take new shards in their place."""
        return self._trust.distrusted | self._slowness.slow

    @property
    def full(self) -> frozenset[int]:
        """Workers that cannot write, for whatever reason."""
        return self._fullness.slots

    @property
    def read_only(self) -> frozenset[int]:
        """Those of the full workers whose disks take no writes."""
        return self._fullness.read_only

    @property
    def refusing(self) -> frozenset[int]:
        """Those of the full workers that could not write for another reason than lack of space."""
        return self._fullness.refusing

    @property
    def undurable(self) -> frozenset[int]:
        """Those of the full workers that could not make durable what they had taken."""
        return self._undurable

    def is_spotless(self, slot: int) -> bool:
        """Whether no lie of a worker was found lately, not even one that is tolerated."""
        return self._trust.is_spotless(slot)

    def proven_liars(self) -> list[int]:
        """Workers that lied so often that the pool should drain them."""
        return self._trust.proven_liars()

    def times_lied(self, slot: int) -> int:
        """How many lies of a worker were found since the pool started."""
        return self._trust.total(slot)

    def wrong_shards(self) -> dict[int, int]:
        """How many wrong or rotten shards each worker has had since the pool started; only workers with some."""
        return {slot: min(count, _LIES_TOLD_MAX) for slot, count in self._wrong.items() if count}

    def gone_but_for(self, slot: int) -> list[int]:
        """Other workers that went away lately, so that this one may have their shards; each as often as it went."""
        return self._repairs.gone_but_for(slot)

    def why_no_space(self, name: Callable[[int], str]) -> StorageError:
        """The error for a write that too few workers can take.

        Args:
            name: returns the name of the worker in a slot.
        """
        full, read_only, refusing = self.full, self.read_only, self.refusing
        out_of_space = sorted(map(name, full - read_only - refusing))
        parts = [f"none is left on {', '.join(out_of_space)}"] if out_of_space else []
        if read_only:
            parts.append(f"the disks of {', '.join(sorted(map(name, read_only)))} take no writes")
        if refusing:
            parts.append(f"{', '.join(sorted(map(name, refusing)))} cannot write for now, see their logs")
        if refusing == full:
            return InsufficientWorkers(f"too few workers can write: {parts[-1]}; try again")
        return StoreFull(
            f"the pool is full: too few workers have space; {'; '.join(parts)}; delete files and run "
            "`taskworker collect`, or add workers or larger disks"
        )

    # -- observations ----------------------------------------------------------------------------

    def note_rot(self, slot: int, count: int) -> None:
        """Note that a worker sent rotten shards, or found some on its disk."""
        self._wrong[slot] += count

    def note_lie(self, slot: int, *, shard: bool) -> bool:
        """Note a lie, about a ``shard`` or otherwise; return whether the worker has just lost trust."""
        self._wrong[slot] += shard
        return self._trust.note_lie(slot)

    def note_made(self, slot: int, size: int) -> int:
        """Note that bytes were rebuilt for a worker; return the sum of the current hour."""
        return self._repairs.spend(slot, size)

    def distrust(self, slot: int) -> bool:
        """Distrust a worker from now on; return whether it was trusted before."""
        return self._trust.distrust(slot)

    def note_gone(self, slot: int) -> None:
        """Note that a worker went away."""
        self._repairs.note_gone(slot)

    def note_unread(self, slot: int) -> bool:
        """Note that a worker could not read what it claims to hold; return whether it counts as slow from now on."""
        return self._slowness.note_unread(slot)

    def note_taken(self, took_s: Mapping[int, float], late: Collection[int] = ()) -> bool:
        """Note how long each worker took over one common request; return whether one is slow from now on.

        Args:
            took_s: the seconds, by slot.
            late: those for which nobody waited any longer.
        """
        return any([self._slowness.note(took_s), self._slowness.note_late(late, took_s)])

    def note_caught_up(self, slot: int) -> bool:
        """Note that a worker has answered all writes that did not wait; return whether it is left out no longer."""
        return self._slowness.note_caught_up(slot)

    def note_space(self, slot: int, free: int, used: int) -> bool:
        """Note a worker's report of its disk, in bytes; return whether it has room again."""
        return self._fullness.told(slot, free, used)

    def note_freed(self, slot: int) -> bool:
        """Note that space was freed on a worker; return whether it was full, and is tried again."""
        return self._fullness.freed(slot)

    def note_refused(self, slot: int, error: StorageError) -> bool:
        """Note that a worker could not write what it was given; return whether it counts as full only from now on."""
        read_only, refusing = isinstance(error, WorkerReadOnly), isinstance(error, VolumeUnavailable)
        return self._fullness.refused(slot, read_only=read_only, refusing=refusing)

    def note_undurable(self, slot: int) -> bool:
        """Note that a full worker could not make durable what it took before; return whether that is new."""
        new = slot not in self._undurable
        self._undurable |= {slot}
        return new

    def note_durable(self, slot: int) -> None:
        """Note that a worker has made durable all that it was given."""
        self._undurable -= {slot}

    def lapse(self) -> bool:
        """Trust workers again that have not lied for long enough, and try slow or full ones again.

        Returns:
            Whether there are any.
        """
        return any([self._trust.lapse(), self._slowness.lapse(), self._fullness.lapse()])

    def forget(self, slot: int) -> None:
        """Forget a worker; its lies stay counted."""
        self._fullness.forget(slot)
        self._undurable -= {slot}
