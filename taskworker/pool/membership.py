"""Membership of the pool, by leases; pure bookkeeping over a clock, without network.

A worker joins, then renews its lease by heartbeats. When its lease expires, it is suspect, and others stand in for it.
When the grace time expires as well, it is lost, and a new layout is made without it. It resumes its former place
whenever it comes back with its id, for which its slot is kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

import msgspec

from storage.errors import InvalidArgument
from storage.fleet.layout import MEMBERS_MAX
from storage.fleet.members import Member
from taskworker.errors import WorkerRefused
from taskworker.rpc.protocol import PROTOCOL, upgrade_advice


class Standing(StrEnum):
    """Whether a member is in the layout; kept across restarts."""

    IN = "in"
    DRAINING = "draining"  # its shards are being moved off; it still serves them
    DRAINED = "drained"  # its shards have been moved off; it returns to the layout only if its drain is cancelled
    OUT = "out"  # lost; it returns to the layout once it is back

    @property
    def is_counted_on(self) -> bool:
        """Whether files may need the shards that such a member holds."""
        return self in (Standing.IN, Standing.DRAINING)


class WorkerState(StrEnum):
    """The state of a worker, as ``status`` shows it."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    LOST = "lost"
    LEFT = "left"
    DRAINING = "draining"
    DRAINED = "drained"
    DISTRUSTED = "distrusted"  # it lied about the shards it holds
    FULL = "full"  # it has no space left; others take new shards
    READ_ONLY = "read-only"  # its disk takes no writes; others take new shards
    REFUSING = "refusing"  # it cannot write for now, for example without free descriptors
    SLOW = "slow"  # it delays pushes, or cannot read its shards; others stand in for it

    @property
    def is_away(self) -> bool:
        """Whether the worker does not answer, or was stopped; drained ones count as present, there or not."""
        return self in (WorkerState.SUSPECT, WorkerState.LEFT, WorkerState.LOST)


_STATES = {
    Standing.IN: WorkerState.ALIVE,
    Standing.DRAINING: WorkerState.DRAINING,
    Standing.DRAINED: WorkerState.DRAINED,
    Standing.OUT: WorkerState.DRAINED,
}
_slot_of = attrgetter("slot")


class MemberRecord(msgspec.Struct, frozen=True):
    """A member's record in the catalog.

    Attributes:
        slot: its number, which is never reused.
        worker: its id.
        zone: its failure domain.
        capacity: its weight in the layout, in bytes.
        address: its last address.
        volume_id: id of the volume that it last had.
        standing: whether it is in the layout.
        allowed: while it is on trial, how much of its capacity counts in the layout; 0: all of it.
        owner: the owner of its machine, if given.
        shard_address: the last address of its volume.
        clients_address: the last address at which clients read from its volume; empty: they do not.
    """

    slot: int
    worker: str
    zone: str
    capacity: int
    address: str
    volume_id: str
    standing: Standing = Standing.IN
    allowed: int = 0
    owner: str = ""
    shard_address: str = ""
    clients_address: str = ""

    @property
    def member(self) -> Member:
        """The member of a layout."""
        capacity = min(self.capacity, self.allowed) if self.allowed else self.capacity
        return Member(self.slot, self.worker, self.zone, capacity, self.owner)


class WorkerLoad(msgspec.Struct, frozen=True):
    """A worker's load: bytes, its share of a processor, and the corrupt shards it found since it started.

    Fields that start with ``scrub`` are about its own scrub, see :class:`taskworker.worker.self_scrub.ScrubState`.
    """

    cpu: float = 0.0
    bytes_used: int = 0
    bytes_live: int = 0
    bytes_free: int = 0
    shards: int = 0
    rotten: int = 0
    scrub_done: int = 0
    scrub_total: int = 0
    scrub_bytes_per_s: float = 0.0
    scrub_ended_ms: int = 0
    scrub_next_ms: int = 0
    scrub_errors: int = 0


@dataclass(frozen=True, slots=True)
class Application:
    """A worker's request to join. ``k`` and ``n`` are those of the pool that its volume was made for; 0: unknown."""

    worker: str
    address: str
    zone: str
    capacity: int
    instance: str
    volume_id: str
    pool_id: str
    protocol: int
    version: str
    k: int = 0
    n: int = 0
    owner: str = ""
    shard_address: str = ""
    clients_address: str = ""


@dataclass(slots=True)
class _Presence:
    """What is known about a worker's process."""

    instance: str
    expires_s: float
    seen_ms: int
    load: WorkerLoad = field(default_factory=WorkerLoad)
    left: bool = False
    since_s: float = 0.0  # when it stopped being alive


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A member, with the state of its process."""

    record: MemberRecord
    state: WorkerState
    load: WorkerLoad
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Rival:
    """Another process with the same id, and the address of its volume."""

    instance: str
    address: str


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome of a join."""

    record: MemberRecord
    emptied: bool  # it came with a different volume than before
    layout_changes: bool


