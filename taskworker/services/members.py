"""Services of ``members.proto``, and PoolService as it is served to members."""

from __future__ import annotations

import ipaddress
from hashlib import sha256
from urllib.parse import unquote

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.auth.enrollment import Enrollment, Issued
from taskworker.auth.join_tokens import Admission
from taskworker.errors import WorkerRefused
from taskworker.protos import members_pb2, pool_pb2
from taskworker.rpc.binding import Caller
from taskworker.rpc.member_callers import SecureCaller, member_of
from taskworker.services.pool import PoolService

_STATE_DIGITS = 16


class EnrollmentService:
    """Serves workers that are not members yet.

    Args:
        enrollment: admits them.
        pool_id: id of the pool.

    Attributes:
        members_port: the port at which members are served.
    """

    def __init__(self, enrollment: Enrollment, pool_id: str) -> None:
        self._enrollment = enrollment
        self._pool_id = pool_id
        self.members_port = 0

    def Enroll(  # noqa: N802 - the names are the contract's
        self, request: members_pb2.EnrollRequest, _caller: Caller
    ) -> members_pb2.EnrollResponse:
        """Trade a token for a certificate."""
        issued = self._enrollment.enroll(request.worker_id, request.secret, request.certificate_request, request.now_ms)
        return members_pb2.EnrollResponse(membership=_membership(issued, self._pool_id), members_port=self.members_port)


class MemberService:
    """Serves members.

    Args:
        enrollment: renews their certificates.
        pool_id: id of the pool.
    """

    def __init__(self, enrollment: Enrollment, pool_id: str) -> None:
        self._enrollment = enrollment
        self._pool_id = pool_id

    def Renew(self, request: members_pb2.RenewRequest, caller: SecureCaller) -> members_pb2.Membership:  # noqa: N802
        """Issue a new certificate."""
        issued = self._enrollment.renew(member_of(caller), request.certificate_request)
        return _membership(issued, self._pool_id)


class MembersPoolService:
    """PoolService for workers that show certificates. Each can only speak for itself.

    Args:
        service: does what is asked, once it is known who asks.
        enrollment: knows the members.
    """

    def __init__(self, service: PoolService, enrollment: Enrollment) -> None:
        self._service = service
        self._enrollment = enrollment

    def Describe(  # noqa: N802
        self, request: pool_pb2.DescribeRequest, caller: SecureCaller
    ) -> pool_pb2.PoolDescription:
        """See :class:`PoolService`."""
        self._enrollment.require(member_of(caller))
        return self._service.Describe(request, caller)

    def Join(self, request: pool_pb2.JoinRequest, caller: SecureCaller) -> pool_pb2.JoinResponse:  # noqa: N802
        """Add a worker to the pool, as what it was admitted, at an address that is its own."""
        admission = self._require_self(caller, request.worker_id)
        request.zone = _as_admitted("zone", request.zone, admission.zone)
        request.owner = _as_admitted("owner", request.owner, admission.owner)
        if admission.capacity_max:
            request.capacity = min(request.capacity, admission.capacity_max)
        for address in (request.address, request.shard_address, *filter(None, [request.clients_address])):
            require_own_address(address, caller.peer(), admission)
        return self._service.Join(request, caller)

    def Heartbeat(  # noqa: N802
        self, request: pool_pb2.HeartbeatRequest, caller: SecureCaller
    ) -> pool_pb2.HeartbeatResponse:
        """See :class:`PoolService`."""
        self._require_self(caller, request.worker_id)
        answer = self._service.Heartbeat(request, caller)
        answer.renew = self._enrollment.is_behind(request.worker_id)
        denied = self._enrollment.denied_now()
        answer.denied_state = sha256("/".join(denied).encode()).hexdigest()[:_STATE_DIGITS] if denied else ""
        if answer.denied_state != request.denied_state:
            answer.denied.extend(denied)
        return answer

    def Leave(self, request: pool_pb2.LeaveRequest, caller: SecureCaller) -> pool_pb2.LeaveResponse:  # noqa: N802
        """See :class:`PoolService`."""
        self._require_self(caller, request.worker_id)
        return self._service.Leave(request, caller)

    def _require_self(self, caller: SecureCaller, worker: str) -> Admission:
        member = member_of(caller)
        admission = self._enrollment.require(member)
        if worker != member.name:
            raise PermissionDenied(f"worker {member.name} cannot speak for worker {worker}")
        return admission

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):
            raise AttributeError(name)
        return _refuse_operators_call


def _refuse_operators_call(_request: object, _caller: Caller) -> object:
    raise PermissionDenied("this call is for operators, not for members; make it at the pool's own address")


class TokensOnly(PoolService):
    """PoolService for users and operators of a pool whose workers join elsewhere, with tokens."""

    def Join(self, request: pool_pb2.JoinRequest, _caller: Caller) -> pool_pb2.JoinResponse:  # noqa: N802
        """Refuse: nobody here has shown who they are."""
        raise WorkerRefused(
            f"workers of this pool join with tokens: ask its operator for one (`taskworker worker token --id "
            f"{request.worker_id}`), and start the worker with --token"
        )

    def Heartbeat(  # noqa: N802
        self, request: pool_pb2.HeartbeatRequest, caller: Caller
    ) -> pool_pb2.HeartbeatResponse:
        """Refuse likewise."""
        raise PermissionDenied("workers of this pool show certificates, at the address where they join")

    def Leave(self, request: pool_pb2.LeaveRequest, caller: Caller) -> pool_pb2.LeaveResponse:  # noqa: N802
        """Refuse likewise."""
        raise PermissionDenied("workers of this pool show certificates, at the address where they join")


def _membership(issued: Issued, pool_id: str) -> members_pb2.Membership:
    return members_pb2.Membership(
        certificate=issued.certificate_pem, authorities=issued.authorities_pem, pool_id=pool_id
    )


def _as_admitted(what: str, claimed: str, admitted: str) -> str:
    if admitted and claimed not in ("", admitted):
        raise WorkerRefused(f"the worker was admitted with the {what} {admitted!r}, and cannot choose {claimed!r}")
    return admitted or claimed


def require_own_address(address: str, peer: str, admission: Admission) -> None:
    """Refuse an address of another machine: the pool would connect to it.

    A name is only taken from the operator, as it could stand for another machine a moment later.

    Raises:
        WorkerRefused: it is not where the worker calls from, nor the host that it was admitted with.
        InvalidArgument: it is malformed.
    """
    host, _, port = address.rpartition(":")
    if not host or address.startswith("unix:") or not port.isascii() or not port.isdigit():
        raise InvalidArgument(f"a worker's address is host:port, not {address!r}")
    host, origin = host.removeprefix("[").removesuffix("]"), ip_of_peer(peer)
    is_own = host == admission.host if admission.host else _plain_ip(host) == origin != ""
    if not is_own:
        raise WorkerRefused(
            f"worker {admission.worker} says that it is reached at {host}, but calls from {origin or 'elsewhere'}; let "
            f"it listen on that address or on 0.0.0.0, or make its token with --host {host}"
        )


def ip_of_peer(peer: str) -> str:
    """The address in what gRPC calls the peer: ``ipv4:1.2.3.4:5`` or ``ipv6:[::1]:5``, percent-encoded."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return _plain_ip(rest.rpartition(":")[0].removeprefix("[").removesuffix("]"))


def _plain_ip(text: str) -> str:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
