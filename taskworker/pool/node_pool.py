"""The node pool: the engine over a fleet of workers, their membership, and the layout."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from cryptography.x509 import DNSName

from storage import ErasureProfile, FileStorage
from storage.catalog import USER_KEYS, Catalog, LmdbCatalog
from storage.fleet.layout import Layout, Moves
from storage.fleet.members import Member
from storage.runtime import Runtime
from storage.sealing.master_keys import MasterKeys
from storage.system.forks import HomeProcess
from storage.system.locking import StoreLock
from storage.system.private_paths import make_root_directory
from taskworker.auth.authority import Authority
from taskworker.auth.certificates import KeyPair
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.identity import POOL_DNS_NAME, MemberIdentity, MemberKind
from taskworker.auth.tickets import TicketIssuer
from taskworker.auth.tls import MemberCredentials
from taskworker.pool.admission import WorkerAdmission
from taskworker.pool.background.auditing import Auditor
from taskworker.pool.background.collecting import Collector
from taskworker.pool.background.driver import BackgroundWork, WorkDriver
from taskworker.pool.background.encrypting import Encrypting
from taskworker.pool.background.healing import Healing
from taskworker.pool.background.repair_scheduling import RepairScheduler
from taskworker.pool.background.scrubbing import Scrubs
from taskworker.pool.background.work import WORK_DOCUMENT, WorkJournal
from taskworker.pool.departures import Departures
from taskworker.pool.distrust import LiarWatch
from taskworker.pool.events import Events
from taskworker.pool.heartbeats import Heartbeats
from taskworker.pool.key_copies import KeyCopies
from taskworker.pool.layout_changes import LayoutChanges
from taskworker.pool.membership import (
    Application,
    MemberRecord,
    Membership,
    WorkerLoad,
)
from taskworker.pool.membership_work import MembershipWork
from taskworker.pool.options import PoolOptions
from taskworker.pool.owners import Owners
from taskworker.pool.risks import Risks
from taskworker.pool.roster import ROSTER_DOCUMENTS, Roster, RosterKeeper
from taskworker.pool.settings import SETTINGS_DOCUMENTS, PoolSettings
from taskworker.pool.slices import PoolRuntime
from taskworker.pool.startup_barrier import StartupBarrier
from taskworker.pool.status import PoolView, StatusReporter
from taskworker.pool.trial import Trials
from taskworker.pool.worker_views import WorkerViews
from taskworker.transport.member_dialling import MemberDialling
from taskworker.transport.port import Connect, Identify, WorkerVolume
from taskworker.transport.remote_volume import RemoteVolume, identify_process
from taskworker.transport.worker_fleet import WorkerFleet

PLAIN_DOCUMENTS = (*SETTINGS_DOCUMENTS, *ROSTER_DOCUMENTS, WORK_DOCUMENT)
"""Documents that a pool needs before it knows its key: about its workers and its work, not about its users."""

_OWN_LIFETIME_S = 30 * 24 * 3600.0
_READ_PATIENCE_S = 3.0  # a worker that only lost its connection joins again within this time


class PoolCore:
    """The parts of a pool, without threads of its own.

    The caller runs the work in ``background`` step by step; :meth:`tick` is the step of membership.

    Thread-safe. ``store`` is the engine that serves users' calls.

    Args:
        root: the pool's directory.
        catalog: the open catalog; closed with the pool, or if the constructor fails on it.
        lock: the lock held on ``root``; released when the catalog is closed.
        profile: erasure profile of a new pool; an existing one keeps its own.
        chunk_size: chunk size of a new pool.
        options: how to run it.
        connect: connects to a worker's volume.
        identify: asks which process answers at a worker's address.
        runtime: threads of the engine, clocks and random bytes; the machine's own by default.

    Raises:
        FormatError: ``root`` is not a pool's directory.
        InvalidArgument: the pool shall not encrypt, and has workers of other owners.
    """

    def __init__(
        self,
        root: Path,
        catalog: Catalog,
        lock: StoreLock,
        *,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        options: PoolOptions | None = None,
        connect: Connect = RemoteVolume,
        identify: Identify = identify_process,
        runtime: Runtime | None = None,
    ) -> None:
        self._home = HomeProcess(f"the pool in {root}")
        self._options = options or PoolOptions()
        self._runtime = runtime = runtime or Runtime()
        try:
            self._settings = PoolSettings(catalog, root)
            settings = self._settings.load(
                runtime,
                profile=profile,
                chunk_size=chunk_size,
                rebuild=self._options.rebuild,
                encrypts=self._options.keys is not None,
            )
            self._catalog = catalog
            keeper = RosterKeeper(catalog)
            journal = WorkJournal(catalog, runtime.wall_ms)
            self.membership = self._make_membership(settings.store_id, keeper.roster)
        except BaseException:
            catalog.close()
            lock.release()
            raise
        self.owners = Owners(self._settings, self._options.owner)
        self.pool_id = settings.store_id
        self.profile = ErasureProfile(settings.k, settings.n)
        self.chunk_size = settings.chunk_size
        self.fleet = self._make_fleet(settings.incomplete)
        self._events = Events(runtime.wall_ms)
        self._layout = LayoutChanges(
            keeper, self.membership, self.fleet, self._events, width=self.profile.n, clock_s=runtime.monotonic_s
        )
        if self._settings.begin_run():
            # The last run was cut off, so its record of which members lack shards may be incomplete.
            self.fleet.incomplete.update(record.slot for record in self.membership.records)
        needs_rebuild = self._settings.needs_rebuild()
        try:
            encrypts, keys = self._encryption(needs_rebuild)
            self.store = FileStorage.over(
                root,
                settings,
                catalog,
                self.fleet,
                lock,
                runtime,
                needs_rebuild=needs_rebuild,
                hot_bytes=self._options.hot_bytes - self._options.pushed_bytes,
                pushed_bytes=self._options.pushed_bytes,
                small_copies_bytes=self._options.small_copies_bytes,
                keys=keys,
                seals=encrypts,
            )
        except BaseException:
            self.fleet.close()
            catalog.close()
            lock.release()
            raise
        self.store.upkeep.on_rebuilt = self._rebuilt
        self.store.on_closing = self._settings.end_run
        # Running workers notice within a heartbeat that the pool is back, so waiting for one lease is enough.
        expected = [record.slot for record in self.membership.records if record.standing.is_counted_on]
        self.startup_barrier = StartupBarrier(expected)
        gathered_by_s = runtime.monotonic_s() + self._options.lease_s
        tranquility = self._options.tranquility
        self.repair_scheduler = RepairScheduler(
            self.store, self.fleet, self._settled, journal, tranquility=tranquility, runtime=runtime
        )
        self.store.pace_healing(self.repair_scheduler.tranquility)
        self.collector = Collector(
            self.store, journal, every_s=self._options.collect_every_s, tranquility=tranquility, runtime=runtime
        )
        self.encrypting = Encrypting(self.store, catalog, journal, tranquility=tranquility, runtime=runtime)
        self.auditor = Auditor(self.store, bytes_per_s=self._options.audit_bytes_per_s, runtime=runtime)
        self._departures = Departures(
            self.membership,
            self.fleet,
            self._layout,
            self.startup_barrier,
            self.repair_scheduler,
            self._events,
            profile=self.profile,
        )
        self._admission = self._make_admission(connect, identify)
        self._heartbeats = Heartbeats(self.membership, self.fleet, self._events, clock_s=runtime.monotonic_s)
        self._trials = Trials(self.membership, self.fleet, self._layout, self._events)
        self._liars = LiarWatch(
            self.store, self.membership, self.fleet, self._layout, self._events, profile=self.profile
        )
        self.key_copies = KeyCopies(catalog, runtime.wall_ms)
        self._risks = Risks(self.store, self.fleet, self._layout, self.repair_scheduler)
        self._status = self._make_status()
        self._membership_work = self._make_membership_work(gathered_by_s)
        self.background: list[BackgroundWork] = [
            self._membership_work,
            self.repair_scheduler,
            self.collector,
            self.auditor,
            self.encrypting,
        ]
        self._layout.on_changed = partial(self.repair_scheduler.wake, at_once=True)
        self.fleet.on_rot = self.repair_scheduler.wake
        self.fleet.repair_bytes_max = self._liars.repair_bytes_max

    def _encryption(self, needs_rebuild: bool) -> tuple[bool, MasterKeys | None]:
        """Return whether new files are encrypted, and the master keys at hand.

        Raises:
            InvalidArgument: they shall not be, and workers of other owners are members.
        """
        wanted, give = self._options.encrypts, self._options.keys
        if wanted is False:
            self.owners.check_members(self.membership.records)
        encrypts = self._settings.encrypts(wanted)
        keys = None if give is None else give(encrypts and not needs_rebuild and not self._catalog.document(USER_KEYS))
        if needs_rebuild and wanted is None and keys is not None:
            encrypts = self._settings.encrypts(True)  # with its key, a lost pool is most likely one that encrypted
        return encrypts, keys

    def _make_membership(self, pool_id: str, roster: Roster) -> Membership:
        return Membership(
            pool_id,
            roster.members,
            slots_given=roster.slots_given,
            lease_s=self._options.lease_s,
            grace_s=self._options.grace_s,
            clock_s=self._runtime.monotonic_s,
            now_ms=self._runtime.wall_ms,
        )

    def _make_fleet(self, incomplete: Iterable[int]) -> WorkerFleet:
        fleet = WorkerFleet(
            allow_fragile=self._options.allow_fragile,
            grace_s=self._options.grace_s,
            margin=self._options.margin,
            clock_s=self._runtime.monotonic_s,
            now_ms=self._runtime.wall_ms,
        )
        fleet.incomplete.update(incomplete)
        return fleet

    def _make_admission(self, connect: Connect, identify: Identify) -> WorkerAdmission:
        return WorkerAdmission(
            self.store,
            self.membership,
            self.fleet,
            self._layout,
            self._departures,
            self.startup_barrier,
            self.repair_scheduler,
            self._events,
            profile=self.profile,
            options=self._options,
            connect=connect,
            identify=identify,
            check_owner=self.owners.check,
        )

    def _make_status(self) -> StatusReporter:
        workers = WorkerViews(self.membership, self.fleet)
        return StatusReporter(
            self.pool_id,
            self.profile,
            self.store,
            workers,
            self.fleet,
            self._layout,
            self._risks,
            self.repair_scheduler,
            [
                self.repair_scheduler,
                Healing(self.store),
                Scrubs(workers.loads),
                self.collector,
                self.auditor,
                self.encrypting,
            ],
            self._events,
            self.key_copies,
        )

    def _make_membership_work(self, gathered_by_s: float) -> MembershipWork:
        return MembershipWork(
            self.fleet,
            self._layout,
            self._departures,
            self._heartbeats,
            self._liars,
            self._trials,
            self.startup_barrier,
            gathered_by_s=gathered_by_s,
            clock_s=self._runtime.monotonic_s,
        )

    @property
    def documents(self) -> Catalog:
        """The catalog, where other parts of the pool store small documents (``document`` and ``save_document``)."""
        return self._catalog

    def close(self) -> None:
        """Finish running calls and release the directory; workers wait for the pool's return.

        Does nothing in a forked child: the pool belongs to the parent.
        """
        if not self._home.is_here:
            return
        self.startup_barrier.end()
        for work in self.background:
            work.stop()
        self.store.close()

    # -- workers ---------------------------------------------------------------------------------

    def join(self, application: Application) -> MemberRecord:
        """Admit a worker and attach its volume.

        Raises:
            WorkerRefused, InvalidArgument: it cannot be admitted; the text says why.
        """
        record = self._admission.admit(application)
        self.collector.signals.wanted.set()  # it may have missed a collect
        return record

    def _rebuilt(self) -> None:
        """Note that the catalog was rebuilt from the volumes."""
        self._settings.note_rebuilt()
        counts = self.store.counts()
        rest = f"; {self.store.unfinished}" if self.store.unfinished else ""
        self._events.note(
            "rebuilt", f"the catalog was rebuilt: {counts.files:,} files, {counts.versions:,} versions{rest}"
        )
        self.fleet.note_unknown()
        self.repair_scheduler.wake()

    def heartbeat(self, worker: str, instance: str, load: WorkerLoad) -> bool:
        """Renew a lease; return False if the worker must join again."""
        return self._heartbeats.take(worker, instance, load)

    def leave(self, worker: str, instance: str) -> None:
        """Note that a worker stops in an orderly way."""
        self._departures.leave(worker, instance)

    def cut_off(self, worker: str) -> None:
        """See :meth:`Departures.cut_off`."""
        self._departures.cut_off(worker)

    def drain(self, worker: str, *, cancel: bool = False) -> float:
        """See :meth:`Departures.drain`."""
        return self._departures.drain(worker, cancel=cancel)

    def forget(self, worker: str) -> None:
        """See :meth:`Departures.forget`."""
        self._departures.forget(worker)

    # -- the layout ------------------------------------------------------------------------------

    @property
    def layouts(self) -> list[Layout]:
        """The current layout, then former ones from which shards have yet to move, newest first."""
        return list(self._layout.all)

    def preview(self, add: Iterable[Member], remove: Iterable[str]) -> tuple[Layout, Moves]:
        """See :meth:`LayoutChanges.preview`."""
        return self._layout.preview(add, remove)

    def _settled(self) -> None:
        """Note that every shard is in its place."""
        if self._layout.settle():
            self.store.upkeep.save_incomplete()

    # -- the clock -------------------------------------------------------------------------------

    def tick(self) -> None:
        """Act on expired leases and update the layout; call this a few times a second."""
        self._membership_work.step()

    # -- status ----------------------------------------------------------------------------------

    def view(self) -> PoolView:
        """The status of the pool; cheap at any size."""
        return self._status.view()

    def survives(self, losses: Callable[[ErasureProfile], int]) -> int:
        """How many losses all stored data survive; ``losses`` returns the number for one profile."""
        return self._risks.survives(losses)


class NodePool(PoolCore):
    """A running pool in a directory, which is created if absent; its background work has threads.

    Args:
        directory: directory of the catalog.
        profile: erasure profile of a new pool; an existing one keeps its own.
        chunk_size: chunk size of a new pool.
        options: how to run it.
        joins_by_token: whether workers join with tokens, and connections to them use TLS.

    Attributes:
        enrollment: admits workers with tokens; None if they join without.
        credentials: what the pool shows to its members; None if they join without tokens.
        tickets: issues tickets with which clients read from workers themselves.

    Raises:
        StoreLocked: another process runs this pool.
        FormatError: it is not a pool's directory, or the file of its certificate authority is damaged.
        NotPrivate: others may read that file.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        profile: ErasureProfile | None = None,
        chunk_size: int | None = None,
        options: PoolOptions | None = None,
        joins_by_token: bool = False,
    ) -> None:
        root = Path(directory)
        make_root_directory(root)
        lock = StoreLock(root)
        try:
            catalog = LmdbCatalog(root / "catalog", plain_documents=PLAIN_DOCUMENTS)
        except BaseException:
            lock.release()
            raise
        self.enrollment: Enrollment | None = None
        self.credentials: MemberCredentials | None = None
        self._dialling: MemberDialling | None = None
        self._authority: Authority | None = None
        self._making = threading.Lock()
        self._root = root
        self.tickets = TicketIssuer(self.authority)
        super().__init__(
            root, catalog, lock, profile=profile, chunk_size=chunk_size, options=options, connect=self._connect,
            identify=self._identify, runtime=PoolRuntime(),
        )  # fmt: skip
        if joins_by_token:
            try:
                self._take_identity()
            except BaseException:
                super().close()
                raise
        self.store.read_patience_s = _READ_PATIENCE_S
        self._driver = WorkDriver(self.background)
        self._driver.start()

    def authority(self) -> Authority:
        """The pool's certificate authority, which is made when it is first needed.

        Raises:
            FormatError: its file is damaged.
            NotPrivate: others may read that.
        """
        with self._making:  # workers that join at the same moment must be told of the same one
            if self._authority is None:
                self._authority = Authority(self._root / "authority.pem", self.pool_id, self._runtime.wall_ms)
            return self._authority

    def _take_identity(self) -> None:
        """Issue a certificate to the pool itself."""
        authority = self.authority()
        self.credentials = MemberCredentials(self._issue_to_itself(authority), self._runtime.wall_ms)
        self._dialling = MemberDialling(self.credentials)
        self.enrollment = Enrollment(authority, self._catalog, self._runtime.wall_ms, self._options.certificates_s)

    def renew_identity(self, *, only_if_due: bool = False) -> None:
        """Issue a new certificate to the pool itself, if its workers join with tokens.

        Args:
            only_if_due: only if half of the present one's lifetime has passed.
        """
        if self.credentials is not None and (self.credentials.is_due or not only_if_due):
            self.credentials.renew(self._issue_to_itself(self.authority()))

    def _issue_to_itself(self, authority: Authority) -> KeyPair:
        identity = MemberIdentity(self.pool_id, MemberKind.POOL, "pool")
        # Whoever could steal this key from the pool's memory could steal the authority's, so it may last longer.
        return authority.issue_own(identity, names=[DNSName(POOL_DNS_NAME)], lifetime_s=_OWN_LIFETIME_S)

    def _connect(self, address: str, worker: str, instance: str) -> WorkerVolume:
        if self._dialling is None:
            return RemoteVolume(address, worker, instance)
        return self._dialling.connect(address, worker, instance)

    def _identify(self, address: str, worker: str) -> str:
        return (identify_process if self._dialling is None else self._dialling.identify)(address, worker)

    def close(self) -> None:
        """See :meth:`PoolCore.close`."""
        if not self._home.is_here:
            return
        self._driver.close()
        super().close()
