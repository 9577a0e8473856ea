"""InvocationService of a worker, and the pool's client for it."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import msgspec
from cachetools import TTLCache

from storage.errors import StorageError
from taskworker.auth.contexts import Access
from taskworker.calls.call import (
    ERROR_CHARS_MAX,
    LINE_CHARS_MAX,
    LINES_MAX,
    Call,
    CallReport,
    Items,
    OutputLine,
    RunningCall,
)
from taskworker.calls.concurrency import worker_places
from taskworker.calls.large_reports import conversion_permit
from taskworker.calls.owners import CANDIDATE_OWNER, DEPLOYED_OWNER
from taskworker.errors import DeadlineExceeded, FunctionsUnavailable, ServerBusy, StorageUnavailable
from taskworker.functions.hosting.host import FunctionHost, HostedFunction
from taskworker.functions.routing.port import RoutedFunction, WorkerGone, WorkerUnable
from taskworker.protos import functions_pb2
from taskworker.protos.functions_pb2_grpc import InvocationServiceStub
from taskworker.rpc import status
from taskworker.rpc.dialling import dial
from taskworker.services.handing_over import handed_over
from taskworker.services.rpc import CallerWithDeadline, running_for, time_left_s

Fetch = Callable[[str, str, str], bytes]
"""(owner, file id, version id) → the bundle."""

log = logging.getLogger("taskworker.services")

_json = msgspec.json.Decoder(msgspec.Raw)
"""Checks a whole document without building objects from it."""

_TEXT_CHARS_MAX = LINE_CHARS_MAX + len("...")
_STREAMS = frozenset(("stdout", "stderr", "event"))
_CANCELLED_BEFORE_MAX = 1024
_CANCELLED_BEFORE_S = 60.0
_CANCEL_TIMEOUT_S = _CANCELLED_BEFORE_S
_NEVER_SENT = ("failed to connect", "connection refused", "no such file", "connect failed")


DialWorker = Callable[[str, str], grpc.Channel]
"""(id of a worker, its address) → a channel to it."""
_Place = tuple[str, str]  # id of a worker, and its address


class InvocationService:
    """Serves a worker's functions to its pool; thread-safe."""

    def __init__(self, host: FunctionHost, fetch: Fetch) -> None:
        self._host = host
        self._fetch = fetch
        self._places = worker_places()
        self._lock = threading.Lock()
        self._running: dict[str, RunningCall] = {}
        self._cancelled_before: TTLCache[str, None] = TTLCache(_CANCELLED_BEFORE_MAX, _CANCELLED_BEFORE_S)

    def Invoke(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.InvokeRequest, caller: CallerWithDeadline
    ) -> functions_pb2.InvokeResponse:
        """Run one call."""
        return _report_to_proto(self._run(request, time_left_s(caller), running_for(caller), None))

    def InvokeStream(  # noqa: N802
        self, request: functions_pb2.InvokeRequest, caller: CallerWithDeadline
    ) -> Iterator[functions_pb2.InvokeEvent]:
        """Run one call, and yield its items as they arrive."""
        left_s, running = time_left_s(caller), running_for(caller)
        work = functools.partial(self._run, request, left_s, running)
        for event in handed_over(work, running, caller.cancel):
            if isinstance(event, str):
                yield functions_pb2.InvokeEvent(item=event)
            else:
                yield functions_pb2.InvokeEvent(outcome=_report_to_proto(event.result))

    def _run(
        self, request: functions_pb2.InvokeRequest, left_s: float | None, running: RunningCall, items: Items | None
    ) -> CallReport:
        call = Call(
            function=request.function_name,
            args=tuple(request.args),
            kwargs=dict(request.kwargs),
            user_id=request.user_id,
            call_id=request.call_id,
            chain=tuple(request.chain),
            token=request.token,
        )
        try:
            call.checked()
        except StorageError as error:
            return CallReport(error=error)
        with self._places.one(len(call.chain)):
            report = self._reported(request, call, left_s, running, items)
        if isinstance(report.error, FunctionsUnavailable):
            raise report.error  # not the call's outcome: it has not run, and another worker may run it
        return report

    def _reported(
        self,
        request: functions_pb2.InvokeRequest,
        call: Call,
        left_s: float | None,
        running: RunningCall,
        items: Items | None,
    ) -> CallReport:
        try:
            with self._cancellable(call.token, running):
                return self._host.run(self._function(request), call, left_s, running, items)
        except StorageError as error:
            return CallReport(error=error)

    def Cancel(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.CancelRequest, _caller: CallerWithDeadline
    ) -> functions_pb2.CancelResponse:
        """End a call."""
        with self._lock:
            running = self._running.get(request.token)
            if running is None:
                self._cancelled_before[request.token] = None  # Cancel may arrive before its call
        if running is not None:
            running.cancel()
        return functions_pb2.CancelResponse()

    def Prepare(  # noqa: N802
        self, request: functions_pb2.PrepareRequest, _caller: CallerWithDeadline
    ) -> functions_pb2.PrepareResponse:
        """Import a version before it is deployed."""
        try:
            self._host.prepare(
                self._host.deployed_function(
                    request.version_id, lambda: self._fetch(CANDIDATE_OWNER, request.file_id, request.version_id)
                )
            )
        except FunctionsUnavailable:
            raise
        except StorageError as error:
            return functions_pb2.PrepareResponse(kind=status.kind_of(error), text=str(error))
        return functions_pb2.PrepareResponse()

    @contextmanager
    def _cancellable(self, token: str, running: RunningCall) -> Iterator[None]:
        """Within this context, `Cancel` finds the call."""
        with self._lock:
            self._running[token] = running
            cancelled = token in self._cancelled_before
        if cancelled:
            running.cancel()
        try:
            yield
        finally:
            with self._lock:
                del self._running[token]

    def _function(self, request: functions_pb2.InvokeRequest) -> HostedFunction:
        if not request.file_id:
            return self._host.own_function(request.function_name)
        return self._host.deployed_function(
            request.version_id, lambda: self._fetch(DEPLOYED_OWNER, request.file_id, request.version_id)
        )


