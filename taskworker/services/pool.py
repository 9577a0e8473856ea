"""PoolService of ``pool.proto``: joining, heartbeats and the operators' calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TypeVar

import msgspec

from storage.errors import InvalidArgument
from storage.fleet.layout import Layout
from storage.fleet.members import Member, by_owner, by_worker, by_zone
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.join_tokens import TTL_S, Admission
from taskworker.errors import NotJoined, WorkerRefused
from taskworker.pool.membership import Application, WorkerLoad, WorkerView
from taskworker.pool.node_pool import NodePool
from taskworker.pool.status import PoolView
from taskworker.protos import pool_pb2
from taskworker.reports import WorkStatus
from taskworker.rpc.admission import Gate
from taskworker.rpc.binding import Caller, require_active
from taskworker.rpc.protocol import PROTOCOL
from taskworker.transport.frames import COUNT_MAX
from taskworker.transport.survival import Domain

NumberT = TypeVar("NumberT", int, float)

_HEARTBEATS_PER_LEASE = 3

_PREVIEWED_MAX = 128
"""Workers that a preview adds: a layout with so many takes a second or two of one processor."""


class PoolService:
    """Serves a node pool; thread-safe. Methods raise the engine's errors; the binding turns them into status codes.

    Args:
        pool: the pool.
        is_without_volume: whether the worker with this id only runs functions.

    Attributes:
        join_address: where workers join with tokens; empty: they join without.
    """

    def __init__(self, pool: NodePool, is_without_volume: Callable[[str], bool] = lambda _worker: False) -> None:
        self._pool = pool
        self._is_without_volume = is_without_volume
        self._previews = Gate(1, "a layout is being previewed already")
        self.join_address = ""

    def Describe(  # noqa: N802 - the names are the contract's
        self, _request: pool_pb2.DescribeRequest, _caller: Caller
    ) -> pool_pb2.PoolDescription:
        """The pool's parameters, which a worker needs before it joins."""
        return pool_pb2.PoolDescription(
            pool_id=self._pool.pool_id,
            protocol=PROTOCOL,
            k=self._pool.profile.k,
            n=self._pool.profile.n,
            chunk_size=self._pool.chunk_size,
        )

    def Join(self, request: pool_pb2.JoinRequest, _caller: Caller) -> pool_pb2.JoinResponse:  # noqa: N802
        """Add a worker to the pool."""
        if self._is_without_volume(request.worker_id):
            raise WorkerRefused(
                f"there is a worker with the id {request.worker_id} already, which only runs functions; choose another "
                "id, or stop that one"
            )
        record = self._pool.join(
            Application(
                worker=request.worker_id,
                address=request.address,
                zone=request.zone,
                capacity=request.capacity,
                instance=request.instance,
                volume_id=request.volume_id,
                pool_id=request.pool_id,
                protocol=request.protocol,
                version=request.version,
                k=request.k,
                n=request.n,
                owner=request.owner,
                shard_address=request.shard_address,
                clients_address=request.clients_address,
            )
        )
        lease_ms = int(self._pool.membership.lease_s * 1000)
        return pool_pb2.JoinResponse(
            pool_id=self._pool.pool_id,
            slot=record.slot,
            lease_ms=lease_ms,
            heartbeat_ms=lease_ms // _HEARTBEATS_PER_LEASE,
            ticket_authorities=self._ticket_authorities() if request.clients_address else b"",
        )

    def _ticket_authorities(self) -> bytes:
        """What workers without certificates have to be told."""
        return b"" if self._pool.credentials is not None else self._pool.tickets.authorities_pem

    def Heartbeat(  # noqa: N802
        self, request: pool_pb2.HeartbeatRequest, _caller: Caller
    ) -> pool_pb2.HeartbeatResponse:
        """Renew a lease."""
        if not self._pool.heartbeat(request.worker_id, request.instance, told(request.load)):
            raise NotJoined(f"the pool holds no lease of worker {request.worker_id}; join again")
        return pool_pb2.HeartbeatResponse(lease_ms=int(self._pool.membership.lease_s * 1000))

    def Leave(self, request: pool_pb2.LeaveRequest, _caller: Caller) -> pool_pb2.LeaveResponse:  # noqa: N802
        """Note that a worker stops in an orderly way."""
        self._pool.leave(request.worker_id, request.instance)
        return pool_pb2.LeaveResponse()

    def Status(self, _request: pool_pb2.StatusRequest, _caller: Caller) -> pool_pb2.PoolStatus:  # noqa: N802
        """The status of the pool."""
        return _status(self._pool.view())

    def Drain(self, request: pool_pb2.DrainRequest, _caller: Caller) -> pool_pb2.DrainResponse:  # noqa: N802
        """Move a worker's shards off it."""
        if self._is_without_volume(request.worker_id):
            raise InvalidArgument(
                f"worker {request.worker_id} only runs functions, and holds no shards that could move; stop it: "
                "others take its calls"
            )
        return pool_pb2.DrainResponse(moved=self._pool.drain(request.worker_id, cancel=request.cancel))

    def Forget(self, request: pool_pb2.ForgetRequest, _caller: Caller) -> pool_pb2.ForgetResponse:  # noqa: N802
        """Remove a worker that is gone for good."""
        if self._is_without_volume(request.worker_id):
            raise InvalidArgument(
                f"worker {request.worker_id} only runs functions, and is no member of the pool; stop it, and it is "
                "forgotten"
            )
        self._pool.forget(request.worker_id)
        return pool_pb2.ForgetResponse()

    def NewJoinToken(  # noqa: N802
        self, request: pool_pb2.NewJoinTokenRequest, _caller: Caller
    ) -> pool_pb2.JoinTokenText:
        """Make a token with which a worker can join once."""
        admission = Admission(
            request.worker_id, request.zone, request.owner, min(request.capacity_max, COUNT_MAX), request.host
        )
        enrollment = self._enrollment()
        self._pool.owners.check(request.worker_id, request.owner)
        token = enrollment.new_token(admission, request.ttl_s or TTL_S)
        return pool_pb2.JoinTokenText(token=token.text, join_address=self.join_address)

    def DenyWorker(  # noqa: N802
        self, request: pool_pb2.DenyWorkerRequest, _caller: Caller
    ) -> pool_pb2.DenyWorkerResponse:
        """Accept a worker's certificates no longer."""
        self._enrollment().deny(request.worker_id)
        self._pool.cut_off(request.worker_id)
        return pool_pb2.DenyWorkerResponse()

    def EncryptExisting(  # noqa: N802
        self, request: pool_pb2.EncryptExistingRequest, _caller: Caller
    ) -> pool_pb2.EncryptExistingResponse:
        """Encrypt what was stored before the pool encrypted."""
        self._pool.encrypting.request(drop_earlier=request.drop_earlier)
        return pool_pb2.EncryptExistingResponse()

    def Shred(self, _request: pool_pb2.ShredRequest, _caller: Caller) -> pool_pb2.ShredResponse:  # noqa: N802
        """Destroy the secrets of all versions that were deleted."""
        report = self._pool.store.shred()
        return pool_pb2.ShredResponse(versions=report.versions, keys=report.keys, secrets=report.secrets)

    def _enrollment(self) -> Enrollment:
        enrollment = self._pool.enrollment
        if enrollment is None:
            raise InvalidArgument("workers of this pool join without tokens; start it with --join, and they need one")
        return enrollment

    def GetLayout(self, _request: pool_pb2.GetLayoutRequest, _caller: Caller) -> pool_pb2.LayoutView:  # noqa: N802
        """The current layout."""
        layouts = self._pool.layouts
        if not layouts:
            return pool_pb2.LayoutView(width=self._pool.profile.n)
        return self._layout_view(layouts[0], len(layouts) - 1)

    def PreviewLayout(  # noqa: N802
        self, request: pool_pb2.PreviewLayoutRequest, caller: Caller
    ) -> pool_pb2.LayoutPreview:
        """The effect of a change of members."""
        if len(request.add) > _PREVIEWED_MAX:
            raise InvalidArgument(
                f"{len(request.add)} workers to add, at most {_PREVIEWED_MAX} are allowed; preview a part of them"
            )
        added = [Member(0, member.worker_id, member.zone, member.capacity, member.owner) for member in request.add]
        with self._previews.place():
            require_active(caller)
            after, moves = self._pool.preview(added, request.remove)
        layouts = self._pool.layouts
        stored = sum(view.load.bytes_live for view in self._pool.membership.views())
        return pool_pb2.LayoutPreview(
            before=self._layout_view(layouts[0], len(layouts) - 1) if layouts else None,
            after=self._layout_view(after, len(layouts)),
            moved=moves.moved,
            bytes=int(moves.moved * stored),
        )

    def _layout_view(self, layout: Layout, former: int) -> pool_pb2.LayoutView:
        shares = layout.shares()
        return pool_pb2.LayoutView(
            version=layout.version,
            width=layout.width,
            members=[
                pool_pb2.LayoutMember(
                    slot=member.slot,
                    worker_id=member.worker,
                    zone=member.zone,
                    owner=member.owner,
                    capacity=member.capacity,
                    share=shares[member.slot],
                )
                for member in layout.members
            ],
            workers_survivable=self._survives(layout, by_worker),
            zones_survivable=self._survives(layout, by_zone),
            owners_survivable=self._survives(layout, by_owner),
            former=former,
        )

    def _survives(self, layout: Layout, domain: Domain) -> int:
        """How many losses all files survive once their shards are where this layout places them."""
        return self._pool.survives(lambda profile: layout.losses_survivable(profile.k, domain, n=profile.n))


