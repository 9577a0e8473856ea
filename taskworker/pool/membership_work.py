"""The background work on membership: expires leases, and changes the layout when that is due."""

from __future__ import annotations

from collections.abc import Callable

from taskworker.pool.background.driver import Signals
from taskworker.pool.departures import Departures
from taskworker.pool.distrust import LiarWatch
from taskworker.pool.heartbeats import Heartbeats
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.startup_barrier import StartupBarrier
from taskworker.pool.trial import Trials
from taskworker.transport.worker_fleet import WorkerFleet

_TICK_S = 0.1  # small compared with leases and grace times


class MembershipWork:
    """Acts on expired leases and other deadlines, and updates the layout (a ``BackgroundWork``).

    Args:
        fleet: the members' volumes.
        layout: changes with the members.
        departures: acts on expired leases.
        heartbeats: notes signs of life, and has postponed reports of rot.
        liars: watches distrusted workers.
        trials: go on once everything is mended.
        startup_barrier: ends at ``gathered_by_s``.
        gathered_by_s: when all members have had the time of a lease to come back, by ``clock_s``.
        clock_s: monotonic seconds.
    """

    name = "membership"
    failure_text = "membership could not be updated, and is tried again: %s"
    fault_text = "membership could not be updated; it is tried again"

    def __init__(
        self,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        departures: Departures,
        heartbeats: Heartbeats,
        liars: LiarWatch,
        trials: Trials,
        startup_barrier: StartupBarrier,
        *,
        gathered_by_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        self.signals = Signals()
        self._fleet = fleet
        self._layout = layout
        self._departures = departures
        self._heartbeats = heartbeats
        self._liars = liars
        self._trials = trials
        self._startup_barrier = startup_barrier
        self._gathered_by_s = gathered_by_s
        self._clock_s = clock_s

    def pause_s(self) -> float:
        """See :meth:`BackgroundWork.pause_s`."""
        return _TICK_S

    def step(self) -> None:
        """Do everything that is due."""
        if self._clock_s() >= self._gathered_by_s:
            self._startup_barrier.end()
        self._heartbeats.note_heard()
        self._departures.expire()
        if self._layout.is_overdue():
            self._layout.change_soon()
        self._heartbeats.act_on_rot()
        self._liars.watch()
        if not self._layout.is_planned and self._fleet.is_mended():
            self._trials.go_on()
        self._layout.change_if_due()

    def note_failure(self, error: Exception) -> None:
        """See :meth:`BackgroundWork.note_failure`. The next step tries again."""

    def stop(self) -> None:
        """See :meth:`BackgroundWork.stop`."""
        self.signals.close()