def _report_to_proto(report: CallReport) -> functions_pb2.InvokeResponse:
    error = report.error
    response = functions_pb2.InvokeResponse(
        result=report.result,
        kind="" if error is None else status.kind_of(error),
        text="" if error is None else str(error),
        wall_ms=report.wall_s * 1000,
        cpu_ms=report.cpu_s * 1000,
        memory_bytes=report.memory_bytes,
    )
    add = response.output.add  # three times as fast as appending messages, which are copied
    with conversion_permit(len(report.output)):
        for line in report.output:
            add(time_ms=line.time_ms, stream=line.stream, text=line.text)
    return response


def _streamed(events: Iterator[functions_pb2.InvokeEvent], items: Items, running: RunningCall) -> CallReport:
    """Pass on the items of a call from a worker, treated as untrusted input."""
    for event in events:
        if event.WhichOneof("event") != "item":
            return _report_from_proto(event.outcome, in_parts=True)
        if not _is_json(event.item):
            return CallReport(error=_no_json())
        items(event.item, lambda: running.cancelled)
    return CallReport(error=status.error_of("FunctionCrashed", "the worker did not report how the call ended"))


def _is_json(text: str) -> bool:
    try:
        _json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _no_json() -> StorageError:
    return status.error_of("FunctionCrashed", "the worker answered with something that is not JSON")


def _report_from_proto(response: functions_pb2.InvokeResponse, *, in_parts: bool = False) -> CallReport:
    """Read a worker's report as untrusted input: its result must be JSON unless it came in parts."""
    error: StorageError | None = None
    if response.kind:
        error = status.error_of(response.kind, response.text[:ERROR_CHARS_MAX])
    elif not in_parts and not _is_json(response.result):
        error = _no_json()
    with conversion_permit(len(response.output)):
        output = [
            OutputLine(
                line.time_ms, stream if (stream := line.stream) in _STREAMS else "event", line.text[:_TEXT_CHARS_MAX]
            )
            for line in response.output[: LINES_MAX + 1]
        ]
    return CallReport(
        result=response.result,
        error=error,
        output=output,
        wall_s=response.wall_ms / 1000,
        cpu_s=response.cpu_ms / 1000,
        memory_bytes=response.memory_bytes,
    )