def _status(view: PoolView) -> pool_pb2.PoolStatus:
    shares = view.layout.shares() if view.layout is not None else {}
    return pool_pb2.PoolStatus(
        pool_id=view.pool_id,
        health=view.health,
        workers_survivable=max(0, view.workers_survivable),
        zones_survivable=max(0, view.zones_survivable),
        owners_survivable=max(0, view.owners_survivable),
        files=view.files,
        versions=view.versions,
        logical_bytes=view.logical_bytes,
        layout_version=view.layout.version if view.layout is not None else 0,
        workers=[_worker(worker, view, shares) for worker in view.workers],
        work=[_work(work) for work in view.work],
        events=[pool_pb2.Event(time_ms=event.time_ms, kind=event.kind, text=event.text) for event in view.events],
        k=view.profile.k,
        n=view.profile.n,
        accelerator=view.accelerator,
        encrypts=view.encrypts,
        master_key_id=view.master_key_id,
        master_key_copied_ms=view.master_key_copied_ms,
    )


def told(load: pool_pb2.Load) -> WorkerLoad:
    """A worker's report of its load, with numbers limited to what can be added up and shown."""
    return WorkerLoad(**{name: _believable(getattr(load, name)) for name in WorkerLoad.__struct_fields__})


def _believable(number: NumberT) -> NumberT:
    """The number, or 0 if no machine could have it."""
    return number if 0 <= number <= COUNT_MAX else type(number)(0)


def _worker(worker: WorkerView, view: PoolView, shares: dict[int, float]) -> pool_pb2.Worker:
    record = worker.record
    return pool_pb2.Worker(
        worker_id=record.worker,
        slot=record.slot,
        address=record.address,
        shard_address=record.shard_address,
        zone=record.zone,
        owner=record.owner,
        capacity=record.capacity,
        state=worker.state.value,
        complete=record.slot in view.complete,
        load=pool_pb2.Load(**msgspec.structs.asdict(worker.load)),
        seen_ms=worker.seen_ms,
        share=shares.get(record.slot, 0.0),
        lies=view.lies.get(record.slot, 0),
    )


def _work(work: WorkStatus) -> pool_pb2.Work:
    return pool_pb2.Work(**asdict(work) | {"seconds_left": -1.0 if work.seconds_left is None else work.seconds_left})
