"""RPCService and StreamService: calling functions by name."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator
from typing import Protocol, TypeVar

import grpc

from taskworker.calls.call import Call, RunningCall
from taskworker.calls.chains import read_chain
from taskworker.errors import CallAbandoned
from taskworker.functions.routing.router import CallRouter
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.rpc.binding import Caller
from taskworker.services.handing_over import handed_over

AnswerT = TypeVar("AnswerT")

_FOREVER_S = 10 * 365 * 86_400.0


class CallerWithDeadline(Caller, Protocol):
    """Who waits for a call's result. gRPC's ServicerContext is one."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller waits no longer; None, or centuries, if it waits for ever."""

    def add_callback(self, callback: object) -> bool:
        """Have ``callback`` called when the call is over; False if it is already."""

    def invocation_metadata(self) -> object:
        """Pairs that came with the call."""

    def cancel(self) -> object:
        """End the call from this side, whatever it is at."""


def time_left_s(caller: CallerWithDeadline) -> float | None:
    """Seconds until the caller waits no longer; None if it waits for ever.

    gRPC's synchronous server says 9.2e18 of a caller without a deadline, which no timeout takes.
    """
    left = caller.time_remaining()
    return None if left is None or left > _FOREVER_S else left


def running_for(caller: CallerWithDeadline) -> RunningCall:
    """A call that ends when its caller goes away."""
    running = RunningCall()
    if not caller.add_callback(running.cancel):
        running.cancel()  # the caller is gone already
    return running


def awaited(answer: grpc.Future[AnswerT], running: RunningCall) -> AnswerT:
    """The answer of a call that another is waiting for; ending that ends this.

    Raises:
        CallAbandoned: it was ended.
        grpc.RpcError: it failed.
    """
    with running.ended_by(answer.cancel):
        try:
            return answer.result()
        except grpc.FutureCancelledError:
            raise CallAbandoned("the call that asked is over") from None


class RpcService:
    """Serves a router through the messages of ``taskworker.proto``; thread-safe."""

    def __init__(self, router: CallRouter) -> None:
        self._router = router

    def CallFunction(  # noqa: N802 - the names are the contract's
        self, request: taskworker_pb2.FunctionCallRequest, caller: CallerWithDeadline
    ) -> taskworker_pb2.FunctionCallResponse:
        """Call a function; its result as JSON."""
        result = self._router.call(_call_of(request, caller), time_left_s(caller), running_for(caller))
        return taskworker_pb2.FunctionCallResponse(result=result, status=True)


class StreamService:
    """Serves a router through ``StreamService`` of ``functions.proto``; thread-safe."""

    def __init__(self, router: CallRouter) -> None:
        self._router = router

    def StreamFunction(  # noqa: N802
        self, request: functions_pb2.StreamFunctionRequest, caller: CallerWithDeadline
    ) -> Iterator[functions_pb2.FunctionItem]:
        """Call a function; what it gives, as it comes."""
        call, left_s, running = _call_of(request, caller), time_left_s(caller), running_for(caller)
        work = functools.partial(self._router.stream, call, left_s, running)
        for item in handed_over(work, running, caller.cancel):
            if isinstance(item, str):
                yield functions_pb2.FunctionItem(item=item)


def _call_of(
    request: taskworker_pb2.FunctionCallRequest | functions_pb2.StreamFunctionRequest, caller: CallerWithDeadline
) -> Call:
    chain = read_chain(caller.invocation_metadata())
    return Call(
        function=request.function_name,
        args=tuple(request.args),
        kwargs=dict(request.kwargs),
        user_id=request.user_id,
        call_id=chain.call_id or secrets.token_hex(8),
        chain=chain.functions,
        parent=chain.parent,
    )
