"""Admission of workers: the checks on a worker that wants to join, and the attachment of its volume."""

from __future__ import annotations

from collections.abc import Callable
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

_TEXT_MAX = 128  # bytes; a frame of the shard transport has room for 255
_ADDRESS_MAX = 512
_ADDRESSES = ("address", "shard_address", "clients_address")
_TEXTS = ("worker", "owner", "zone", "instance", "volume_id", "version", *_ADDRESSES)


class WorkerAdmission:
    """Admits workers or refuses them. Thread-safe, because the objects it uses are.

    Args:
        store: knows what a worker's volume should hold.
        membership: the members.
        fleet: their volumes.
        layout: changes when a new member joins.
        departures: ends the lease of an earlier process of the same worker.
        startup_barrier: after a restart of the pool, waits for members to rejoin.
        repair_scheduler: brings the shards that belong on a new member to it.
        events: records who joined.
        profile: the pool's erasure profile.
        options: the pool's options.
        connect: connects to a worker's volume.
        identify: asks which process answers at a worker's address.
        check_owner: refuses a worker's owner.
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
        check_owner: Callable[[str, str], None],
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
        self._check_owner = check_owner

    def admit(self, application: Application) -> MemberRecord:
        """Admit a worker and attach its volume.

        Raises:
            WorkerRefused, InvalidArgument: it cannot be admitted; the text says why.
        """
        _check_texts(application)
        self._check_owner(application.worker, application.owner)
        application = replace(application, capacity=min(application.capacity, self._options.capacity_max))
        self._check_profile(application)
        self._check_copy(application)
        self._drop_dead_rival(application)
        self._membership.check(application)
        volume = self._connect(application.shard_address, application.worker, application.instance)
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
            self._events.note("emptied", f"worker {record.worker} came with an empty volume; its shards are rebuilt")
        elif stale:
            self._fleet.note_emptied(record.slot)
            self._events.note(
                "stale", f"worker {record.worker} came with an older copy of its volume; missing shards are rebuilt"
            )
        self._events.note("joined", f"worker {record.worker} joined at {record.address}")
        if admission.layout_changes and self._options.allow_fragile and not self._layout.all:
            self._layout.change()  # one worker is enough for the first layout
        elif admission.layout_changes:
            self._layout.change_soon()
        self._repair_scheduler.wake()
        return record

    def _allowance(self, application: Application) -> int:
        """How much of a new member's capacity counts at first; 0: all of it, as long as the pool stores nothing."""
        if not self._layout.all or not self._store.counts().versions or self._store.needs_rebuild:
            return 0
        return first_allowance(application.capacity, self._membership.records)

    def _check_answer(self, volume: WorkerVolume, application: Application) -> None:
        """Check that the process that asks to join is the one that answers at its address.

        A delayed request may come from an earlier process.
        """
        worker, address = application.worker, application.shard_address
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
        """Whether a worker's volume is older than the catalog; either may have been restored from a copy."""
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
        """Refuse a copy of a volume that is in use: the shards in both would count twice."""
        for view in self._membership.views():
            record = view.record
            same = record.volume_id == application.volume_id and record.worker != application.worker
            if same and (not view.state.is_away or view.state is WorkerState.SUSPECT):
                raise WorkerRefused(
                    f"the volume of worker {application.worker} is a copy of that of worker {record.worker}, which "
                    "is in use; give the worker an empty directory, or stop the other one first"
                )

    def _check_profile(self, application: Application) -> None:
        """While a rebuild is due, refuse volumes of a pool with another erasure profile."""
        former = (application.k, application.n)
        if self._store.needs_rebuild and any(former) and former != (self._profile.k, self._profile.n):
            raise WorkerRefused(
                f"the volume of worker {application.worker} is of a {former[0]}-of-{former[1]} pool; remove the new "
                f"pool's directory and start it with --k {former[0]} --n {former[1]} as well"
            )

    def _drop_dead_rival(self, application: Application) -> None:
        """End the lease of a process that is gone, so that a worker that restarts at once need not wait."""
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
    """Check the texts in a request: they are stored, sent back and displayed, so they must be short and printable."""
    for what in _TEXTS:
        text: str = getattr(application, what)
        most = _ADDRESS_MAX if what in _ADDRESSES else _TEXT_MAX
        if len(text.encode()) > most or not text.isprintable():
            raise InvalidArgument(f"a worker's {what.replace('_', ' ')} must be printable text of at most {most} bytes")
