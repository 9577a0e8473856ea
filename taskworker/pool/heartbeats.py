"""Heartbeats of workers: they renew leases, and report free space and rotten shards.

Whatever arrives from a worker's volume is as good a sign of life: over a slow or lossy link, or from a busy machine, a
heartbeat may come too late while shards arrive all the time.
"""

from __future__ import annotations

from collections.abc import Callable

from taskworker.pool.background.rot_reports import RotReports
from taskworker.pool.events import Events
from taskworker.pool.membership import Membership, WorkerLoad
from taskworker.transport.worker_fleet import WorkerFleet


class Heartbeats:
    """Takes heartbeats, and acts on what they report. Thread-safe, because the objects it uses are.

    Args:
        membership: the members and their leases.
        fleet: their volumes.
        events: records rot.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, membership: Membership, fleet: WorkerFleet, events: Events, *, clock_s: Callable[[], float]
    ) -> None:
        self._membership = membership
        self._fleet = fleet
        self._events = events
        self._rot_reports = RotReports(clock_s)
        self._received: dict[int, int] = {}  # bytes received from each slot when it was looked at last

    def take(self, worker: str, instance: str, load: WorkerLoad) -> bool:
        """Renew a lease; return False if the worker must join again."""
        before = self._membership.load(worker)
        record = self._membership.record(worker)
        # A worker whose volume failed a call must join again, even if its process lives. Its lease is not renewed until
        # then: a heartbeat alone does not prove that its shards can be reached.
        volume = None if record is None else self._fleet.volume(record.slot)
        if record is None or volume is None:
            return False
        if not self._membership.heartbeat(worker, instance, load):
            return False
        volume.note_alive()
        self._fleet.note_space(record.slot, load.bytes_free, load.bytes_used)
        if load.rotten > before.rotten:
            self._rot_reports.add(record.slot, load.rotten - before.rotten)
            self.act_on_rot()
        return True

    def note_heard(self) -> None:
        """Extend the leases of workers whose volumes have sent something; call this a few times a second."""
        before, self._received = self._received, {}
        for record in self._membership.records:
            volume = self._fleet.volume(record.slot)
            if volume is not None:
                received = self._received[record.slot] = volume.received
                if received > before.get(record.slot, received):
                    self._membership.extend(record.worker)

    def act_on_rot(self) -> None:
        """Have the rotten shards rebuilt that workers reported, where that is due; call this a few times a second."""
        due = dict(self._rot_reports.due())
        for record in self._membership.records if due else ():
            found = due.get(record.slot, 0)
            if not found or not record.standing.is_counted_on or not self._fleet.trusts(record.slot):
                continue  # its shards do not count
            self._events.note(
                "rot", f"worker {record.worker} found {found:,} rotten shards on its disk; they are rebuilt"
            )
            self._fleet.note_rot(record.slot, found)