class GrpcTransport:
    """Sends calls to workers over gRPC (``taskworker.pool.hosting.Transport``). Thread-safe.

    A call blocks its thread: gRPC for Python takes a quarter of a millisecond longer for a call that can be
    cancelled, as another thread then waits for it. To end a call, the pool tells the worker instead; when a worker is
    lost, closing its channel ends its calls.

    Args:
        dial_worker: makes a channel to the worker at an address.
    """

    def __init__(self, dial_worker: DialWorker | None = None) -> None:
        self._dial = dial_worker or _dial_unknown
        self._lock = threading.Lock()
        self._stubs: dict[_Place, tuple[InvocationServiceStub, grpc.Channel]] = {}
        self._places: defaultdict[str, set[_Place]] = defaultdict(set)  # of all workers called so far
        self._under_way: defaultdict[str, set[str]] = defaultdict(set)  # tokens of running calls, by worker
        self._abandoned: set[str] = set()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            stubs, self._stubs = list(self._stubs.values()), {}
        for _, channel in stubs:
            channel.close()

    def abandon(self, worker: str) -> None:
        """See ``Transport``."""
        with self._lock:
            self._abandoned.update(self._under_way.get(worker, ()))
            places = self._places.pop(worker, set())
            stubs = [stub for place in places if (stub := self._stubs.pop(place, None)) is not None]
        for _, channel in stubs:
            channel.close()

    def invoke(
        self,
        worker: str,
        address: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        """See ``Transport``."""
        request = functions_pb2.InvokeRequest(
            call_id=call.call_id,
            function_name=function.name,
            file_id=function.file_id,
            version_id=function.version if function.file_id else "",
            args=call.args,
            kwargs=call.kwargs,
            user_id=call.user_id,
            chain=call.chain,
            token=call.token,
        )
        try:
            with self._lock:
                self._under_way[worker].add(call.token)
                stub = self._stub(worker, address)
            with running.ended_by(lambda: _tell_to_end(stub, call.token)):
                if items is not None:
                    events = stub.InvokeStream(request, timeout=timeout_s)
                    try:
                        return _streamed(events, items, running)
                    finally:
                        events.cancel()  # no effect if it has ended
                response = stub.Invoke(request, timeout=timeout_s)
        except grpc.RpcError as error:
            with self._lock:
                abandoned = call.token in self._abandoned
            if abandoned:
                raise WorkerGone(worker, may_have_run=True) from error
            raise self._failure(error, worker, address, function) from error
        except ValueError as error:  # gRPC's, of a channel that was closed before the call began
            raise WorkerGone(worker, may_have_run=False) from error
        finally:
            with self._lock:
                self._under_way[worker].discard(call.token)
                if not self._under_way[worker]:
                    del self._under_way[worker]
                self._abandoned.discard(call.token)
        return _report_from_proto(response)

    def prepare(self, worker: str, address: str, function: RoutedFunction, timeout_s: float) -> None:
        """See ``Transport``."""
        request = functions_pb2.PrepareRequest(
            function_name=function.name, file_id=function.file_id, version_id=function.version
        )
        with self._lock:
            stub = self._stub(worker, address)
        try:
            answer = stub.Prepare(request, timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ServerBusy(f"worker {worker} is of an earlier release, which cannot try functions") from error
            raise self._failure(error, worker, address, function) from error
        except ValueError as error:  # gRPC's, of a channel that was closed before the call began
            raise WorkerGone(worker, may_have_run=False) from error
        if answer.kind:
            raise status.error_of(answer.kind, answer.text[:ERROR_CHARS_MAX])

    def _failure(self, error: grpc.RpcError, worker: str, address: str, function: RoutedFunction) -> Exception:
        failure = status.decode(error, address)
        if isinstance(failure, ServerBusy):
            return failure
        if isinstance(failure, FunctionsUnavailable):
            return WorkerUnable(str(failure))
        if isinstance(failure, StorageUnavailable):
            text = str(error).lower()
            return WorkerGone(worker, may_have_run=not any(sign in text for sign in _NEVER_SENT))
        if isinstance(failure, DeadlineExceeded):
            return DeadlineExceeded(f"function {function.name}: the call did not end within its time limit")
        return failure

    def _stub(self, worker: str, address: str) -> InvocationServiceStub:
        """The stub for an address; the caller holds the lock."""
        place = (worker, address)
        self._places[worker].add(place)
        known = self._stubs.get(place)
        if known is None:
            channel = self._dial(worker, address)
            known = self._stubs[place] = (InvocationServiceStub(channel), channel)
        return known[0]


def _dial_unknown(_worker: str, address: str) -> grpc.Channel:
    return dial(address, access=Access())  # without this login's token, which the worker could use


def _tell_to_end(stub: InvocationServiceStub, token: str) -> None:
    """Tell a worker to end a call, without waiting; the call itself returns once it has ended."""
    with contextlib.suppress(ValueError):  # the channel is closed, so the call has ended
        request = functions_pb2.CancelRequest(token=token)
        telling = stub.Cancel.future(request, timeout=_CANCEL_TIMEOUT_S, wait_for_ready=True)
        telling.add_done_callback(_told)  # also keeps a reference: gRPC cancels calls without one


def _told(telling: grpc.Future[functions_pb2.CancelResponse]) -> None:
    """Log it if the worker could not be told; the call then runs to its limit, or is lost with the worker."""
    with contextlib.suppress(grpc.FutureCancelledError):
        error = telling.exception()
        if isinstance(error, grpc.RpcError) and error.code() is not grpc.StatusCode.CANCELLED:  # its channel closed
            log.warning("a worker could not be told to end a call: %s", error.details())
