"""How workers behave: who lies, who is slow, who has no space, and what was made again for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from storage.errors import InsufficientWorkers, StorageError, StoreFull
from storage.shards import VolumeUnavailable
from taskworker.errors import WorkerReadOnly
from taskworker.transport.fullness import Fullness
from taskworker.transport.repair_budget import RepairBudget
from taskworker.transport.slowness import Slowness
from taskworker.transport.trust import Trust

_LIES_TOLD_MAX = 1 << 32  # beyond that it is a number that a worker made up


class Conduct:
    """What is known of each worker's conduct, by slot.

    Properties may be read by anybody: they are replaced whole. All else is not thread-safe; the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.
        grace_s: how long a worker that is away is waited for.
    """

    def __init__(self, clock_s: Callable[[], float], grace_s: float) -> None:
        self._trust = Trust(clock_s)
        self._slowness = Slowness(clock_s)
        self._fullness = Fullness(clock_s)
        self._repairs = RepairBudget(clock_s, grace_s)
        self._undurable: frozenset[int] = frozenset()
        self._wrong: Counter[int] = Counter()  # wrong or rotten shards given out or told of

    # -- what it comes to ------------------------------------------------------------------------

    @property
    def distrusted(self) -> frozenset[int]:
        """Whose word does not count."""
        return self._trust.distrusted

    @property
    def slow(self) -> frozenset[int]:
        """Who keeps everybody waiting."""
        return self._slowness.slow

    @property
    def avoided(self) -> frozenset[int]:
        """Who is distrusted or slow: others take what is new in their place."""
        return self._trust.distrusted | self._slowness.slow

    @property
    def full(self) -> frozenset[int]:
        """Who cannot write, for whatever reason."""
        return self._fullness.slots

    @property
    def read_only(self) -> frozenset[int]:
        """Those of the full ones whose disks take no writes, whatever space they have."""
        return self._fullness.read_only

    @property
    def refusing(self) -> frozenset[int]:
        """Those of the full ones that could not write for want of something else than space."""
        return self._fullness.refusing

    @property
    def undurable(self) -> frozenset[int]:
        """Those of the full ones that could not make durable what they had taken."""
        return self._undurable

    def is_spotless(self, slot: int) -> bool:
        """Whether no lie of a worker has come to light lately, not even one that can be borne with."""
        return self._trust.is_spotless(slot)

    def proven_liars(self) -> list[int]:
        """Who lied so often that the pool should do without."""
        return self._trust.proven_liars()

    def times_lied(self, slot: int) -> int:
        """How often a worker was shown to say what is not so since the pool started."""
        return self._trust.total(slot)

    def wrong_shards(self) -> dict[int, int]:
        """How many wrong or rotten shards each worker gave out since the pool started, for those that did."""
        return {slot: min(count, _LIES_TOLD_MAX) for slot, count in self._wrong.items() if count}

    def gone_but_for(self, slot: int) -> list[int]:
        """Others whose shards this one may have been given of late, each as often as it went away."""
        return self._repairs.gone_but_for(slot)

    def why_no_space(self, name: Callable[[int], str]) -> StorageError:
        """The error of a write that too few workers can take.

        Args:
            name: what people call the worker in a slot.
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

    # -- what happens ----------------------------------------------------------------------------

    def note_rot(self, slot: int, count: int) -> None:
        """A worker gave out, or found on its disk, rotten shards."""
        self._wrong[slot] += count

    def note_lie(self, slot: int, *, shard: bool) -> bool:
        """A worker was shown to say what is not so, by a ``shard`` or otherwise; whether it has lost trust by it."""
        self._wrong[slot] += shard
        return self._trust.note_lie(slot)

    def note_made(self, slot: int, size: int) -> int:
        """So many bytes were made again for a worker; all of this hour."""
        return self._repairs.spend(slot, size)

    def distrust(self, slot: int) -> bool:
        """Do not believe a worker from now on; whether it was believed before."""
        return self._trust.distrust(slot)

    def note_gone(self, slot: int) -> None:
        """A worker went away."""
        self._repairs.note_gone(slot)

    def note_unread(self, slot: int) -> bool:
        """A worker could not read what it says it holds; whether it is as good as slow from now on."""
        return self._slowness.note_unread(slot)

    def note_taken(self, took_s: Mapping[int, float]) -> bool:
        """How long each worker took over what all were asked at once; whether one is slow from now on."""
        return self._slowness.note(took_s)

    def note_space(self, slot: int, free: int, used: int) -> bool:
        """What a worker says of its disk, in bytes; whether it has room again."""
        return self._fullness.told(slot, free, used)

    def note_refused(self, slot: int, error: StorageError) -> bool:
        """A worker could not write what it was given; whether it passes for full only from now on."""
        read_only, refusing = isinstance(error, WorkerReadOnly), isinstance(error, VolumeUnavailable)
        return self._fullness.refused(slot, read_only=read_only, refusing=refusing)

    def note_undurable(self, slot: int) -> bool:
        """A full worker could not make durable what it took before; whether that is new."""
        new = slot not in self._undurable
        self._undurable |= {slot}
        return new

    def note_durable(self, slot: int) -> None:
        """A worker has made durable all that it was given."""
        self._undurable -= {slot}

    def lapse(self) -> bool:
        """Trust those again that have not lied for long enough, and try those that were slow or full; are there any."""
        return any([self._trust.lapse(), self._slowness.lapse(), self._fullness.lapse()])

    def forget(self, slot: int) -> None:
        """There is no such worker any more. Its lies stay counted."""
        self._fullness.forget(slot)
        self._undurable -= {slot}
