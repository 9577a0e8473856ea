"""The workers' volumes behind the engine: where shards are written and read while workers come and go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from storage.clocks import wall_ms
from storage.erasure import ErasureProfile
from storage.errors import StorageError, StoreClosed
from storage.fleet.layout import Layout
from storage.fleet.members import by_worker
from storage.fleet.orders import Order
from storage.keys import ShardKey, StripeKey
from storage.shards import Shard, ShardStore, VolumeUnavailable
from taskworker.transport.absences import Absences, Expected
from taskworker.transport.appends import Appends
from taskworker.transport.judged_fleet import JudgedFleet
from taskworker.transport.makers import Makers
from taskworker.transport.places import Places
from taskworker.transport.port import WorkerVolume
from taskworker.transport.survival import Domain, Survival
from taskworker.transport.target_history import TargetHistory
from taskworker.transport.targets import Targets
from taskworker.transport.writability import require_enough

log = logging.getLogger(__name__)

_REPAIR_BYTES_MIN = 1 << 30


class WorkerFleet(JudgedFleet):
    """See :class:`storage.fleet.fleet.Fleet`. Slots are those of the layout's members.

    If a worker is away, its shards go to the next workers in the partition's order. So a push writes all n shards as
    long as enough workers are present to keep it readable after the loss of any one of them.

    Thread-safe. One lock guards all state, including that of the parts (conduct, absences, history). It is held only
    briefly: no volume is called, nothing is logged or reported, and no callback runs under it. Every change of where
    shards are written ends with :meth:`_changed`, under the same lock. Frequently read attributes, such as ``_places``
    and the sets of the conduct, are replaced as a whole and read without the lock; :meth:`epoch` tells whether answers
    may have changed.

    Args:
        allow_fragile: accept pushes even if the loss of a single worker would make them unreadable.
        grace_s: how long to wait for a worker that is away before its shards are rebuilt on the others.
        margin: objects with fewer than k + ``margin`` shards left are repaired without that wait.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    remote = True
    stand_ins = True

    def __init__(
        self,
        *,
        allow_fragile: bool = False,
        grace_s: float = 0.0,
        margin: int = 1,
        clock_s: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = wall_ms,
    ) -> None:
        super().__init__(grace_s, clock_s, now_ms)
        self._unproved: frozenset[int] = frozenset()
        self.margin = margin
        self._absences = Absences(grace_s, clock_s)
        self._expected: Expected | None = None
        self._allow_fragile = allow_fragile
        self._epoch = self._lasting_since = self._keeping_since = 0
        self._rot = 0  # number of rotten shards found so far
        self.on_rot: Callable[[], None] = lambda: None  # called when there may be something to mend
        self.repair_bytes_max: Callable[[int], int] = lambda slot: _REPAIR_BYTES_MIN
        self._history = TargetHistory()
        self._places = Places()
        self._appends = Appends(self, clock_s)
        self._makers = Makers(self, self._appends.note_given, clock_s)

    # -- members and their conduct ---------------------------------------------------------------

    def use_layouts(self, current: Layout, former: Iterable[Layout] = ()) -> None:
        """Place shards by ``current`` from now on; ``former`` layouts, newest first, tell where shards may still be."""
        with self._lock:
            before, self._layouts = self._layouts[:1], (current, *former)
            for member in current.members:
                self._stores.setdefault(member.slot, None)
                self._moves.setdefault(member.slot, 0)
            if before != (current,):
                self._changed()
            else:  # dropping a former layout does not change where shards are written
                self._places = self._current_places()

    def attach(self, slot: int, volume: WorkerVolume, owner: str = "") -> None:
        """Attach a member's volume."""
        with self._lock:
            self._owners[slot] = owner
            before, self._stores[slot] = self._stores.get(slot), volume
            self._reasons.pop(slot, None)
            self._moves[slot] = self._moves.get(slot, 0) + 1
            self._changed()
        if before is not None:
            before.abandon(f"worker {self.name(slot)} connected again")

    def note_emptied(self, slot: int) -> None:
        """Note that a member came back with an empty volume."""
        self.incomplete.add(slot)
        with self._lock:
            self._history.note_emptied(slot)

    def remove(self, slot: int) -> None:
        """Forget a member that is not in the layout any more."""
        with self._lock:
            volume = self._stores.pop(slot, None)
            self._owners.pop(slot, None)
            self._moves.pop(slot, None)
            self.incomplete.discard(slot)
            self._absences.forget(slot)
            self._conduct.forget(slot)
            self._history.forget(slot)
            self._changed()
        if volume is not None:
            volume.close()

    def report(self, kind: str, key: bytes, slot: int, text: str) -> None:
        """See :meth:`Fleet.report`. Wrong shards are counted by worker."""
        super().report(kind, key, slot, text)
        if kind == "rotten" and slot >= 0:
            self.note_rot(slot, 1)

    def note_rot(self, slot: int, count: int) -> None:
        """Note that a worker sent rotten shards, or found some on its disk, so that they are rebuilt."""
        with self._lock:
            self._conduct.note_rot(slot, count)
            if not self.trusts(slot):
                return  # its shards do not count
            self._rot += count
        self.on_rot()

    def note_lie(self, slot: int, key: bytes, text: str) -> None:
        """See :meth:`Fleet.note_lie`. A worker that lies repeatedly is distrusted."""
        super().note_lie(slot, key, text)
        with self._lock:
            believed = self.trusts(slot)
            lost = self._conduct.note_lie(slot, shard=bool(key))  # an empty key: the lie is not about a shard
            if not believed:
                return  # its answers did not count
            self._rot += 1
            if lost:
                self._changed()
        if lost:
            log.error("worker %s is distrusted: it %s", self.name(slot), text)
        self.on_rot()

    def failed(self, slot: int, store: ShardStore, error: StorageError) -> None:
        """See :meth:`Fleet.failed`. Others stand in for a worker that repeatedly cannot tell what it holds."""
        super().failed(slot, store, error)
        if isinstance(error, VolumeUnavailable):
            self.note_unread(slot)

    def note_unread(self, slot: int) -> None:
        """See :meth:`Fleet.note_unread`. Others stand in for a worker that repeatedly cannot read its shards."""
        self._note(lambda: self._conduct.note_unread(slot))

    def note_made(self, slot: int, size: int) -> None:
        """See :meth:`Fleet.note_made`. A worker is distrusted if it lacks more within an hour than it was given."""
        with self._lock:
            spent = self._conduct.note_made(slot, size)
        if spent > self.repair_bytes_max(slot) and self._note(lambda: self._conduct.distrust(slot)):
            text = f"lacked shards of {spent / 1e6:,.0f} MB within an hour, more than it was given"
            log.error("worker %s is distrusted: it %s", self.name(slot), text)
            super().note_lie(slot, b"", text)

    def forgive(self) -> None:
        """Trust workers again that have not lied for long enough, and try slow or full ones again."""
        self._appends.settle_late()
        self._note(self._conduct.lapse)

    def note_space(self, slot: int, free: int, used: int) -> None:
        """Note a worker's report of its disk, in bytes. If it has room again, it gets its shards from its stand-ins."""
        self._note(lambda: self._conduct.note_space(slot, free, used))

    def note_freed(self, slot: int) -> None:
        """See :meth:`Fleet.note_freed`."""
        self._note(lambda: self._conduct.note_freed(slot))

    def note_write_refused(self, slot: int, error: StorageError) -> None:
        """See :meth:`Fleet.note_write_refused`. Others take its new shards; pushes under way check what is missing."""
        with self._lock:
            new, mended = self._conduct.note_refused(slot, error), self.is_mended()
            self._history.note_refused(slot)
            self._changed()
        if new:
            log.warning("worker %s takes no writes, others take new shards: %s", self.name(slot), error)
        if new or mended:
            self.on_rot()

    def note_refusal(self) -> None:
        """Note that a worker refused appends, maybe of another push: every push under way checks what is missing."""
        with self._lock:
            self._epoch += 1
            self._lasting_since = self._keeping_since = self._epoch
        self.on_rot()

    def note_undurable(self, slot: int) -> None:
        """Note that a full worker cannot make durable what it took before.

        Those shards may be lost; its others can still be read.
        """
        with self._lock:
            new = self._conduct.note_undurable(slot)
            self._changed()
        if new:
            log.warning("worker %s may lose its latest shards: its disk does not make them durable", self.name(slot))

    def note_durable(self, slot: int) -> None:
        """Note that a worker has made durable all that it was given."""
        if slot in self._conduct.undurable:
            with self._lock:
                self._conduct.note_durable(slot)
                self._changed()

    def note_taken(self, took_s: dict[int, float], late: Collection[int] = ()) -> None:
        """Note how long each worker took to make durable what it was given. Others stand in for slow and late ones."""
        if self._note(lambda: self._conduct.note_taken(took_s, late), keeping=True):
            level = logging.WARNING if self._conduct.slow - self._conduct.behind else logging.INFO
            names = ", ".join(sorted(map(self.name, self._conduct.slow)))
            log.log(level, "others stand in for slow workers: %s", names)

    def note_caught_up(self, slot: int) -> None:
        """Note that a worker has answered all writes that did not wait for it."""
        self._note(lambda: self._conduct.note_caught_up(slot))

    def can_spare(self, slots: Collection[int], profiles: Collection[tuple[int, int]]) -> bool:
        """Whether the other workers are enough to take all shards of stripes with these k and n."""
        latest = self._history.latest
        return latest is not None and latest.can_spare(slots, profiles)

    def await_targets(self) -> None:
        """See :meth:`taskworker.transport.appends.Workers.await_targets`."""
        with self._lock:  # who holds it may have noted that a worker went, but not yet that others stand in for it
            pass

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """See :meth:`Fleet.set_offline`. If the worker misbehaved, that counts as a lie."""
        volume = self._stores.get(slot)
        super().set_offline(slot, reason, failed)
        if volume is not None:
            with self._lock:
                self._conduct.note_gone(slot)
        if volume is not None and volume.misbehaved and self._stores.get(slot) is not volume:
            self.note_lie(slot, b"", f"misbehaves: {volume.misbehaved}")

    def use_unproved(self, slots: Iterable[int]) -> None:
        """Set the members that are on trial.

        At most n - k shards of a stripe are written to them, so that the stripe can be read without them.
        """
        unproved = frozenset(slots)
        with self._lock:
            if unproved != self._unproved:
                self._unproved = unproved
                self._changed()

    def _note(self, note: Callable[[], bool], *, keeping: bool = False) -> bool:
        """Call ``note``; if it returns true, update where shards are written. Return its result.

        Args:
            note: notes something about the conduct of workers.
            keeping: whether workers of which that is noted keep what they have made durable.
        """
        with self._lock:
            before = self._conduct.standing
            differs = note()
            if differs:
                now = self._conduct.standing
                only_slow = now[1:] == before[1:]
                self._changed(lasting=only_slow and now.slow <= before.slow, keeping=only_slow and keeping)
        if differs:
            self.on_rot()
        return differs

    def _changed(self, *, lasting: bool = False, keeping: bool = False) -> None:
        """See :meth:`Fleet._changed`. Readers that run concurrently do not keep outdated answers.

        Args:
            lasting: whether all that was written before still counts where it was written.
            keeping: whether what was durable does.
        """
        self._epoch += 1
        for slot, store in self._stores.items():
            self._absences.note(slot, away=store is None or slot in self._conduct.slow)
        if self._layouts:
            self._history.note(self._current_targets(), self._epoch)
        self._places, self._expected = self._current_places(), None
        self._epoch += 1  # a reader that began in between may have seen a mixture
        if not lasting:
            self._lasting_since = self._epoch
        if not lasting and not keeping:
            self._keeping_since = self._epoch

    def _current_targets(self) -> Targets:
        there = frozenset(slot for slot, store in self._stores.items() if store is not None)
        full, keeping = self._conduct.full, self._conduct.full - self._conduct.distrusted
        return Targets(self._layouts[0], there, full, keeping, self._conduct.avoided, self._unproved)

    def _current_places(self) -> Places:
        return Places(self._layouts, self._history.latest, self._conduct.undurable, dict(self.online()))

    def epoch(self) -> tuple[int, ...]:
        """See :meth:`Fleet.epoch`."""
        return (self._epoch,)

    def lasts(self, since: tuple[int, ...]) -> bool:
        """See :meth:`Fleet.lasts`. It does while the only change is that workers are slow no longer."""
        return since[0] >= self._lasting_since

    def keeps(self, since: tuple[int, ...]) -> bool:
        """See :meth:`Fleet.keeps`."""
        return since[0] >= self._keeping_since

    def note_committed(self, since: tuple[int, ...]) -> None:
        """See :meth:`Fleet.note_committed`. Repair then looks for it, even if it has just examined all the others."""
        if since == self.epoch():
            return
        with self._lock:
            self._history.note_used_since(since[0])
            self._rot += 1
        self.on_rot()

    def reattach(self) -> list[int]:
        """See :meth:`Fleet.reattach`. Nothing to do: workers come back by themselves, and send heartbeats."""
        return []

    def check_present(self, *, at_once: bool = False) -> None:
        """See :meth:`Fleet.check_present`. Nothing to do: heartbeats and calls show whether workers are present."""

    def awaited(self, stripe: StripeKey, there: int) -> frozenset[int]:
        """See :meth:`Fleet.awaited`. A stripe in danger does not wait, if a repair can help."""
        if self.is_in_danger(stripe, there):
            return frozenset()
        expected = self._who_is_expected()
        return expected.shards_of(stripe) if expected.slots else frozenset()

    def awaited_workers(self) -> dict[str, float]:
        """The workers that are away and waited for, by name, each with the seconds left."""
        with self._lock:
            awaited = self._absences.awaited(self._stores)
        return {self.name(slot): left_s for slot, left_s in awaited.items()}

    def _who_is_expected(self) -> Expected:
        expected = self._expected
        if expected is None or self._clock_s() >= expected.until_s:
            with self._lock:
                layouts, targets = self._layouts, self._history.all()
                expected = self._expected = self._absences.expected(self._stores, layouts, targets)
        return expected

    # -- places ----------------------------------------------------------------------------------

    @property
    def placement(self) -> Layout:
        """The current layout."""
        return self._places.layout

    def away(self) -> list[int]:
        """See :meth:`Fleet.away`. Workers that are out of the layout or distrusted are not waited for."""
        members = self._layouts[0].members if self._layouts else ()
        slots = (member.slot for member in members)
        return [slot for slot in slots if self._stores.get(slot) is None and self.trusts(slot)]

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        """See :meth:`Fleet.targets`. The same for all stripes of a partition with the same k and n."""
        return self._places.targets(stripe)

    def places(self, stripe: StripeKey) -> tuple[int, ...]:
        """See :meth:`Fleet.places`. Shards on full workers are in their places.

        A running write does not count on workers that might lose shards: it may have given them some a moment ago.
        """
        places, targets = self._places, self.targets(stripe)
        if not places.differ:
            return targets
        return places.kept(stripe, targets, strict=bool(self._conduct.undurable) and self.is_pinned(stripe))

    def places_differ(self) -> bool:
        """See :meth:`Fleet.places_differ`."""
        return self._places.differ

    def elsewhere(self, stripe: StripeKey) -> tuple[int, ...]:
        """See :meth:`Fleet.elsewhere`, and :meth:`taskworker.transport.places.Places.elsewhere`."""
        return self._places.elsewhere(stripe)

    def losses_survivable(self, profile: ErasureProfile) -> int:
        """See :meth:`Fleet.losses_survivable`; counts workers."""
        return max(0, self.domain_losses_survivable(profile, by_worker))

    def domain_losses_survivable(self, profile: ErasureProfile, domain: Domain) -> int:
        """See :meth:`taskworker.transport.survival.Survival.losses`."""
        return self._survival().losses(profile, domain) if self._layouts else -1

    def losses_survivable_when_mended(self, profile: ErasureProfile) -> int:
        """See :meth:`taskworker.transport.survival.Survival.losses_when_mended`."""
        return self._survival().losses_when_mended(profile) if self._layouts else -1

    def _survival(self) -> Survival:
        members, full, short = self.slots, self._conduct.full, self._history.stood_in_for
        return Survival(
            layout=self.placement,
            history=self._history,
            members=frozenset(members),
            gone=frozenset(slot for slot in members if self._stores.get(slot) is None or not self.trusts(slot)),
            lacking=[slot for slot in members if self.state(slot) != "ok" or slot in short or not self.trusts(slot)],
            full=full,
            is_mended=self.is_mended(),
        )

    def mark(self) -> tuple[int, ...]:
        """A value that changes when shards may be missing: a worker came or went, or rot was found."""
        return (*self.epoch(), self._rot)

    def is_mended(self) -> bool:
        """Whether the mark is still that of the last complete mend."""
        return self._history.mended_at == self.mark()

    def note_unknown(self) -> None:
        """Note that there may be objects unknown at the last complete mend, so that all must be examined."""
        self._history.mended_at = None

    def note_mended(self, mark: tuple[int, ...]) -> bool:
        """Note that every shard was in its place at this :meth:`mark`; return whether the mark is still the same."""
        with self._lock:
            if self.mark() != mark:
                return False
            self._history.note_mended(mark, self._conduct.full)
        return True

    # -- writing ---------------------------------------------------------------------------------

    def append(self, batches: dict[int, list[Shard]], *, urgent: bool = False) -> Collection[int]:
        """See :meth:`Fleet.append`, and :meth:`taskworker.transport.appends.Appends.append`."""
        return self._appends.append(batches, urgent=urgent)

    def append_and_sync(self, batches: dict[int, list[Shard]]) -> Mapping[int, Sequence[Shard]]:
        """See :meth:`Fleet.append_and_sync`, and :meth:`taskworker.transport.appends.Appends.append_and_sync`."""
        return self._appends.append_and_sync(batches)

    def makers(self) -> Collection[int]:
        """See :meth:`Fleet.makers`. A worker on trial, or one that lied lately, is sent its shards."""
        return [slot for slot in self._makers.able() if slot not in self._unproved and self.is_spotless(slot)]

    def make(self, orders: Mapping[int, Sequence[Order]]) -> Mapping[ShardKey, bytes]:
        """See :meth:`Fleet.make`, and :meth:`taskworker.transport.makers.Makers.make`."""
        return self._makers.make(orders)

    def alike(self, keys: Sequence[ShardKey], one: int, other: int) -> Collection[ShardKey]:
        """See :meth:`Fleet.alike`, and :meth:`taskworker.transport.makers.Makers.alike`."""
        return self._makers.alike(keys, one, other)

    def sync(self) -> None:
        """See :meth:`Fleet.sync`."""
        self._appends.append_and_sync({}, everywhere=True)

    sync_each = sync

    def sync_most(self) -> None:
        """See :meth:`Fleet.sync_most`."""
        self._appends.append_and_sync({})

    def require_writable(self, profile: ErasureProfile, since: tuple[int, ...] | None = None) -> None:
        """See :meth:`Fleet.require_writable`. ``make_whole`` compensates for later losses."""
        if self._closed:
            raise StoreClosed("the pool is shutting down; try again when it is back")
        members, full = self.placement.members, self._conduct.full
        there = [member for member in members if self._stores.get(member.slot) is not None]
        require_enough(profile, members, there, full, allow_fragile=self._allow_fragile, why_no_space=self.why_no_space)

    def close(self) -> None:
        """See :meth:`Fleet.close`."""
        self._closed = True
        self._close_stores()
