"""The state of each worker, by its lease and by how its volume answers."""

from __future__ import annotations

from dataclasses import replace

from taskworker.pool.membership import Membership, WorkerLoad, WorkerState, WorkerView
from taskworker.transport.worker_fleet import WorkerFleet


class WorkerViews:
    """The members and their states. Thread-safe.

    Args:
        membership: knows their leases.
        fleet: knows how their volumes answer.
    """

    def __init__(self, membership: Membership, fleet: WorkerFleet) -> None:
        self._membership = membership
        self._fleet = fleet

    def all(self) -> list[WorkerView]:
        """All members, by slot."""
        return [self._seen(view) for view in self._membership.views()]

    def loads(self) -> list[WorkerLoad]:
        """The last reported loads of the present workers."""
        return [view.load for view in self.all() if not view.state.is_away]

    def _seen(self, view: WorkerView) -> WorkerView:
        """A member with its actual state. It is suspect if a call to its volume failed, even if its lease is valid."""
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
        """Why a worker takes no new shards."""
        if slot in self._fleet.read_only():
            return WorkerState.READ_ONLY
        return WorkerState.REFUSING if slot in self._fleet.refusing() else WorkerState.FULL
