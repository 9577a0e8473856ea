"""Membership: who takes part in the pool, by leases; pure bookkeeping over a clock, no network.

A worker joins, then renews its lease by heartbeats. Missing the lease makes it suspect (its shards are
stood in for), missing the grace time makes it lost (the layout goes on without it). It is itself again
whenever it comes back with its id: its slot is kept for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from storage.errors import InvalidArgument
from storage.fleet.layout import MEMBERS_MAX
from storage.fleet.members import Member
from taskworker.errors import WorkerRefused
from taskworker.rpc.protocol import PROTOCOL


class Standing(StrEnum):
    """Whether a member has a part in the layout; kept over restarts."""

    IN = "in"
    DRAINING = "draining"  # its shards move off; it serves them meanwhile
    DRAINED = "drained"  # they have; it takes part again only when told
    OUT = "out"  # lost; it takes part again once it is back

    @property
    def is_counted_on(self) -> bool:
        """Whether files may need the shards that such a member holds."""
        return self in (Standing.IN, Standing.DRAINING)


class WorkerState(StrEnum):
    """How a worker is, for people."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    LOST = "lost"
    LEFT = "left"
    DRAINING = "draining"
    DRAINED = "drained"
    DISTRUSTED = "distrusted"  # it lied about what it holds
    FULL = "full"  # it has no space for more; others take what is new
    READ_ONLY = "read-only"  # likewise, as its disk takes no writes
    REFUSING = "refusing"  # likewise, as it cannot write for now, for want of descriptors or the like
    SLOW = "slow"  # it keeps pushes waiting, or cannot read what it holds; others stand in for it

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


class MemberRecord(msgspec.Struct, frozen=True):
    """A member as it is kept in the catalog.

    Attributes:
        slot: its number, given once.
        worker: its id.
        zone: its failure domain.
        capacity: its weight in the layout, in bytes.
        address: where it was reached last.
        volume_id: of the volume it came with last.
        standing: its part in the layout.
        allowed: while it is on trial, how much of its capacity counts in the layout; 0: all of it.
        owner: whose machine it is, if that is told.
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

    @property
    def member(self) -> Member:
        """As the layout sees it."""
        capacity = min(self.capacity, self.allowed) if self.allowed else self.capacity
        return Member(self.slot, self.worker, self.zone, capacity, self.owner)


class WorkerLoad(msgspec.Struct, frozen=True):
    """How a worker is doing: bytes, the share of a processor it takes, rotten shards it found since it started.

    What begins with ``scrub`` is of its own scrub, see :class:`taskworker.worker.self_scrub.ScrubState`.
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
    """A worker's request to join. ``k`` and ``n`` are of the pool that its volume was made for; 0: not told."""

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


@dataclass(slots=True)
class _Presence:
    """What is known of a worker's process."""

    instance: str
    expires_s: float
    seen_ms: int
    load: WorkerLoad = field(default_factory=WorkerLoad)
    left: bool = False
    since_s: float = 0.0  # when it stopped being alive


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A member with what is known of its process."""

    record: MemberRecord
    state: WorkerState
    load: WorkerLoad
    seen_ms: int


@dataclass(frozen=True, slots=True)
class Rival:
    """Another process with the same id."""

    instance: str
    address: str


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome of a join."""

    record: MemberRecord
    emptied: bool  # it came with another volume than before
    layout_changes: bool


@dataclass(frozen=True, slots=True)
class Expiry:
    """Workers whose lease, or grace time, has run out since the last look."""

    suspect: list[MemberRecord]
    lost: list[MemberRecord]


