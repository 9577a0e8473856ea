"""Workers that go away: stopped, silent for too long, drained, or forgotten."""

from __future__ import annotations

from storage import ErasureProfile
from storage.errors import InvalidArgument
from taskworker.pool.background.repair_scheduling import RepairScheduler
from taskworker.pool.events import Events
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import MemberRecord, Membership, Standing
from taskworker.pool.startup_barrier import StartupBarrier
from taskworker.transport.worker_fleet import WorkerFleet


class Departures:
    """Records that workers go, and takes them out of the layout. Thread-safe, because the objects it uses are.

    Args:
        membership: the members.
        fleet: their volumes.
        layout: changes when members are drained, forgotten or lost.
        startup_barrier: no longer waits for a forgotten member.
        repair_scheduler: rebuilds the shards that went with them.
        events: records who went.
        profile: the pool's erasure profile.
    """

    def __init__(
        self,
        membership: Membership,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        startup_barrier: StartupBarrier,
        repair_scheduler: RepairScheduler,
        events: Events,
        *,
        profile: ErasureProfile,
    ) -> None:
        self._membership = membership
        self._fleet = fleet
        self._layout = layout
        self._startup_barrier = startup_barrier
        self._repair_scheduler = repair_scheduler
        self._events = events
        self._profile = profile

    def leave(self, worker: str, instance: str) -> None:
        """Note that a worker stops in an orderly way."""
        record = self._membership.leave(worker, instance)
        if record is not None:
            self._fleet.set_offline(record.slot, "it was stopped")
            self._events.note("left", f"worker {worker} was stopped")
            self._repair_scheduler.wake()  # it may be back in a moment

    def drain(self, worker: str, *, cancel: bool = False) -> float:
        """Start to move a worker's shards off it, or cancel that; return the share of all shards that moves.

        Raises:
            InvalidArgument: there is no such worker, it is the last one, or its state does not allow this.
        """
        before = self._fleet.placement
        standing = self._record(worker).standing
        if cancel:
            self._check_undrainable(worker, standing)
        elif standing is not Standing.DRAINING:
            self._check_drainable(worker, standing)
        self._membership.set_standing(worker, Standing.IN if cancel else Standing.DRAINING)
        self._layout.change()
        self._events.note("drain", f"worker {worker} {'is no longer being drained' if cancel else 'is being drained'}")
        return before.moves_to(self._fleet.placement).moved

    def forget(self, worker: str) -> None:
        """Remove a member that is gone for good. Its shards are rebuilt on the others.

        If it comes back nevertheless, it joins as a new member, and the shards that it still has are used.

        Raises:
            InvalidArgument: there is no such worker, it is running, or it is the last one with a part in the layout.
        """
        record = self._record(worker)
        if self._membership.is_present(worker):
            how = "stop it first" if record.standing is Standing.DRAINED else "drain it and stop it first"
            raise InvalidArgument(f"worker {worker} is running, and would join again; {how}")
        if record.standing is Standing.IN and self._layout.all:
            self._check_not_last(worker)
        self._membership.forget(worker)
        self._layout.change()
        self._fleet.remove(record.slot)
        self._startup_barrier.came(record.slot)
        self._events.note("forgotten", f"worker {worker} is forgotten")
        self._repair_scheduler.wake(at_once=True)

    def cut_off(self, worker: str) -> None:
        """Use a worker no longer that is not to be a member; nothing happens if it is none."""
        for record in self._membership.records:
            if record.worker == worker:
                self._events.note("denied", f"worker {worker} is denied, and is used no longer")
                self._fleet.set_offline(record.slot, "it was denied")
                self._repair_scheduler.wake(at_once=True)

    def expire(self) -> None:
        """Act on leases and grace times that have run out; call this a few times a second."""
        expiry = self._membership.expire()
        for record in expiry.suspect:
            self._events.note("suspect", f"worker {record.worker} does not answer; others stand in for it")
            self._fleet.set_offline(record.slot, "its heartbeats stopped")
        for record in expiry.lost:
            self._events.note("lost", f"worker {record.worker} is lost")
        self._do_without(self._membership.lost())
        if expiry.suspect or expiry.lost:
            self._repair_scheduler.wake(at_once=True)

    def _do_without(self, lost: list[MemberRecord]) -> None:
        """Take lost workers out of the layout, if the remaining ones keep files readable after one more loss.

        Checked again at every tick, since other workers may have joined.
        """
        left = {member.worker for member in self._membership.members()} - {record.worker for record in lost}
        if not lost or not left or self._profile.n - -(-self._profile.n // len(left)) < self._profile.k:
            return
        for record in lost:
            self._membership.set_standing(record.worker, Standing.OUT)
            self._events.note(
                "lost", f"worker {record.worker} is out of the layout; its shards are rebuilt on the others"
            )
        self._layout.change()

    def _check_drainable(self, worker: str, standing: Standing) -> None:
        if standing is Standing.DRAINED:
            raise InvalidArgument(
                f"worker {worker} is drained already; stop it for good, then run `taskworker forget {worker}`"
            )
        if standing is Standing.OUT:
            raise InvalidArgument(
                f"worker {worker} is lost, and its shards are rebuilt on the others; if it will not come back, run "
                f"`taskworker forget {worker}`"
            )
        self._check_not_last(worker)

    def _check_undrainable(self, worker: str, standing: Standing) -> None:
        if standing not in (Standing.DRAINING, Standing.DRAINED):
            raise InvalidArgument(f"worker {worker} is not being drained; there is nothing to cancel")
        if not self._membership.is_present(worker):
            raise InvalidArgument(
                f"worker {worker} does not answer, so it cannot take shards; start it and cancel the drain then, or "
                f"run `taskworker forget {worker}`"
            )

    def _check_not_last(self, worker: str) -> None:
        if {member.worker for member in self._membership.members()} <= {worker}:
            raise InvalidArgument(f"worker {worker} is the only one with a part in the layout; add another first")

    def _record(self, worker: str) -> MemberRecord:
        record = self._membership.record(worker)
        if record is None:
            raise InvalidArgument(f"there is no worker {worker!r} in this pool; see `taskworker status`")
        return record
