"""RPCService: calling functions by name."""

from __future__ import annotations

import secrets
from typing import Protocol

from taskworker import taskworker_pb2
from taskworker.functions.calls import Call, RunningCall
from taskworker.functions.routing import CallRouter
from taskworker.services.binding import Caller
from taskworker.wire.chains import read_chain


class CallerWithDeadline(Caller, Protocol):
    """Who waits for a call's result. gRPC's ServicerContext is one."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller waits no longer; None, or more than anyone waits, if for ever."""

    def add_callback(self, callback: object) -> bool:
        """Have ``callback`` called when the call is over; False if it is already."""

    def invocation_metadata(self) -> object:
        """Pairs that came with the call."""


_NO_DEADLINE_S = 1e9


def time_left(caller: CallerWithDeadline) -> float | None:
    """Seconds until the caller waits no longer; None if it waits for ever, for which gRPC has a huge number."""
    left = caller.time_remaining()
    return None if left is None or left > _NO_DEADLINE_S else left


class RpcService:
    """Serves a router through the messages of ``taskworker.proto``; thread-safe."""

    def __init__(self, router: CallRouter) -> None:
        self._router = router

    def CallFunction(  # noqa: N802 - the names are the contract's
        self, request: taskworker_pb2.FunctionCallRequest, caller: CallerWithDeadline
    ) -> taskworker_pb2.FunctionCallResponse:
        """Call a function; its result as JSON."""
        call_id, chain = read_chain(caller.invocation_metadata())
        call = Call(
            function=request.function_name,
            args=tuple(request.args),
            kwargs=dict(request.kwargs),
            user_id=request.user_id,
            call_id=call_id or secrets.token_hex(8),
            chain=chain,
        )
        running = RunningCall()
        caller.add_callback(running.cancel)
        result = self._router.call(call, time_left(caller), running)
        return taskworker_pb2.FunctionCallResponse(result=result, status=True)
