"""Keeping membership up to date: what follows from time that passes."""

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

_TICK_S = 0.1  # a small part of the time in which workers are found to be lost


class MembershipWork:
    """Sees whose time has run out, and brings the layout up to date (a ``BackgroundWork``).

    Args:
        fleet: the members' volumes.
        layout: changes with the members.
        departures: of those whose leases have run out.
        heartbeats: told of rot that waits.
        liars: watched.
        trials: go on once all is mended.
        startup_barrier: ends when members have had a lease's time to come back.
        gathered_by_s: when that is, by ``clock_s``.
        clock_s: monotonic seconds.
    """

    name = "membership"
    failure_text = "membership could not be brought up to date, and is tried again: %s"
    fault_text = "membership could not be brought up to date; it is tried again"

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
        """See whose time has run out, and bring the layout up to date."""
        if self._clock_s() >= self._gathered_by_s:
            self._startup_barrier.end()
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