class Membership:
    """Thread-safe.

    Args:
        pool_id: a worker of another pool is refused.
        records: the members kept.
        slots_given: how many slot numbers were ever given, to members forgotten since as well.
        lease_s: how long a heartbeat counts.
        grace_s: how long a silent worker keeps its part in the layout.
        clock_s: monotonic seconds.
        wall_ms: milliseconds since 1970.
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
        wall_ms: Callable[[], int],
    ) -> None:
        self._pool_id = pool_id
        self.lease_s = lease_s
        self._grace_s = grace_s
        self._clock_s = clock_s
        self._wall_ms = wall_ms
        self._lock = threading.Lock()
        self._records = {record.worker: record for record in records}
        now = clock_s()
        # After a restart of the pool, everybody gets the time to notice and join again.
        self._presence = {worker: _Presence("", now, 0, since_s=now) for worker in self._records}
        self._told: dict[str, WorkerState] = {}
        self._slots_given = max([slots_given, *(record.slot + 1 for record in self._records.values())])

    @property
    def slots_given(self) -> int:
        """How many slot numbers were ever given."""
        return self._slots_given

    @property
    def records(self) -> list[MemberRecord]:
        """All members that are not forgotten, by slot."""
        with self._lock:
            return sorted(self._records.values(), key=lambda record: record.slot)

    def record(self, worker: str) -> MemberRecord | None:
        """What is kept of a member; None if there is none of that name."""
        with self._lock:
            return self._records.get(worker)

    def members(self) -> list[Member]:
        """Those that have a part in the layout."""
        return [record.member for record in self.records if record.standing is Standing.IN]

    def rival(self, application: Application) -> Rival | None:
        """The process that holds the id asked for by an unexpired lease, if there is one."""
        with self._lock:
            presence = self._presence.get(application.worker)
            if presence is None or presence.instance == application.instance or not self._is_alive(presence):
                return None
            return Rival(presence.instance, self._records[application.worker].address)

    def check(self, application: Application) -> None:
        """Raise what :meth:`join` would raise now; changes nothing."""
        with self._lock:
            self._check(application)

    def join(self, application: Application, *, allowed: int = 0) -> Admission:
        """Let a worker in.

        Args:
            application: what it asks for.
            allowed: how much of its capacity counts if it is a new one; 0: all.

        Raises:
            WorkerRefused: version skew, another pool's volume, or a living worker has this id.
            InvalidArgument: no capacity.
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
            )
            emptied = known is not None and known.volume_id != application.volume_id
            changes = known is None or known.member != record.member or known.standing != standing
            self._records[application.worker] = record
            now = self._clock_s()
            self._presence[application.worker] = _Presence(application.instance, now + self.lease_s, self._wall_ms())
            self._told.pop(application.worker, None)
            return Admission(record, emptied, changes)

    def _check(self, application: Application) -> None:
        if application.protocol != PROTOCOL:
            raise WorkerRefused(
                f"worker {application.worker} speaks protocol {application.protocol} (version "
                f"{application.version}), this pool {PROTOCOL}; install the same version of taskworker on both"
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
            raise InvalidArgument(f"worker {application.worker}: a capacity is at least 1 byte")
        presence = self._presence.get(application.worker)
        if presence is not None and presence.instance != application.instance and self._is_alive(presence):
            raise WorkerRefused(
                f"a living worker has the id {application.worker} (at {self._records[application.worker].address}); "
                "choose another id, or stop that one first"
            )

    def _is_alive(self, presence: _Presence) -> bool:
        return not presence.left and self._clock_s() < presence.expires_s

    def heartbeat(self, worker: str, instance: str, load: WorkerLoad) -> bool:
        """Renew a lease; False if there is none to renew: the worker must join again."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is None or presence.instance != instance or not self._is_alive(presence):
                return False
            presence.expires_s = self._clock_s() + self.lease_s
            presence.seen_ms = self._wall_ms()
            presence.load = load
            return True

    def load(self, worker: str) -> WorkerLoad:
        """What a worker told in its last heartbeat since it joined."""
        with self._lock:
            presence = self._presence.get(worker)
            return presence.load if presence is not None else WorkerLoad()

    def leave(self, worker: str, instance: str) -> MemberRecord | None:
        """A worker stops in good order; None if that one is not here."""
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
        """How much of a member's capacity counts in the layout from now on; 0: all."""
        with self._lock:
            self._records[worker] = msgspec.structs.replace(self._records[worker], allowed=allowed)

    def set_standing(self, worker: str, standing: Standing) -> MemberRecord:
        """Change a member's part in the layout.

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
        """Those whose shards have all moved off now that every shard is in its place: their standing becomes that.

        Args:
            placed: slots of the members with a part in that layout: nothing has moved off who is drained since.
        """
        with self._lock:
            records = [record for record in self._records.values() if record.slot not in placed]
            draining = [record for record in records if record.standing is Standing.DRAINING]
            for record in draining:
                self._records[record.worker] = msgspec.structs.replace(record, standing=Standing.DRAINED)
            return draining

    def forget(self, worker: str) -> None:
        """Drop a member, whatever it is; should it come back, it is a new one."""
        with self._lock:
            self._records.pop(worker, None)
            self._presence.pop(worker, None)
            self._told.pop(worker, None)

    def expire(self) -> Expiry:
        """Who has become suspect or lost since the last look."""
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
        """Where a process of a worker is reached, None once it is not alive."""
        with self._lock:
            presence = self._presence.get(worker)
            if presence is None or presence.instance != instance or not self._is_alive(presence):
                return None
            return self._records[worker].address

    def lost(self) -> list[MemberRecord]:
        """Those that are lost and have a part in the layout all the same, by slot."""
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
            state = WorkerState.DRAINED  # there or not: nobody waits for it
        elif self._is_alive(presence):
            state = _STATES[record.standing]
        else:
            state = self._told.get(record.worker, WorkerState.SUSPECT)
        return WorkerView(record, state, presence.load, presence.seen_ms)
