"""What ``status`` says of a pool."""

from __future__ import annotations

from dataclasses import dataclass, replace

from storage import ErasureProfile, FileStorage
from storage.fleet.layout import Layout
from storage.fleet.members import by_owner, by_zone
from taskworker.pool.background.auditing import Auditor
from taskworker.pool.background.collecting import Collector
from taskworker.pool.background.healing import heal_view
from taskworker.pool.background.repair_scheduling import RepairScheduler
from taskworker.pool.background.scrubbing import scrub_view
from taskworker.pool.events import Events, PoolEvent
from taskworker.pool.health import BEHIND_LINE, Safety, health_line, rebuild_line
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import Membership, WorkerState, WorkerView
from taskworker.pool.risks import Risks
from taskworker.reports import WorkStatus
from taskworker.transport.worker_fleet import WorkerFleet


@dataclass(frozen=True, slots=True)
class PoolView:
    """The pool at a glance."""

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
    work: list[WorkStatus]
    events: list[PoolEvent]
    lies: dict[int, int]
    accelerator: str


class StatusReporter:
    """Makes it. Thread-safe.

    Args:
        pool_id: of the pool.
        profile: of the pool.
        store: counts files and versions, and knows whether they can be written.
        membership: the members.
        fleet: knows how their volumes are.
        layout: the current one is shown.
        risks: what may be lost.
        repair_scheduler, collector, auditor: background work.
        events: the latest are shown.
    """

    def __init__(
        self,
        pool_id: str,
        profile: ErasureProfile,
        store: FileStorage,
        membership: Membership,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        risks: Risks,
        repair_scheduler: RepairScheduler,
        collector: Collector,
        auditor: Auditor,
        events: Events,
    ) -> None:
        self._pool_id = pool_id
        self._profile = profile
        self._store = store
        self._membership = membership
        self._fleet = fleet
        self._layout = layout
        self._risks = risks
        self._repair_scheduler = repair_scheduler
        self._collector = collector
        self._auditor = auditor
        self._events = events

    def view(self) -> PoolView:
        """The pool at a glance; cheap at any size."""
        stats = self._store.counts()
        layout = self._layout.current
        views = [self._seen(view) for view in self._membership.views()]
        away = [view for view in views if view.record.standing.is_counted_on and view.state.is_away]
        repair, rebalance = self._repair_scheduler.views()
        there = [view.load for view in views if not view.state.is_away]
        risks = self._risks.by_profile()
        workers_survivable = min(risk.survivable for risk in risks)
        safety = Safety(
            workers_survivable if layout is not None else None,
            min(risk.promised for risk in risks),
            stats.files,
            self._repair_scheduler.endangered(),
            risks,
            self._risks.fatal(workers_survivable),
            sorted(view.record.worker for view in views if view.state is WorkerState.FULL),
            sorted(view.record.worker for view in views if view.state is WorkerState.READ_ONLY),
            sorted(view.record.worker for view in views if view.state is WorkerState.REFUSING),
        )
        health = health_line(safety, len(away), (repair, rebalance))
        return PoolView(
            pool_id=self._pool_id,
            health=self._health(len(there), health),
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
            work=[
                repair,
                rebalance,
                heal_view(self._store.healing()),
                scrub_view(there),
                self._collector.view(),
                self._auditor.view(),
            ],
            events=self._events.latest(),
            lies=self._fleet.lies(),
            accelerator=self._store.accelerator,
        )

    def _health(self, there: int, health: str) -> str:
        """What is most urgent."""
        if self._store.needs_rebuild:
            return rebuild_line(there)
        if self._store.unfinished:
            return f"files can only be read: {self._store.unfinished}"
        return f"{BEHIND_LINE}: run `taskworker rebuild` once all workers are back" if self._store.behind else health

    def _seen(self, view: WorkerView) -> WorkerView:
        """A worker whose lease runs on, but whose volume failed a call, is as good as silent."""
        if view.state is WorkerState.ALIVE and self._fleet.volume(view.record.slot) is None:
            return replace(view, state=WorkerState.SUSPECT)
        if view.state is WorkerState.ALIVE and not self._fleet.trusts(view.record.slot):
            return replace(view, state=WorkerState.DISTRUSTED)
        if view.state is WorkerState.ALIVE and view.record.slot in self._fleet.slow():
            return replace(view, state=WorkerState.SLOW)
        if view.state is WorkerState.ALIVE and view.record.slot in self._fleet.full():
            return replace(view, state=self._why_full(view.record.slot))
        return view

    def _why_full(self, slot: int) -> WorkerState:
        """Why others take what is new for a worker."""
        if slot in self._fleet.read_only():
            return WorkerState.READ_ONLY
        return WorkerState.REFUSING if slot in self._fleet.refusing() else WorkerState.FULL
