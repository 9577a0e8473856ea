"""The operator's client of a node pool: status, layout, drain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import grpc

from storage.reports import ShredReport
from taskworker.auth.contexts import Access
from taskworker.client.operators import OperatorClient
from taskworker.protos import pool_pb2
from taskworker.protos.pool_pb2_grpc import PoolServiceStub
from taskworker.reports import WorkStatus as WorkStatus
from taskworker.rpc import status

_SHRED_TIMEOUT_S = 3600.0  # it reads the whole catalog


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker; sizes in bytes, ``share`` 0…1 of all shards, ``seen_ms`` the time of its last heartbeat."""

    worker_id: str
    slot: int
    address: str
    owner: str
    zone: str
    state: str
    complete: bool
    capacity: int
    bytes_used: int
    bytes_live: int
    bytes_free: int
    shards: int
    cpu: float
    seen_ms: int
    share: float
    lies: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    """An event in the pool."""

    time_ms: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """The status of a pool."""

    pool_id: str
    health: str
    workers_survivable: int
    zones_survivable: int
    owners_survivable: int
    files: int
    versions: int
    logical_bytes: int
    k: int
    n: int
    accelerator: str
    layout_version: int
    workers: list[WorkerStatus]
    work: list[WorkStatus]
    events: list[EventStatus]
    encrypts: bool = False
    master_key_id: str = ""
    master_key_copied_ms: int = 0

    @property
    def is_mending(self) -> bool:
        """Whether shards are being rebuilt or moved, or are waiting for it."""
        return any(work.state != "idle" for work in self.work if work.name in ("repair", "rebalance"))


@dataclass(frozen=True, slots=True)
class LayoutShare:
    """A member of a layout; ``share`` is 0…1 of all shards."""

    worker_id: str
    zone: str
    capacity: int
    share: float
    owner: str = ""


@dataclass(frozen=True, slots=True)
class LayoutStatus:
    """A layout; ``former`` counts earlier layouts whose shards have not all been moved yet."""

    version: int
    width: int
    members: list[LayoutShare]
    workers_survivable: int
    zones_survivable: int
    owners_survivable: int
    former: int


@dataclass(frozen=True, slots=True)
class LayoutPreview:
    """The effect of a change of members; ``moved`` is 0…1 of all shards, ``bytes_moved`` an estimate in bytes."""

    before: LayoutStatus | None
    after: LayoutStatus
    moved: float
    bytes_moved: int


