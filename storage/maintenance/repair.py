"""Repair: rebuilds missing and quarantined shards from the remaining ones, and moves misplaced ones.

One pass over all live objects does both; objects that lack shards come first, the least safe of them before the rest.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from storage.batching import batched
from storage.catalog import Catalog
from storage.catalog.ended import Ended
from storage.errors import DataLossError, ShardsUnavailable, StorageError
from storage.fleet.fleet import Fleet
from storage.fleet.placement import PARTITIONS, losses_survivable
from storage.formats.manifest import object_id
from storage.keys import (
    Kind,
    StripeKey,
    data_shards,
    kind_of,
    object_id_of,
    slot_of,
    stripe_of,
)
from storage.limits import MIB
from storage.maintenance.context import MaintenanceContext
from storage.maintenance.live import LiveObject, LiveRun, is_live, live_runs
from storage.maintenance.readback import Looked, Moved, ReadBack, by_store
from storage.maintenance.set_aside import SetAside
from storage.progress import Progress
from storage.reports import DAMAGE_LISTED_MAX, Damage, RepairReport, RepairState
from storage.stripes.delegation import Written
from storage.stripes.recovery import Unread, WrittenWrong
from storage.stripes.shard_map import ShardMap

_SYNC_EVERY_BYTES = 64 * MIB
_READ_BACK_BYTES = 8 * MIB
_READ_BACK_SHARDS = 2048
_SYNC_EVERY_SHARDS = 32_768  # about 10 MB of bookkeeping
_IN_FLIGHT_MAX = 6
_THREADS_REMOTE = 4  # mostly waiting for workers
_EXAMINED_TOGETHER = 16_384  # so that stripes with the same holders are grouped; some megabytes of keys
_SORTED_AT_ONCE = 65_536  # damaged objects sorted in memory, about 30 MB

Watch = Callable[[RepairState], None]
"""Called periodically with the progress of a repair."""


def repair(
    context: MaintenanceContext,
    progress: Progress | None = None,
    pace: Callable[[float], None] | None = None,
    watch: Watch | None = None,
) -> RepairReport:
    """Reopen offline volumes, then restore all shards of every live object.

    A repair may be interrupted and repeated at any time; rebuilt shards stay.

    Args:
        context: the store.
        progress: called with (objects examined, objects expected).
        pace: called with the seconds that each object took; may sleep, to leave resources for others.
        watch: called with more details than ``progress``.

    Raises:
        FormatError: a volume directory holds another store's volume.
        StoreFull: others stand in for full stores, and too few have space. If none stand in, the other stores get their
            shards, and the report names the full ones.
    """
    volumes = context.stripes.volumes
    volumes.reattach()
    epoch, online = volumes.epoch(), [slot for slot, _ in volumes.online()]
    expected = context.catalog.counters().versions + context.catalog.claims()
    now_ms = context.runtime.wall_ms
    tally = _Tally(expected, progress, watch, SetAside(volumes.report, now_ms), now_ms)
    threads = _THREADS_REMOTE if volumes.remote else max(2, os.cpu_count() or 1)
    with context.runtime.executor(threads, "repair") as pool, context.walks.walking() as begun:
        waiting: deque[_UnderWay] = deque()
        new = _New(context, pool, epoch)
        for group in batched(_damaged(context, tally, Ended(context.catalog, begun)), context.stripes.mended_together):
            waiting.append((group, pool.submit(_make_at_pace, context, group, pace)))
            while len(waiting) >= _IN_FLIGHT_MAX:
                _settle(tally, new, *waiting.popleft())
        while waiting:
            _settle(tally, new, *waiting.popleft())
        new.settle(volumes.sync)
    tally.finish()
    if not tally.lost_count and not tally.unavailable and not tally.unwritable:
        volumes.note_whole(online, epoch)
    return tally.report([*_unwritable(volumes), *([str(volumes.why_no_space())] if tally.unwritable else [])])


def _unwritable(volumes: Fleet[Any]) -> list[str]:
    """Why available stores that lack shards do not take them."""
    waiting = (slot for slot, _ in volumes.online() if slot in volumes.incomplete)
    return [volumes.reason(slot) for slot in waiting if volumes.takes_no_writes(slot)]


_Made = tuple[int, int] | Unread | None
"""(shards, bytes) rebuilt of an object, or why none could be; None: its file was deleted, or it never was right."""


class _Damaged(NamedTuple):
    """An object whose shards are not all where they belong.

    ``spare``: how many more stores, whichever, may be lost before it becomes unreadable. ``deferred``: some of its
    shards are not rebuilt yet, because their stores may come back. ``unanswered``: why a store does not answer now.
    ``unwritable``: there is no space for some of its shards.
    """

    live: LiveObject
    where: ShardMap
    epoch: tuple[int, ...]
    missing: bool
    spare: int
    endangered: bool
    deferred: bool
    unanswered: str
    unwritable: bool

    @property
    def due(self) -> bool:
        """Whether any of its shards should be rebuilt now."""
        return bool(self.where.absent)

    @property
    def urgency(self) -> tuple[bool, int]:
        """A sort key; the most urgent come first."""
        return not self.missing, self.spare


class _Endangered:
    """Files with waiting objects that are less safe than after repair. Memory grows with the waiting objects only."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, tuple[int, int]] = {}  # by file: number of objects, and the lowest ``spare``
        self.counts: Counter[int] = Counter()

    def add(self, damaged: _Damaged) -> None:
        """Add a damaged object."""
        file_id = damaged.live.file_id
        if not damaged.endangered or not file_id:
            return
        objects, spare = self._waiting.get(file_id, (0, damaged.spare))
        if objects:
            self.counts[spare] -= 1
        spare = min(spare, damaged.spare)
        self._waiting[file_id] = (objects + 1, spare)
        self.counts[spare] += 1

    def remove(self, damaged: _Damaged) -> None:
        """Remove an object that no longer waits."""
        file_id = damaged.live.file_id
        if not damaged.endangered or not file_id:
            return
        objects, spare = self._waiting.pop(file_id)
        if objects > 1:
            self._waiting[file_id] = (objects - 1, spare)
        else:
            self.counts[spare] -= 1


