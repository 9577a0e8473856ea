"""Mending: the background work that rebuilds missing shards and brings every shard to where it belongs.

One pass over all objects (:func:`storage.maintenance.repair.repair`) first rebuilds missing shards, which is called
repair, then moves misplaced ones, which is called rebalance. Once every shard is in its place, the copies that
stand-ins and former layouts left elsewhere are dropped.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from storage import FileStorage
from storage.errors import StorageError
from storage.reports import RepairReport, RepairState
from storage.runtime import Runtime
from taskworker.pool.background.compacting import compact_full
from taskworker.pool.background.driver import Signals
from taskworker.pool.background.repair_pass import RepairPass
from taskworker.pool.background.tidying import Tidier
from taskworker.pool.background.work import Tranquility, WorkJournal
from taskworker.reports import WorkStatus
from taskworker.tracing.spans import SPANS
from taskworker.transport.worker_fleet import WorkerFleet

log = logging.getLogger(__name__)

REPAIR, REBALANCE = "repair", "rebalance"
_SETTLE_S = 0.5  # workers of one site come back within moments of each other
_RETRY_S = 5.0
_RETRY_TIMES = 4.0  # as long as the last pass took: a full pool may have millions of objects to examine
_LOST_RETRY_S = 30.0  # whether the files of lost objects were deleted meanwhile
_LOST_RETRY_TIMES = 20.0
_LOOK_S = 0.1
_NAMED_MAX = 5
_BEGINS_SOON = "is about to begin"


@dataclass(frozen=True, slots=True)
class Endangered:
    """Numbers of files that are less safe now than after mending, by how many more lost workers they survive.

    ``all_known`` is whether all objects have been examined since workers last came or went.
    """

    files: Mapping[int, int]
    all_known: bool


class RepairScheduler:
    """Mends each time it is woken (a ``BackgroundWork``).

    Args:
        store: the engine over ``fleet``.
        fleet: the workers.
        settled: called after a pass that left everything in its place, if the epoch did not change during the pass.
        journal: stores outcomes.
        tranquility: while users are active, how long to rest after each object, in multiples of the time that it took.
        runtime: clocks.

    Attributes:
        tranquility: makes this work, and healing, give way to users.
        lost: the number of objects that, by the last pass, have too few shards left on all workers.
    """

    name = "repair_scheduler"
    failure_text = "repair failed and is tried again: %s"
    fault_text = "repair failed unexpectedly"

    def __init__(
        self,
        store: FileStorage,
        fleet: WorkerFleet,
        settled: Callable[[], None],
        journal: WorkJournal,
        *,
        tranquility: float,
        runtime: Runtime,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._settled = settled
        self._journal = journal
        self._runtime = runtime
        self.signals = Signals()
        self._at_once = threading.Event()
        self._woken = False  # since the last pass began
        self._pause_s: float | None = None
        self.tranquility = Tranquility(tranquility, store.is_busy, self.signals.closing, runtime.monotonic_s)
        self._tidier = Tidier(fleet, store.upkeep.read_back(), self.signals, self.tranquility.rest, runtime.monotonic_s)
        self._pass: RepairPass | None = None
        self._state = "idle"
        self.lost = 0
        self._deferred = 0  # objects that the last pass left alone, since absent workers may have their shards
        self._endangered: tuple[tuple[int, ...], Endangered] | None = None

    def wake(self, *, at_once: bool = False) -> None:
        """Mend soon, because something changed; ``at_once`` if shards are missing and unlikely to come back."""
        self._woken = True
        if at_once:
            self._at_once.set()
        self.signals.wanted.set()

    def stop(self) -> None:
        """See :meth:`BackgroundWork.stop`."""
        self.signals.close()
        self._at_once.set()

    # -- status ----------------------------------------------------------------------------------

    def views(self) -> list[WorkStatus]:
        """The status of repair and of rebalance."""
        repair = self._journal.record(REPAIR).view(REPAIR, self._state)
        rebalance = self._journal.record(REBALANCE).view(REBALANCE)
        under_way, awaited = self._pass, self._fleet.awaited_workers()
        if self._deferred and not repair.errors:
            # If no worker is awaited, the wait is over, and the next pass has not begun.
            note = _waiting_for(awaited) if awaited else _BEGINS_SOON
            repair = replace(repair, state="waiting", queue=self._deferred, note=note)
        if under_way is None:
            if repair.state == "idle" and self._woken and self._needed():
                repair = replace(repair, state="waiting", note=_BEGINS_SOON)
            return [repair, rebalance]
        return [under_way.repair(repair), under_way.rebalance(rebalance)]

    def endangered(self) -> Endangered | None:
        """The endangered files, by the last pass or the running one; None if workers came or went since it began."""
        found = self._endangered
        return found[1] if found is not None and found[0] == self._fleet.epoch() else None

    # -- steps -----------------------------------------------------------------------------------

    def pause_s(self) -> float | None:
        """See :meth:`BackgroundWork.pause_s`."""
        return self._pause_s

    def step(self) -> None:
        """Mend, once nothing has changed for a moment."""
        if not self._at_once.wait(_SETTLE_S) and self.signals.wanted.is_set():
            return
        self._at_once.clear()
        self._pause_s = None
        if self.signals.closing.is_set():
            return
        began_s = self._runtime.monotonic_s()
        if not self.mend():
            self._pause_s = max(_RETRY_S, _RETRY_TIMES * (self._runtime.monotonic_s() - began_s))
        elif self._deferred:
            self._pause_s = max(_LOOK_S, min(self._fleet.awaited_workers().values(), default=0.0))

    def note_failure(self, error: Exception) -> None:
        """See :meth:`BackgroundWork.note_failure`."""
        self._pause_s = _RETRY_S
        self._fail("failed", str(error) if isinstance(error, StorageError) else repr(error))

    def _fail(self, state: str, error: str, retry_s: float = _RETRY_S) -> None:
        self._state = state
        self._journal.failed(REPAIR, error, self._journal.now_ms() + int(retry_s * 1000))

    def mend(self) -> bool:
        """Run one pass.

        Returns:
            False if something could not be mended now, apart from what waits for workers to come back.

        Raises:
            StorageError: the pass failed; the shards that it has written stay.
        """
        self._woken = False
        if not self._needed():
            self._state, self._deferred = "failed" if self.lost else "idle", 0
            return True
        if self._fleet.full():
            compact_full(self._fleet)
        epoch, mark = self._fleet.epoch(), self._fleet.mark()
        self._pass = under_way = RepairPass(self._runtime.monotonic_s)
        try:
            with SPANS.internal("repair"):
                report = self._store.repair(pace=self.tranquility.rest, watch=self._watch(under_way, epoch))
            self.lost = report.lost_count
            if self.lost and self._fleet.awaits_any():
                self._fail("waiting", f"{self.lost:,} objects have too few shards left; bring lost workers back")
                return False
            self._deferred = report.deferred
            if report.unavailable:
                objects = f"{report.unavailable:,} object{'s' if report.unavailable > 1 else ''}"
                self._fail("waiting", f"{objects} cannot be read now: {report.unavailable_why}")
                return False
            if report.unwritable:
                self._fail("waiting", "too few workers have space for what is missing or misplaced")
                return False
            if report.deferred:
                self._note_deferred(report, under_way)
                return True
            if self._fleet.epoch() != epoch:
                self.wake()
                return True
            if self._store.behind:
                # Shards that an older catalog calls misplaced may be in place; they stay until a rebuild.
                self._fleet.note_mended(mark)
                return True
            self._conclude(report, under_way, mark)
            return True
        finally:
            self._pass = None

    def _conclude(self, report: RepairReport, under_way: RepairPass, mark: tuple[int, ...]) -> None:
        """Everything possible was repaired: drop misplaced copies, and let drains and trials go on."""
        under_way.tidying = True
        self._tidier.tidy()
        compact_full(self._fleet)
        if self._fleet.note_mended(mark):
            self._settled()
        if self.lost:
            self._note_lost(report, under_way)
        else:
            self._note_done(report, under_way)

    def _needed(self) -> bool:
        online = [slot for slot, _ in self._fleet.online()]
        return bool(online) and not self._store.needs_rebuild and not (self._fleet.is_mended() and not self.lost)

    def _watch(self, under_way: RepairPass, epoch: tuple[int, ...]) -> Callable[[RepairState], None]:
        def watch(state: RepairState) -> None:
            self.signals.check_open()
            under_way.note(state)
            self._endangered = (epoch, Endangered(state.endangered, state.all_examined))

        return watch

    def _note_deferred(self, report: RepairReport, under_way: RepairPass) -> None:
        """Record that what was in danger is repaired, and the rest waits for workers that may come back."""
        self._state = "idle"
        if report.shards_rebuilt or self._journal.record(REPAIR).errors:
            made = _summary("made", report.shards_rebuilt, report.bytes_rebuilt, under_way.taken_s())
            self._journal.ended(REPAIR, made)

    def _note_lost(self, report: RepairReport, under_way: RepairPass) -> None:
        """Record that some objects are lost, until their files are deleted. The pool goes on with all others."""
        self._pause_s = max(_LOST_RETRY_S, _LOST_RETRY_TIMES * under_way.taken_s())
        named = f", such as: {report.lost[0].text}" if report.lost else ""
        told = f"{self.lost:,} objects are lost: too few shards are left on all workers{named}"
        self._fail("failed", told, self._pause_s)

    def _note_done(self, report: RepairReport, under_way: RepairPass) -> None:
        self._state = "idle"
        taken_s = under_way.taken_s()
        made, size = report.shards_rebuilt - report.shards_moved, report.bytes_rebuilt - report.bytes_moved
        if made or not report.shards_moved:
            whole = f"all {report.objects_examined:,} objects have all their shards"
            self._journal.ended(REPAIR, _summary("made", made, size, taken_s) if made else whole)
        elif self._journal.record(REPAIR).errors:
            self._journal.ended(REPAIR, self._journal.record(REPAIR).result)
        if report.shards_moved:
            self._journal.ended(REBALANCE, _summary("moved", report.shards_moved, report.bytes_moved, taken_s))


def _waiting_for(awaited: Mapping[str, float]) -> str:
    names = sorted(awaited)
    named = ", ".join(names[:_NAMED_MAX]) + (f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else "")
    return f"waits for worker{'s' if len(names) > 1 else ''} {named}, {math.ceil(max(awaited.values()))} s left"


def _summary(what: str, shards: int, size: int, taken_s: float) -> str:
    return f"{what} {shards:,} shards of {size / 1e6:,.1f} MB in {taken_s:.1f} s"
