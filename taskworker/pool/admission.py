"""Admission of workers: what is checked of one that wants to join, and how its volume is taken into use."""

from __future__ import annotations

from dataclasses import replace

from storage import ErasureProfile, FileStorage
from storage.errors import InvalidArgument, StorageError
from taskworker.errors import WorkerRefused
from taskworker.pool.background.repair_scheduling import RepairScheduler
from taskworker.pool.departures import Departures
from taskworker.pool.events import Events
from taskworker.pool.health import BEHIND_LINE
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import Application, MemberRecord, Membership, WorkerState
from taskworker.pool.options import PoolOptions
from taskworker.pool.startup_barrier import StartupBarrier
from taskworker.pool.trial import first_allowance
from taskworker.transport.port import Connect, Identify, WorkerVolume
from taskworker.transport.worker_fleet import WorkerFleet

_TEXT_MAX = 128  # bytes; the frames of the shard transport have room for 255
_ADDRESS_MAX = 512


class WorkerAdmission:
    """Lets workers in, or refuses them. Thread-safe: what it uses is.

    Args:
        store: knows what a worker's volume should hold.
        membership: the members.
        fleet: their volumes.
        layout: with a new member it is another one.
        departures: ends the lease of a former process of the same worker.
        startup_barrier: waits for members to join again.
        repair_scheduler: brings to a new member what belongs there.
        events: told of who joined.
        profile: of the pool.
        options: of the pool.
        connect: how to reach workers.
        identify: how to ask which process answers at a worker's address.
    """

    def __init__(
        self,
        store: FileStorage,
        membership: Membership,
        fleet: WorkerFleet,
        layout: LayoutChanges,
        departures: Departures,
        startup_barrier: StartupBarrier,
        repair_scheduler: RepairScheduler,
        events: Events,
        *,
        profile: ErasureProfile,
        options: PoolOptions,
        connect: Connect,
        identify: Identify,
    ) -> None:
        self._store = store
        self._membership = membership
        self._fleet = fleet
        self._layout = layout
        self._departures = departures
        self._startup_barrier = startup_barrier
        self._repair_scheduler = repair_scheduler
        self._events = events
        self._profile = profile
        self._options = options
        self._connect = connect
        self._identify = identify

    def admit(self, application: Application) -> MemberRecord:
        """Let a worker in and take its volume into use.

        Raises:
            WorkerRefused, InvalidArgument: it cannot be let in; the text says why.
        """
        _check_texts(application)
        application = replace(application, capacity=min(application.capacity, self._options.capacity_max))
        self._check_profile(application)
        self._check_copy(application)
        self._drop_dead_rival(application)
        self._membership.check(application)
        volume = self._connect(application.address, application.worker, application.instance)
        try:
            self._check_answer(volume, application)
            stale = self._is_older_copy(application, volume)
            admission = self._membership.join(application, allowed=self._allowance(application))
            self._layout.keep_members()
        except StorageError:
            volume.abandon("it was not let in")
            raise
        record = admission.record
        self._fleet.attach(record.slot, volume, record.owner)
        self._store.upkeep.mark(record.slot, anew=stale)
        self._startup_barrier.came(record.slot)
        if admission.emptied:
            self._fleet.note_emptied(record.slot)
            self._events.note("emptied", f"worker {record.worker} came with an empty volume; its shards are made again")
        elif stale:
            self._fleet.note_emptied(record.slot)
            self._events.note(
                "stale", f"worker {record.worker} came with an older copy of its volume; what it lacks is made"
            )
        self._events.note("joined", f"worker {record.worker} joined at {record.address}")
        if admission.layout_changes and self._options.allow_fragile and not self._layout.all:
            self._layout.change()  # one worker is enough to begin with
        elif admission.layout_changes:
            self._layout.change_soon()
        self._repair_scheduler.wake()
        return record

    def _allowance(self, application: Application) -> int:
        """How much of a new member's capacity counts at first: all of it until there is something to lose."""
        if not self._layout.all or not self._store.counts().versions or self._store.needs_rebuild:
            return 0
        return first_allowance(application.capacity, self._membership.records)

    def _check_answer(self, volume: WorkerVolume, application: Application) -> None:
        """See that the very process that wants to join answers at its address: its request may come late."""
        worker, address = application.worker, application.address
        try:
            answering = volume.instance()
        except StorageError as error:
            raise WorkerRefused(
                f"the pool cannot reach worker {worker} at {address} ({error}); "
                "give the worker an address that the pool can connect to"
            ) from error
        if answering != application.instance:
            raise WorkerRefused(
                f"another process than worker {worker} answers at {address}; give the worker an address of its own"
            )

    def _is_older_copy(self, application: Application, volume: WorkerVolume) -> bool:
        """Compare a worker's volume with the catalog; either may have been put back from a copy."""
        worker = application.worker
        behind = self._store.behind
        slot = next((record.slot for record in self._membership.records if record.worker == worker), None)
        try:
            stale = self._store.upkeep.meet(slot, volume, worker, application.owner)
        except StorageError as error:
            raise WorkerRefused(f"the volume of worker {worker} cannot be read ({error})") from error
        if self._store.behind and not behind:
            self._events.note("behind", f"{BEHIND_LINE}; worker {worker} has what it lacks")
        return stale

    def _check_copy(self, application: Application) -> None:
        """Of a copied directory, only one may be in use: shards in both would count twice."""
        for view in self._membership.views():
            record = view.record
            same = record.volume_id == application.volume_id and record.worker != application.worker
            if same and (not view.state.is_away or view.state is WorkerState.SUSPECT):
                raise WorkerRefused(
                    f"the volume of worker {application.worker} is a copy of that of worker {record.worker}, which "
                    "is in use; give the worker an empty directory, or stop the other one first"
                )

    def _check_profile(self, application: Application) -> None:
        """While the catalog is to be made again: the pool must be as the former one was."""
        former = (application.k, application.n)
        if self._store.needs_rebuild and any(former) and former != (self._profile.k, self._profile.n):
            raise WorkerRefused(
                f"the volume of worker {application.worker} is of a {former[0]}-of-{former[1]} pool; remove the new "
                f"pool's directory and start it with --k {former[0]} --n {former[1]} as well"
            )

    def _drop_dead_rival(self, application: Application) -> None:
        """End the lease of a process that is gone, so that a worker started again at once need not wait for it."""
        rival = self._membership.rival(application)
        if rival is None:
            return
        try:
            gone = self._identify(rival.address, application.worker) != rival.instance
        except StorageError:
            gone = True
        if gone:
            self._departures.leave(application.worker, rival.instance)


def _check_texts(application: Application) -> None:
    """What a worker says of itself is kept, sent back to it and shown to people: it must be short, and text."""
    for what in ("worker", "owner", "zone", "instance", "volume_id", "version", "address"):
        text: str = getattr(application, what)
        most = _ADDRESS_MAX if what == "address" else _TEXT_MAX
        if len(text.encode()) > most or not text.isprintable():
            raise InvalidArgument(f"a worker's {what.replace('_', ' ')} is at most {most} bytes of printable text")
