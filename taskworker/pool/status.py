"""The status of a pool, as ``taskworker status`` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from storage import ErasureProfile, FileStorage
from storage.fleet.layout import Layout
from storage.fleet.members import by_owner, by_zone
from taskworker.pool.background.driver import ShownWork
from taskworker.pool.background.repair_scheduling import REBALANCE, REPAIR, RepairScheduler
from taskworker.pool.events import Events, PoolEvent
from taskworker.pool.health import BEHIND_LINE, Safety, health_line, rebuild_line
from taskworker.pool.key_copies import KeyCopies
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import WorkerState, WorkerView
from taskworker.pool.risks import Risks
from taskworker.pool.worker_views import WorkerViews
from taskworker.reports import WorkStatus
from taskworker.transport.worker_fleet import WorkerFleet


@dataclass(frozen=True, slots=True)
class PoolView:
    """The status of a pool.

    Attributes:
        workers_promised: how many losses of workers all files survive once everything is mended.
    """

    pool_id: str
    health: str
    profile: ErasureProfile
    files: int
    versions: int
    logical_bytes: int
    layout: Layout | None
    workers: list[WorkerView]
    complete: set[int]
    workers_survivable: int
    zones_survivable: int
    owners_survivable: int
    workers_promised: int
    work: list[WorkStatus]
    events: list[PoolEvent]
    lies: dict[int, int]
    accelerator: str
    encrypts: bool
    master_key_id: str
    master_key_copied_ms: int


class StatusReporter:
    """Composes the status of a pool. Thread-safe.

    Args:
        pool_id: the pool's id.
        profile: the pool's erasure profile.
        store: counts files and versions, and knows whether they can be written.
        workers: the state of each worker.
        fleet: knows who lied, and who may lack something.
        layout: the layouts, of which the current one is shown.
        risks: computes how many losses the pool survives.
        repair_scheduler: knows which files are endangered.
        work: all background work that is shown, in this order.
        events: the latest are shown.
        key_copies: knows whether there is a copy of the master key.
    """

    def __init__(
        self,
        pool_id: str,
        profile: ErasureProfile,
        store: FileStorage,
        workers: WorkerViews,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        risks: Risks,
        repair_scheduler: RepairScheduler,
        work: Sequence[ShownWork],
        events: Events,
        key_copies: KeyCopies,
    ) -> None:
        self._pool_id = pool_id
        self._profile = profile
        self._store = store
        self._workers = workers
        self._fleet = fleet
        self._layout = layout
        self._risks = risks
        self._repair_scheduler = repair_scheduler
        self._work = work
        self._events = events
        self._key_copies = key_copies

    def view(self) -> PoolView:
        """The status now; cheap at any size of the pool."""
        stats = self._store.counts()
        layout = self._layout.current
        views = self._workers.all()
        work = [view for piece in self._work for view in piece.views()]
        away = [view for view in views if view.record.standing.is_counted_on and view.state.is_away]
        readable = sum(view.record.slot in layout.by_slot and not view.state.is_away for view in views) if layout else 0
        risks = self._risks.by_profile()
        workers_survivable = min(risk.survivable for risk in risks)
        workers_promised = min(risk.promised for risk in risks)
        safety = Safety(
            workers_survivable if layout is not None else None,
            workers_promised,
            stats.files,
            self._repair_scheduler.endangered(),
            risks,
            self._risks.fatal(workers_survivable),
            sorted(view.record.worker for view in views if view.state is WorkerState.FULL),
            sorted(view.record.worker for view in views if view.state is WorkerState.READ_ONLY),
            sorted(view.record.worker for view in views if view.state is WorkerState.REFUSING),
        )
        key_id = self._store.upkeep.keys.master_id
        mending = [view for view in work if view.name in (REPAIR, REBALANCE)]
        return PoolView(
            pool_id=self._pool_id,
            health=self._health(readable, health_line(safety, len(away), mending)),
            profile=self._profile,
            files=stats.files,
            versions=stats.versions,
            logical_bytes=stats.logical_bytes,
            layout=layout,
            workers=views,
            complete={view.record.slot for view in views if self._fleet.state(view.record.slot) == "ok"},
            workers_survivable=workers_survivable,
            zones_survivable=self._risks.survivable(by_zone),
            owners_survivable=self._risks.survivable(by_owner),
            workers_promised=workers_promised,
            work=work,
            events=self._events.latest(),
            lies=self._fleet.lies(),
            accelerator=self._store.accelerator,
            encrypts=self._store.upkeep.keys.seals,
            master_key_id=key_id,
            master_key_copied_ms=self._key_copies.copied_ms(key_id),
        )

    def _health(self, readable: int, health: str) -> str:
        """The most urgent message about the pool's health; ``readable`` counts the workers that a rebuild can read."""
        if self._store.needs_rebuild:
            return rebuild_line(readable)
        if self._store.unfinished:
            return f"files can only be read: {self._store.unfinished}"
        return f"{BEHIND_LINE}: run `taskworker rebuild` once all workers are back" if self._store.behind else health
