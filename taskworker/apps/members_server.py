"""The servers for a pool's members: they have ports and threads of their own, so that no user can delay a heartbeat."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

import grpc

from storage.errors import StorageError
from taskworker.auth.authority import Authority
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.server_certificates import ServerTls
from taskworker.auth.tls import MemberCredentials
from taskworker.protos import members_pb2, pool_pb2
from taskworker.rpc.admission import Entry, Gate, ServerLimits
from taskworker.rpc.authorization import Audit
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.member_callers import member_of
from taskworker.rpc.serving import Server
from taskworker.services.members import EnrollmentService, MemberService, MembersPoolService, ip_of_peer
from taskworker.services.pool import PoolService

log = logging.getLogger(__name__)

_LOOK_S = 60.0
_ENROLLMENT = members_pb2.DESCRIPTOR.services_by_name["EnrollmentService"]
_MEMBERS = members_pb2.DESCRIPTOR.services_by_name["MemberService"]
_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]
_ENROLLMENTS = 32  # at once, each with a thread; an address may have half of those that the others leave
_ENTRANCE = ServerLimits(message_s=2.0, connections=512, streams_each=4)  # anybody may knock
_CALLS = 64  # of members at once, each with a thread; heartbeats take a moment, joins a few calls to the worker


class MembersCalls:
    """The places for calls of members, of which a worker may have half of those that the others leave.

    Args:
        added: how many calls of further services there may be at once.
        enrollment: knows the members; others have no calls to make.

    Attributes:
        most: how many calls there may be at once.
        entry: gives calls their places.
    """

    def __init__(self, added: int, enrollment: Enrollment) -> None:
        self.most = _CALLS + added
        gate = Gate(
            self.most,
            f"{self.most} calls of workers are under way, as many as this pool allows",
            kind="calls",
            who="worker",
        )
        self.entry = Entry(gate, lambda caller: f"worker:{enrollment.require(member_of(caller)).worker}")


class MembersServer:
    """Serves workers that join with tokens, and members. ``start`` and ``stop`` may be called once each.

    Args:
        service: the pool's service.
        enrollment: admits workers.
        credentials: what the pool shows.
        hide: paths not to show to callers.
        added: further services for workers, by full name.
        calls: the places for calls of members.
        authority: vouches for the pool to workers that join.
        renew: renews the credentials if they are due.
        audit: is told of calls.
    """

    def __init__(
        self,
        service: PoolService,
        enrollment: Enrollment,
        credentials: MemberCredentials,
        hide: tuple[str, ...],
        *,
        added: Mapping[str, grpc.GenericRpcHandler],
        calls: MembersCalls,
        authority: Authority,
        renew: Callable[[], None],
        audit: Audit,
    ) -> None:
        self._credentials = credentials
        self._enrollment = enrollment
        self._authority = authority
        self._renew = renew
        self._stopping = threading.Event()
        self._renewing = threading.Thread(target=self._keep_renewing, name="certificates", daemon=True)
        pool_id = credentials.identity.pool
        self._joining = EnrollmentService(enrollment, pool_id)
        members = MemberService(enrollment, pool_id)
        knocking = Gate(
            _ENROLLMENTS,
            f"{_ENROLLMENTS} workers are joining, as many as this pool allows",
            kind="calls",
            who="address",
        )
        entrance = Entry(knocking, lambda caller: ip_of_peer(caller.peer()))
        self._entrance = Server(
            {
                _ENROLLMENT.full_name: generic_handler(
                    _ENROLLMENT, self._joining, hide=hide, limits=_ENTRANCE, audit=audit, entry=entrance
                )
            },
            calls=_ENROLLMENTS,
            limits=_ENTRANCE,
            entry=entrance,
            for_strangers=True,
        )
        self._members = Server(
            {
                _MEMBERS.full_name: generic_handler(_MEMBERS, members, hide=hide, audit=audit, entry=calls.entry),
                _POOL.full_name: generic_handler(
                    _POOL, MembersPoolService(service, enrollment), hide=hide, audit=audit, entry=calls.entry
                ),
                **added,
            },
            calls=calls.most,
            entry=calls.entry,
        )

    def start(self, address: str, members_port: int = 0) -> str:
        """Listen on ``host:port`` for workers that join, and on another port of the same host for members.

        Args:
            address: where workers join; port 0: any free one.
            members_port: the other port; 0: the former one, or if there was none, any free one.

        Returns:
            The address at which workers join.

        Raises:
            InvalidArgument: the address is malformed.
            StorageUnavailable: an address is taken or cannot be bound.
        """
        host = address.rpartition(":")[0]
        # To workers that join, the authority vouches for the pool that their tokens name; it is shown as well.
        entrance = ServerTls(self._authority, address).credentials()
        wanted = members_port or self._enrollment.port
        port = self._members.start(f"{host}:{wanted}", self._credentials.for_grpc_server())
        self._enrollment.keep_port(port)
        self._joining.members_port = port
        found = f"{host}:{self._entrance.start(address, entrance)}"
        self._renewing.start()
        return found

    def _keep_renewing(self) -> None:
        while not self._stopping.wait(_LOOK_S):
            try:
                self._renew()
            except (OSError, StorageError) as error:  # such as no descriptors for the moment
                log.warning("the pool's certificate could not be renewed, and is tried again: %s", error)
            except Exception:  # must not end the thread: once the certificate expires, no worker talks to the pool
                log.exception("the pool's certificate could not be renewed, and is tried again")

    def stop(self, grace_s: float) -> None:
        """Stop both servers; running calls have ``grace_s`` seconds."""
        self._stopping.set()
        if self._renewing.is_alive():
            self._renewing.join()
        self._entrance.stop(grace_s)
        self._members.stop(grace_s)
