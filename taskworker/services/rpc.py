"""RPCService and StreamService: calls of functions by name."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator
from typing import Protocol, TypeVar

import grpc

from taskworker.auth.rights import Right
from taskworker.calls.call import Call, RunningCall
from taskworker.calls.chains import parent_in
from taskworker.errors import CallAbandoned
from taskworker.functions.routing.router import CallRouter
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.rpc.authorization import KnownCaller
from taskworker.rpc.binding import Caller, Codec
from taskworker.rpc.limits import CALL_BYTES_MAX
from taskworker.services.handing_over import handed_over

AnswerT = TypeVar("AnswerT")

_FOREVER_S = 10 * 365 * 86_400.0


class CallerWithDeadline(Caller, Protocol):
    """The caller that waits for a call's result. gRPC's ServicerContext implements it."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller stops waiting; None, or centuries, if it waits for ever."""

    def add_callback(self, callback: object) -> bool:
        """Call ``callback`` when the call is over; False if it already is."""

    def invocation_metadata(self) -> object:
        """The metadata of the call."""

    def cancel(self) -> object:
        """End the call from the server's side."""


def time_left_s(caller: CallerWithDeadline) -> float | None:
    """Seconds until the caller stops waiting; None if it waits for ever.

    For a caller without a deadline, gRPC's synchronous server returns 9.2e18, which no timeout accepts.
    """
    left = caller.time_remaining()
    return None if left is None or left > _FOREVER_S else left


def running_for(caller: CallerWithDeadline) -> RunningCall:
    """A running call that ends when its caller goes away."""
    running = RunningCall()
    if not caller.add_callback(running.cancel):
        running.cancel()  # the caller has already gone
    return running


def awaited(answer: grpc.Future[AnswerT], running: RunningCall) -> AnswerT:
    """Wait for the response to a gRPC call, which is cancelled if ``running`` is ended.

    Raises:
        CallAbandoned: ``running`` was ended.
        grpc.RpcError: the gRPC call failed.
    """
    with running.ended_by(answer.cancel):
        try:
            return answer.result()
        except grpc.FutureCancelledError:
            raise CallAbandoned("the call that waited for this has ended") from None


CALL_CODECS = dict.fromkeys(("CallFunction", "StreamFunction"), Codec(bytes_max=CALL_BYTES_MAX))
"""For calls of functions, whose arguments may be larger than other messages."""


class RpcService:
    """RPCService of ``taskworker.proto``, on top of a router; thread-safe."""

    def __init__(self, router: CallRouter) -> None:
        self._router = router

    def CallFunction(  # noqa: N802 - the names are the contract's
        self, request: taskworker_pb2.FunctionCallRequest, caller: CallerWithDeadline
    ) -> taskworker_pb2.FunctionCallResponse:
        """Call a function, and return its result as JSON."""
        result = self._router.call(_call_of(request, caller), time_left_s(caller), running_for(caller))
        return taskworker_pb2.FunctionCallResponse(result=result, status=True)


class StreamService:
    """StreamService of ``functions.proto``, on top of a router; thread-safe."""

    def __init__(self, router: CallRouter) -> None:
        self._router = router

    def StreamFunction(  # noqa: N802
        self, request: functions_pb2.StreamFunctionRequest, caller: CallerWithDeadline
    ) -> Iterator[functions_pb2.FunctionItem]:
        """Call a function, and yield its items as they arrive."""
        call, left_s, running = _call_of(request, caller), time_left_s(caller), running_for(caller)
        work = functools.partial(self._router.stream, call, left_s, running)
        for item in handed_over(work, running, caller.cancel):
            if isinstance(item, str):
                yield functions_pb2.FunctionItem(item=item)


def _call_of(
    request: taskworker_pb2.FunctionCallRequest | functions_pb2.StreamFunctionRequest, caller: CallerWithDeadline
) -> Call:
    return Call(
        function=request.function_name,
        args=tuple(request.args),
        kwargs=dict(request.kwargs),
        user_id=request.user_id,
        call_id=secrets.token_hex(8),
        parent=_parent_of(caller),
    )


def _parent_of(caller: CallerWithDeadline) -> str:
    """The token of the call that makes this one. The router knows by it all calls that led to this one.

    Workers send it for their own calls. What anybody else sends is ignored.
    """
    if isinstance(caller, KnownCaller):
        principal = caller.principal
        if principal.call or not principal.has(Right.JOIN):
            return principal.call
    return parent_in(caller.invocation_metadata())