@dataclass(slots=True)
class _Tally:
    expected: int
    progress: Progress | None
    watch: Watch | None
    set_aside: SetAside
    now_ms: Callable[[], int]
    examined: int = 0
    missing: int = 0  # found, and not handled yet
    misplaced: int = 0  # found, and not handled yet
    repaired: int = 0
    moved: int = 0
    shards: int = 0
    bytes: int = 0
    shards_moved: int = 0
    bytes_moved: int = 0
    deferred: int = 0
    endangered: _Endangered = field(default_factory=_Endangered)
    lost: list[Damage] = field(default_factory=list)
    lost_count: int = 0
    unavailable: int = 0  # cannot be read or looked up now, and wait
    unavailable_why: str = ""  # why, for the first of them
    unwritable: int = 0  # wait for space

    def find(self, damaged: _Damaged) -> None:
        """Count an object to handle now, or once it is clear that a store does not come back."""
        if damaged.unanswered:
            self._note_unavailable(damaged.unanswered)
        self.unwritable += damaged.unwritable
        if not damaged.due:
            self.deferred += not damaged.unanswered and not damaged.unwritable
            self.endangered.add(damaged)
            return
        self.missing += damaged.missing
        self.misplaced += not damaged.missing
        self.endangered.add(damaged)

    def settle(self, damaged: _Damaged, made: _Made) -> None:
        """Count an object that was handled."""
        self.missing -= damaged.missing
        self.misplaced -= not damaged.missing
        if isinstance(made, ShardsUnavailable):
            self._note_unavailable(str(made))
            return
        if isinstance(made, DataLossError):
            self._note_lost(damaged.live, made)
            return
        self.endangered.remove(damaged)
        if made is None:
            return
        shards, size = made
        self.repaired += damaged.missing
        self.shards += shards
        self.bytes += size
        if not damaged.missing:
            self.moved += 1
            self.shards_moved += shards
            self.bytes_moved += size

    def _note_unavailable(self, why: str) -> None:
        self.unavailable += 1
        self.unavailable_why = self.unavailable_why or why

    def _note_lost(self, live: LiveObject, error: DataLossError) -> None:
        self.lost_count += 1
        if len(self.lost) < DAMAGE_LISTED_MAX:
            named = DataLossError(
                error.chunk, error.found, error.needed, filename=live.filename, file_id=live.file_id.hex()
            )
            self.lost.append(Damage(self.now_ms(), "lost", error.chunk, -1, -1, str(named)))

    def finish(self) -> None:
        """Note that all objects were examined."""
        self.expected = self.examined
        self.tell()

    def tell(self) -> None:
        """Report the progress."""
        expected = max(self.expected, self.examined)
        if self.progress is not None:
            self.progress(self.examined - self.missing - self.misplaced, expected)
        if self.watch is not None:
            endangered = {spare: files for spare, files in self.endangered.counts.items() if files}
            self.watch(
                RepairState(
                    self.examined,
                    expected,
                    self.missing,
                    self.repaired,
                    self.misplaced,
                    self.moved,
                    self.lost_count,
                    endangered,
                    self.deferred,
                )
            )

    def report(self, unwritable: list[str]) -> RepairReport:
        """The outcome; ``unwritable`` says why available stores do not take shards, or that too few have space."""
        lost = [*self.lost, *self.set_aside.damage][:DAMAGE_LISTED_MAX]
        count = self.lost_count + self.set_aside.count
        return RepairReport(
            self.examined,
            self.shards,
            self.bytes,
            lost,
            count,
            self.shards_moved,
            self.bytes_moved,
            self.deferred,
            self.unavailable,
            self.unavailable_why,
            unwritable,
        )