@dataclass(frozen=True, slots=True)
class Expiry:
    """Workers whose lease or grace time has expired since the last check."""

    suspect: list[MemberRecord]
    lost: list[MemberRecord]


class Membership:
    """The members and their leases. Thread-safe.

    Args:
        pool_id: a worker of another pool is refused.
        records: the stored members.
        slots_given: how many slot numbers were ever assigned, including those of members forgotten since.
        lease_s: how long a lease lasts after a heartbeat.
        grace_s: how long a silent worker stays in the layout.
        clock_s: monotonic seconds.
        now_ms: milliseconds since 1970.
    """

    def __init__(
        self,
        pool_id: str,
        records: Iterable[MemberRecord],
        *,
        slots_given: int = 0,
        lease_s: float,
        grace_s: float,
        clock_s: Callable[[], float],
        now_ms: Callable[[], int],
    ) -> None:
        self._pool_id = pool_id
        self.lease_s = lease_s
        self._grace_s = grace_s
        self._clock_s = clock_s
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._records = {record.worker: record for record in records}
        now = clock_s()
        # After a restart of the pool, all workers get time to notice and join again.
        self._presence = {worker: _Presence("", now, 0, since_s=now) for worker in self._records}
        self._told: dict[str, WorkerState] = {}
        self._slots_given = max([slots_given, *(record.slot + 1 for record in self._records.values())])

    @property
    def slots_given(self) -> int:
        """How many slot numbers were ever assigned."""
        return self._slots_given

    @property
    def records(self) -> list[MemberRecord]:
        """All members that were not forgotten, by slot."""
        with self._lock:
            return sorted(self._records.values(), key=_slot_of)

    def record(self, worker: str) -> MemberRecord | None:
        """The record of a member; None if there is no such member."""
        with self._lock:
            return self._records.get(worker)

    def members(self) -> list[Member]:
        """The members that are in the layout."""
        return [record.member for record in self.records if record.standing is Standing.IN]

    def rival(self, application: Application) -> Rival | None:
        """The process that holds an unexpired lease for the requested id, if there is one."""
        with self._lock:
            presence = self._presence.get(application.worker)
            if presence is None or presence.instance == application.instance or not self._is_alive(presence):
                return None
            return Rival(presence.instance, self._records[application.worker].shard_address)

    def check(self, application: Application) -> None:
        """Raise the error that :meth:`join` would raise now; changes nothing."""
        with self._lock:
            self._check(application)

    def join(self, application: Application, *, allowed: int = 0) -> Admission:
        """Add a worker, or take it back.

        Args:
            application: its request.
            allowed: how much of its capacity counts if it is new; 0: all.

        Raises:
            WorkerRefused: its protocol differs, its volume belongs to another pool, or a live worker has its id.
            InvalidArgument: its capacity is zero.
        """
        with self._lock:
            self._check(application)
            known = self._records.get(application.worker)
            if known is not None:
                slot = known.slot
            else:
                slot, self._slots_given = self._slots_given, self._slots_given + 1
            standing = known.standing if known is not None else Standing.IN
            if standing is Standing.OUT:
                standing = Standing.IN
            record = MemberRecord(
                slot,
                application.worker,
                application.zone,
                application.capacity,
                application.address,
                application.volume_id,
                standing,
                allowed if known is None else known.allowed,
                application.owner,
                application.shard_address,
                application.clients_address,
            )
            emptied = known is not None and known.volume_id != application.volume_id
            changes = known is None or known.member != record.member or known.standing != standing
            self._records[application.worker] = record
            now = self._clock_s()
            self._presence[application.worker] = _Presence(application.instance, now + self.lease_s, self._now_ms())
            self._told.pop(application.worker, None)
            return Admission(record, emptied, changes)

    def _check(self, application: Application) -> None:
        if application.protocol != PROTOCOL:
            raise WorkerRefused(
                f"worker {application.worker} speaks protocol {application.protocol} (version "
                f"{application.version}), this pool {PROTOCOL}; {upgrade_advice(application.protocol, PROTOCOL)}"
            )
        if application.pool_id not in ("", self._pool_id):
            raise WorkerRefused(
                f"the volume of worker {application.worker} belongs to pool {application.pool_id}, this is pool "
                f"{self._pool_id}; give the worker an empty directory, or start it with the address of its own pool"
            )
        if application.worker not in self._records and len(self._records) >= MEMBERS_MAX:
            raise WorkerRefused(
                f"this pool has {MEMBERS_MAX:,} members, and takes no more; forget those that are gone for good with "
                "`taskworker forget`"
            )
        if application.capacity < 1:
            raise InvalidArgument(f"worker {application.worker}: its capacity must be at least 1 byte")
        presence = self._presence.get(application.worker)
        if presence is not None and presence.instance != application.instance and self._is_alive(presence):
            raise WorkerRefused(
                f"a living worker has the id {application.worker} (at {self._records[application.worker].address}); "
                "choose another id, or stop that one first"
            )

    def _is_alive(self, presence: _Presence) -> bool:
        return not presence.left and self._clock_s() < presence.expires_s

    def heartbeat(self, worker: str, instance: str, load: WorkerLoad) -> bool:
        """Renew a lease; False if there is none, so that the worker must join again."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is None or presence.instance != instance or not self._is_alive(presence):
                return False
            presence.expires_s = self._clock_s() + self.lease_s
            presence.seen_ms = self._now_ms()
            presence.load = load
            return True

    def extend(self, worker: str) -> None:
        """Extend a lease that has not expired, as the worker was heard otherwise than by a heartbeat."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is not None and self._is_alive(presence):
                presence.expires_s = self._clock_s() + self.lease_s

    def load(self, worker: str) -> WorkerLoad:
        """The load in a worker's last heartbeat since it joined."""
        with self._lock:
            presence = self._presence.get(worker)
            return presence.load if presence is not None else WorkerLoad()

    def leave(self, worker: str, instance: str) -> MemberRecord | None:
        """Note that a worker stops in an orderly way; None if this process is not present."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is None or presence.instance != instance:
                return None
            if not presence.left and self._told.get(worker) is not WorkerState.LOST:
                presence.left = True
                presence.since_s = self._clock_s()
                self._told[worker] = WorkerState.LEFT
            return self._records[worker]

    def allow(self, worker: str, allowed: int) -> None:
        """Set how much of a member's capacity counts in the layout from now on; 0: all."""
        with self._lock:
            self._records[worker] = msgspec.structs.replace(self._records[worker], allowed=allowed)

    def set_standing(self, worker: str, standing: Standing) -> MemberRecord:
        """Change a member's standing.

        Raises:
            InvalidArgument: no such worker.
        """
        with self._lock:
            record = self._records.get(worker)
            if record is None:
                raise InvalidArgument(f"there is no worker {worker!r} in this pool; see `taskworker status`")
            record = self._records[worker] = msgspec.structs.replace(record, standing=standing)
            return record

    def is_present(self, worker: str) -> bool:
        """Whether a process of this worker holds a lease."""
        with self._lock:
            presence = self._presence.get(worker)
            return presence is not None and self._is_alive(presence)

    def drained(self, placed: Container[int]) -> list[MemberRecord]:
        """Mark draining members as drained, now that every shard is in its place; returns them.

        Args:
            placed: slots of the members in that layout; members in it have not been drained yet.
        """
        with self._lock:
            records = [record for record in self._records.values() if record.slot not in placed]
            draining = [record for record in records if record.standing is Standing.DRAINING]
            for record in draining:
                self._records[record.worker] = msgspec.structs.replace(record, standing=Standing.DRAINED)
            return draining

    def forget(self, worker: str) -> None:
        """Remove a member, whatever its state; if it comes back, it is a new member."""
        with self._lock:
            self._records.pop(worker, None)
            self._presence.pop(worker, None)
            self._told.pop(worker, None)

    def expire(self) -> Expiry:
        """The workers that have become suspect or lost since the last call."""
        suspect: list[MemberRecord] = []
        lost: list[MemberRecord] = []
        with self._lock:
            now = self._clock_s()
            for worker, presence in self._presence.items():
                record, told = self._records[worker], self._told.get(worker)
                if self._is_alive(presence) or record.standing is Standing.DRAINED:
                    continue
                if told is None:
                    self._told[worker] = told = WorkerState.SUSPECT
                    presence.since_s = now
                    suspect.append(record)
                if told is not WorkerState.LOST and now - presence.since_s >= self._grace_s:
                    self._told[worker] = WorkerState.LOST
                    lost.append(record)
        return Expiry(suspect, lost)

    def address_of(self, worker: str, instance: str) -> str | None:
        """The address of a worker's process; None if it is not alive."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is None or presence.instance != instance or not self._is_alive(presence):
                return None
            return self._records[worker].address

    def lost(self) -> list[MemberRecord]:
        """The members that are lost but still in the layout, by slot."""
        with self._lock:
            lost = (self._records[worker] for worker, told in self._told.items() if told is WorkerState.LOST)
            return sorted((record for record in lost if record.standing is Standing.IN), key=lambda record: record.slot)

    def views(self) -> list[WorkerView]:
        """All members, by slot."""
        with self._lock:
            return [self._view(record) for record in sorted(self._records.values(), key=lambda record: record.slot)]

    def _view(self, record: MemberRecord) -> WorkerView:
        presence = self._presence[record.worker]
        if record.standing is Standing.DRAINED:
            state = WorkerState.DRAINED  # not needed, whether present or not
        elif self._is_alive(presence):
            state = _STATES[record.standing]
        else:
            state = self._told.get(record.worker, WorkerState.SUSPECT)
        return WorkerView(record, state, presence.load, presence.seen_ms)