class PoolClient(OperatorClient):
    """Queries and manages a node pool. Thread-safe; close it, or use it as a context manager.

    Args:
        address: ``host:port``, ``[ipv6]:port`` or ``unix:path``.
        access: what to show, and to whom; None: as the context for the address says.

    Raises:
        InvalidArgument: the address is malformed.
    """

    timeout_s = 10.0

    def __init__(self, address: str, *, access: Access | None = None) -> None:
        super().__init__(address, access=access)
        self._stub = PoolServiceStub(self.channel)

    def status(self) -> PoolStatus | None:
        """The status of the pool; None if the server is a standalone store, not a pool.

        Raises:
            StorageUnavailable: no server answers.
        """
        self.home.check()
        with self.errors_decoded():
            try:
                return _pool_status(self._stub.Status(pool_pb2.StatusRequest(), timeout=self.timeout_s))
            except grpc.RpcError as error:
                if status.is_unknown_call(error):
                    return None
                raise

    def layout(self) -> LayoutStatus:
        """The current layout."""
        request = pool_pb2.GetLayoutRequest()
        return _layout_status(self._call(self._stub.GetLayout, request))

    def preview(self, add: Sequence[LayoutShare], remove: Sequence[str]) -> LayoutPreview:
        """Preview what a change of members would move, without making the change.

        Raises:
            InvalidArgument: a worker to remove is not a member, or no worker would be left.
        """
        members = [
            pool_pb2.LayoutMember(worker_id=one.worker_id, zone=one.zone, capacity=one.capacity, owner=one.owner)
            for one in add
        ]
        request = pool_pb2.PreviewLayoutRequest(add=members, remove=remove)
        answer = self._call(self._stub.PreviewLayout, request)
        before = _layout_status(answer.before) if answer.HasField("before") else None
        return LayoutPreview(before, _layout_status(answer.after), answer.moved, answer.bytes)

    def drain(self, worker_id: str, *, cancel: bool = False) -> float:
        """Move a worker's shards off it, or with ``cancel`` take it back into the layout; returns the share that moves.

        Raises:
            InvalidArgument: there is no such worker, it is the only one, or its state does not allow this.
        """
        request = pool_pb2.DrainRequest(worker_id=worker_id, cancel=cancel)
        return self._call(self._stub.Drain, request).moved

    def new_join_token(
        self,
        worker_id: str,
        *,
        zone: str = "",
        owner: str = "",
        capacity_max: int = 0,
        host: str = "",
        ttl_s: float = 3600.0,
    ) -> tuple[str, str]:
        """Make a token with which a worker can join once.

        Args:
            worker_id: id of the worker.
            zone: its zone; empty: it chooses.
            owner: the owner of its machine; empty: it chooses.
            capacity_max: its highest weight in the layout, in bytes; 0: no limit.
            host: where the pool reaches it, if that is not where it calls from.
            ttl_s: for how many seconds the token can be used.

        Returns:
            The token, and the address at which the worker joins.

        Raises:
            InvalidArgument: workers of this pool join without tokens, or an argument cannot be used.
        """
        request = pool_pb2.NewJoinTokenRequest(
            worker_id=worker_id, zone=zone, owner=owner, capacity_max=capacity_max, host=host, ttl_s=ttl_s
        )
        answer = self._call(self._stub.NewJoinToken, request)
        return answer.token, answer.join_address

    def deny_worker(self, worker_id: str) -> None:
        """Accept a worker's certificates no longer; it is used no longer at once.

        Raises:
            InvalidArgument: no worker with this id has joined with a token.
        """
        self._call(self._stub.DenyWorker, pool_pb2.DenyWorkerRequest(worker_id=worker_id))

    def encrypt_existing(self, *, drop_earlier: bool = False) -> None:
        """Encrypt, in the background, what was stored before the pool encrypted.

        Args:
            drop_earlier: whether to drop earlier versions that are not encrypted, once the latest ones are.

        Raises:
            InvalidArgument: the pool does not encrypt.
        """
        self._call(self._stub.EncryptExisting, pool_pb2.EncryptExistingRequest(drop_earlier=drop_earlier))

    def shred(self) -> ShredReport:
        """Destroy the secrets of all versions that were deleted so far; see :meth:`storage.FileStorage.shred`.

        Replace the pool's master key as well (``SecretClient.rotate_master_key``), and destroy all copies of the former
        one: old disks have the secrets sealed with it.

        Raises:
            InvalidArgument: the pool does not encrypt.
            InsufficientWorkers: what stays could not be stored safely; nothing was destroyed.
        """
        answer = self.unary(self._stub.Shred, pool_pb2.ShredRequest(), _SHRED_TIMEOUT_S)
        return ShredReport(answer.versions, answer.keys, answer.secrets)

    def forget(self, worker_id: str) -> None:
        """Remove a worker that is gone for good from the members.

        Raises:
            InvalidArgument: there is no such worker, it is running, or no other worker is in the layout.
        """
        request = pool_pb2.ForgetRequest(worker_id=worker_id)
        self._call(self._stub.Forget, request)


def _pool_status(answer: pool_pb2.PoolStatus) -> PoolStatus:
    return PoolStatus(
        pool_id=answer.pool_id,
        health=answer.health,
        workers_survivable=answer.workers_survivable,
        zones_survivable=answer.zones_survivable,
        owners_survivable=answer.owners_survivable,
        files=answer.files,
        versions=answer.versions,
        logical_bytes=answer.logical_bytes,
        k=answer.k,
        n=answer.n,
        accelerator=answer.accelerator,
        layout_version=answer.layout_version,
        workers=[_worker_status(worker) for worker in answer.workers],
        work=[_work_status(work) for work in answer.work],
        events=[EventStatus(event.time_ms, event.kind, event.text) for event in answer.events],
        encrypts=answer.encrypts,
        master_key_id=answer.master_key_id,
        master_key_copied_ms=answer.master_key_copied_ms,
    )


def _work_status(work: pool_pb2.Work) -> WorkStatus:
    told = WorkStatus(**{each.name: getattr(work, each.name) for each in fields(WorkStatus)})
    return replace(told, seconds_left=None) if work.seconds_left < 0 else told


def _worker_status(worker: pool_pb2.Worker) -> WorkerStatus:
    return WorkerStatus(
        worker_id=worker.worker_id,
        slot=worker.slot,
        address=worker.address,
        zone=worker.zone,
        owner=worker.owner,
        state=worker.state,
        complete=worker.complete,
        capacity=worker.capacity,
        bytes_used=worker.load.bytes_used,
        bytes_live=worker.load.bytes_live,
        bytes_free=worker.load.bytes_free,
        shards=worker.load.shards,
        cpu=worker.load.cpu,
        seen_ms=worker.seen_ms,
        share=worker.share,
        lies=worker.lies,
    )


def _layout_status(view: pool_pb2.LayoutView) -> LayoutStatus:
    return LayoutStatus(
        version=view.version,
        width=view.width,
        members=[LayoutShare(one.worker_id, one.zone, one.capacity, one.share, one.owner) for one in view.members],
        workers_survivable=view.workers_survivable,
        zones_survivable=view.zones_survivable,
        owners_survivable=view.owners_survivable,
        former=view.former,
    )