class _Batch:
    """Objects that are examined together."""

    def __init__(self) -> None:
        self.stripes: list[StripeKey] = []
        self._runs: list[LiveRun] = []
        self._starts: list[int] = []

    def add(self, run: LiveRun) -> None:
        """Add the objects of a run."""
        self._starts.append(len(self.stripes))
        self._runs.append(run)
        self.stripes += run.stripes

    def object(self, index: int) -> LiveObject:
        """The object whose stripe is at ``index``."""
        at = bisect_right(self._starts, index) - 1
        return self._runs[at].object(index - self._starts[at])


def _batches(runs: Iterable[LiveRun]) -> Iterator[_Batch]:
    batch = _Batch()
    for run in runs:
        batch.add(run)
        if len(batch.stripes) >= _EXAMINED_TOGETHER:
            yield batch
            batch = _Batch()
    if batch.stripes:
        yield batch


def _damaged(context: MaintenanceContext, tally: _Tally, ended: Ended) -> Iterator[_Damaged]:
    """Objects with misplaced or missing shards, the most urgent first within each batch."""
    found: list[_Damaged] = []
    runs = live_runs(context.catalog, context.versions, context.metadata_copies, tally.set_aside, ended)
    ready = (run for run in runs if not _is_being_written(context, run.stripes[0]))
    for batch in _batches(ready):
        epoch = context.stripes.volumes.epoch()
        for index, where in context.stripes.shard_mapper.shard_maps(batch.stripes).items():
            damaged = _judged(context, batch.object(index), where, epoch)
            tally.find(damaged)
            if damaged.due:
                found.append(damaged)
        tally.examined += len(batch.stripes)
        tally.tell()
        if len(found) >= _SORTED_AT_ONCE:
            yield from sorted(found, key=lambda damaged: damaged.urgency)
            found = []
    tally.expected = tally.examined
    yield from sorted(found, key=lambda damaged: damaged.urgency)


def _is_being_written(context: MaintenanceContext, stripe: StripeKey) -> bool:
    """Whether a delete has not written this tombstone yet: unlike versions, tombstones enter the catalog first."""
    return kind_of(stripe) == Kind.TOMBSTONE and context.pins.pinned(stripe)


def _judged(context: MaintenanceContext, live: LiveObject, where: ShardMap, epoch: tuple[int, ...]) -> _Damaged:
    k = data_shards(live.stripe)
    spare = _spare(where.holders, k)
    wanted = _spare(context.stripes.volumes.targets(live.stripe), k)
    due = context.stripes.due(live.stripe, where)
    missing = any(where.holders[slot] is None for slot in due)
    deferred = len(due) < len(where.absent)
    unanswered = _unanswered(context, live.stripe, where.unsure - set(due))
    unwritable = bool(context.stripes.volumes.unwritable(live.stripe, where.absent))
    where = replace(where, absent=due)
    return _Damaged(live, where, epoch, missing, spare, spare < wanted, deferred, unanswered, unwritable)


def _unanswered(context: MaintenanceContext, stripe: StripeKey, slots: Collection[int]) -> str:
    """Why it is unknown whether these shards exist; "" if it is known."""
    volumes = context.stripes.volumes
    stores = (volumes.targets(stripe)[slot] for slot in sorted(slots))
    return next((f"{volumes.place(one)} does not answer: {volumes.reason(one) or 'see the log'}" for one in stores), "")


@lru_cache(4 * PARTITIONS)  # there are hardly more combinations of holders than partitions
def _spare(holders: tuple[int | None, ...], k: int) -> int:
    return losses_survivable([holder for holder in holders if holder is not None], k)


class _Group(NamedTuple):
    """The results for a few objects, and the shards written for them."""

    made: list[_Made]
    moved: list[Moved]


_UnderWay = tuple[list[_Damaged], "Future[_Group]"]


