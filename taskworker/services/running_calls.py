"""Who calls, if it is a worker on behalf of a running call, and what such callers are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from storage.errors import PermissionDenied
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.rights import Principal, Right, Role, Scope
from taskworker.calls import call_tokens
from taskworker.calls.call import Call
from taskworker.errors import Unauthenticated, WorkerRefused
from taskworker.pool.hosting import Hosting
from taskworker.protos import functions_pb2, outside_pb2
from taskworker.rpc.authorization import Authenticator, Identify, token_of
from taskworker.rpc.member_callers import SecureCaller, member_of
from taskworker.rpc.token_channel import METADATA_KEY
from taskworker.services.capabilities import OutsideService
from taskworker.services.functions import HostingService
from taskworker.services.members import require_own_address
from taskworker.services.rpc import CallerWithDeadline

_OVER = "the call that asks is over, or does not run at this worker"


class TokensAndCalls:
    """Knows users by their tokens, and running calls by theirs.

    Args:
        users: knows users.
        call_of: returns the running call with a token; None if it is over.
    """

    def __init__(self, users: Authenticator, call_of: Callable[[str], Call | None]) -> None:
        self._users = users
        self._call_of = call_of

    def principal_of(self, text: str) -> Principal:
        """See ``Authenticator``."""
        token = call_tokens.read(text)
        return _of_call(self._call_of(token), "") if token else self._users.principal_of(text)

    def user_of(self, text: str) -> str:
        """See ``Authenticator``."""
        token = call_tokens.read(text)
        if not token:
            return self._users.user_of(text)
        call = self._call_of(token)
        return "" if call is None else call.user_id


def by_certificate(enrollment: Enrollment, hosting: Hosting) -> Identify:
    """Identify workers by their certificates, and the calls for which they act by their tokens.

    A worker acts for calls that run at it, and for no others.
    """

    def identify(caller: Any) -> Principal:
        worker = member_of(caller)
        enrollment.require(worker)
        name = f"worker:{worker.name}"
        if not any(key == METADATA_KEY for key, _ in caller.invocation_metadata() or ()):
            return Principal(name, Role.OPERATOR, (Scope(Right.JOIN),), name)
        token = call_tokens.read(token_of(caller.invocation_metadata()))
        if not token:
            raise Unauthenticated("workers send no tokens but those of the calls that they run")
        return _of_call(hosting.call_of(token, worker.name), name)

    return identify


def _of_call(call: Call | None, worker: str) -> Principal:
    if call is None:
        raise PermissionDenied(_OVER)
    # Functions have the rights that users have, whatever else their caller may do.
    return Principal(call.user_id, Role.USER, (), f"call {call.call_id} {worker}".strip(), call.token)


class MembersHostingService:
    """HostingService for workers that show certificates. Each can only speak for itself.

    Args:
        service: does what is asked, once it is known who asks.
        hosting: knows what each worker has been told to run.
        enrollment: knows the members.
    """

    def __init__(self, service: HostingService, hosting: Hosting, enrollment: Enrollment) -> None:
        self._service = service
        self._hosting = hosting
        self._enrollment = enrollment

    def Offer(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.OfferRequest, caller: SecureCaller
    ) -> functions_pb2.OfferResponse:
        """See :class:`HostingService`."""
        member = member_of(caller)
        admission = self._enrollment.require(member)
        if request.worker_id != member.name:
            raise PermissionDenied(f"worker {member.name} cannot speak for worker {request.worker_id[:80]}")
        if request.functions:
            # Otherwise, whoever runs a worker could answer calls of a function by whatever name.
            raise WorkerRefused(
                "workers that join with tokens run functions that are deployed: deploy these, instead of declaring them"
            )
        if request.address:
            require_own_address(request.address, caller.peer(), admission)
        answer = self._service.Offer(request, caller)
        answer.renew = self._enrollment.is_behind(member.name)
        return answer

    def FetchBundle(  # noqa: N802
        self, request: functions_pb2.FetchBundleRequest, caller: SecureCaller
    ) -> Iterator[functions_pb2.FetchBundlePart]:
        """See :class:`HostingService`."""
        worker = member_of(caller).name
        if not self._hosting.needs_bundle(worker, request.file_id, request.version_id):
            raise PermissionDenied(f"worker {worker} has not been told to run this version of a function")
        return self._service.FetchBundle(request, caller)


class MembersOutsideService:
    """OutsideService for workers that show certificates, for the calls that run at them.

    Args:
        service: does what is asked.
        hosting: knows which call runs where.
    """

    def __init__(self, service: OutsideService, hosting: Hosting) -> None:
        self._service = service
        self._hosting = hosting

    def GetSecret(  # noqa: N802
        self, request: outside_pb2.GetSecretRequest, caller: SecureCaller
    ) -> outside_pb2.GetSecretResponse:
        """See :class:`OutsideService`."""
        self._require_own(request.token, caller)
        return self._service.GetSecret(request, caller)

    def CallExternalApi(  # noqa: N802
        self, request: outside_pb2.ExternalApiRequest, caller: CallerWithDeadline
    ) -> outside_pb2.ExternalApiResponse:
        """See :class:`OutsideService`."""
        self._require_own(request.token, caller)
        return self._service.CallExternalApi(request, caller)

    def Resolve(  # noqa: N802
        self, request: outside_pb2.ResolveRequest, caller: CallerWithDeadline
    ) -> outside_pb2.ResolveResponse:
        """See :class:`OutsideService`."""
        self._require_own(request.token, caller)
        return self._service.Resolve(request, caller)

    def _require_own(self, token: str, caller: Any) -> None:
        if self._hosting.call_of(token, member_of(caller).name) is None:
            raise PermissionDenied(_OVER)