class _New:
    """Shards written by this repair, until they are read back and durable; few enough for memory.

    They are read back while others are being rebuilt, and while they are still in the memory of their stores: from all
    stores at once, and some time after they were written, so that nothing waits for writes in flight.
    """

    def __init__(self, context: MaintenanceContext, threads: Executor, epoch: tuple[int, ...]) -> None:
        self._volumes = context.stripes.volumes
        self._threads = threads
        self._epoch = epoch
        self._readback = ReadBack(context.stripes, context.collecting.locked, context.runtime.token_bytes)
        self._unsynced_bytes = self._unsynced_shards = self._unread_bytes = 0
        self._made: Counter[int] = Counter()  # bytes rebuilt, by store, and not durable yet
        self._unread: list[Moved] = []
        self._ripe: list[Moved] = []  # earlier ones, which have probably arrived
        self._looks: list[Future[Looked]] = []

    def add(self, moved: list[Moved]) -> None:
        """Add written shards."""
        size = sum(one.shard.length for one in moved)
        self._made += _made_by_store(moved)
        self._unsynced_bytes += size
        self._unsynced_shards += len(moved)
        if self._volumes.remote:  # local disks return what was written, or scrub finds it
            self._unread += moved
            self._unread_bytes += size
            if self._unread_bytes >= _READ_BACK_BYTES or len(self._unread) >= _READ_BACK_SHARDS:
                self._look(self._ripe)
                self._ripe, self._unread, self._unread_bytes = self._unread, [], 0
        if self._unsynced_bytes >= _SYNC_EVERY_BYTES or self._unsynced_shards >= _SYNC_EVERY_SHARDS:
            self.settle(self._volumes.sync_each)

    def settle(self, sync: Callable[[], None]) -> None:
        """Make all of them durable, and drop the former copies of those that were read back."""
        self._look(self._ripe + self._unread)
        self._ripe, self._unread, self._unread_bytes = [], [], 0
        sync()
        made, self._made = self._made, Counter()
        for store, size in made.items():
            if store not in self._volumes.full():  # otherwise it refused them, and lacks them as before
                self._volumes.note_made(store, size)
        self._unsynced_bytes = self._unsynced_shards = 0
        looks, self._looks = [look.result() for look in self._looks], []
        for looked in looks:
            self._readback.settle(looked, self._epoch)

    def _look(self, moved: list[Moved]) -> None:
        for written in by_store(moved).values():
            self._looks.append(self._threads.submit(self._readback.look, written, self._epoch))


def _made_by_store(moved: list[Moved]) -> Counter[int]:
    """Bytes of rebuilt shards, by the store that they were written to."""
    sizes: Counter[int] = Counter()
    for one in moved:
        if one.former is None:
            sizes[one.shard.store] += one.shard.length
    return sizes


def _make_at_pace(context: MaintenanceContext, group: list[_Damaged], pace: Callable[[float], None] | None) -> _Group:
    """Rebuild the missing shards of a few objects."""
    began_s = time.perf_counter()
    now = context.stripes.volumes.epoch()
    known = [damaged.where for damaged in group] if all(damaged.epoch == now for damaged in group) else None
    written: list[Written] = []
    outcomes = context.stripes.heal_all([damaged.live.stripe for damaged in group], known, written.append)
    made = [
        _make_from_catalog(context, damaged.live, one) if isinstance(one, StorageError) else one
        for damaged, one in zip(group, outcomes, strict=True)
    ]
    # A store may still hold shards of an object in place of absent stores. Then, writing its own shard there must not
    # drop the copy elsewhere: otherwise it would hold more shards of the object than may be lost together.
    whole = [damaged for damaged in group if known is not None and not damaged.deferred]
    former = {damaged.live.stripe: damaged.where.holders for damaged in whole}
    moved = [Moved(one, _former(former.get(stripe_of(one.key)), one)) for one in written]
    if pace is not None:
        pace(time.perf_counter() - began_s)
    return _Group(made, moved)


def _former(holders: tuple[int | None, ...] | None, written: Written) -> int | None:
    """The store that held a shard before it was written; None if none did, or it is no longer known."""
    return None if holders is None else holders[slot_of(written.key)]


def _make_from_catalog(context: MaintenanceContext, live: LiveObject, error: Unread) -> _Made:
    if isinstance(error, WrittenWrong) or not is_live(context.catalog, live):
        return None  # nothing that the store had is lost
    raw = _from_catalog(context.catalog, live)
    if raw is None:
        return error
    absent = context.stripes.absent_slots(live.stripe)
    context.stripes.put_absent(live.stripe, raw, len(raw))
    return len(absent), len(absent) * len(raw)


def _from_catalog(catalog: Catalog, live: LiveObject) -> bytes | None:
    """A metadata object that is lost on all volumes, from the catalog; None if the catalog lacks it, too."""
    identifier, kind = object_id_of(live.stripe), kind_of(live.stripe)
    if kind == Kind.VERSION:
        return catalog.version(live.file_id, identifier)
    if kind == Kind.NODE:
        return catalog.node(identifier)
    if kind == Kind.TOMBSTONE:
        return next((raw for _, raw in catalog.tombstones() if object_id(raw) == identifier), None)
    return None


def _settle(tally: _Tally, new: _New, group: list[_Damaged], future: Future[_Group]) -> None:
    made, moved = future.result()
    for damaged, one in zip(group, made, strict=True):
        tally.settle(damaged, one)
    new.add(moved)
    tally.tell()
