"""InvocationService of a worker, and the pool's way to it."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Callable

import grpc

from storage.errors import StorageError
from taskworker import functions_pb2
from taskworker.client.channel import CHANNEL_OPTIONS, target_of
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionsUnavailable, ServerBusy, StorageUnavailable
from taskworker.functions.calls import Call, CallReport, OutputLine, RunningCall
from taskworker.functions.host import FunctionHost, HostedFunction
from taskworker.functions.routing import RoutedFunction, WorkerGone
from taskworker.functions_pb2_grpc import InvocationServiceStub
from taskworker.services.rpc import CallerWithDeadline, time_left
from taskworker.wire import status

Fetch = Callable[[str, str], bytes]
"""(file id, version id) → the deployed bundle."""

_NEVER_SENT = ("failed to connect", "connection refused", "no such file", "connect failed")


class InvocationService:
    """Serves a worker's functions to its pool; thread-safe."""

    def __init__(self, host: FunctionHost, fetch: Fetch) -> None:
        self._host = host
        self._fetch = fetch

    def Invoke(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.InvokeRequest, caller: CallerWithDeadline
    ) -> functions_pb2.InvokeResponse:
        """Run one call."""
        call = Call(
            function=request.function_name,
            args=tuple(request.args),
            kwargs=dict(request.kwargs),
            user_id=request.user_id,
            call_id=request.call_id,
            chain=tuple(request.chain),
            token=request.token,
        )
        running = RunningCall()
        caller.add_callback(running.cancel)
        try:
            function = self._function(request)
            report = self._host.run(function, call, time_left(caller), running)
        except StorageError as error:
            report = CallReport(error=error)
        if isinstance(report.error, FunctionsUnavailable):
            raise report.error  # not what became of the call: it has not run, and others may run it
        return _report_to_proto(report)

    def _function(self, request: functions_pb2.InvokeRequest) -> HostedFunction:
        if not request.file_id:
            return self._host.own_function(request.function_name)
        return self._host.deployed_function(
            request.version_id, lambda: self._fetch(request.file_id, request.version_id)
        )


def _report_to_proto(report: CallReport) -> functions_pb2.InvokeResponse:
    error = report.error
    return functions_pb2.InvokeResponse(
        result=report.result,
        kind="" if error is None else status.kind_of(error),
        text="" if error is None else str(error),
        output=[
            functions_pb2.LogLine(time_ms=line.time_ms, stream=line.stream, text=line.text) for line in report.output
        ],
        wall_ms=report.wall_s * 1000,
        cpu_ms=report.cpu_s * 1000,
        memory_bytes=report.memory_bytes,
    )


def _report_from_proto(response: functions_pb2.InvokeResponse) -> CallReport:
    """What a worker told, read as from a stranger: its result must be JSON."""
    error: StorageError | None = None
    if response.kind:
        error = status.error_of(response.kind, response.text)
    else:
        try:
            json.loads(response.result)
        except (ValueError, RecursionError):
            error = status.error_of("FunctionCrashed", "the worker answered with something that is no JSON")
    return CallReport(
        result=response.result,
        error=error,
        output=[OutputLine(line.time_ms, line.stream, line.text) for line in response.output],
        wall_s=response.wall_ms / 1000,
        cpu_s=response.cpu_ms / 1000,
        memory_bytes=response.memory_bytes,
    )


class GrpcTransport:
    """Hands calls to workers over gRPC (``taskworker.pool.hosting.Transport``). Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._under_way: defaultdict[str, set[grpc.Future[functions_pb2.InvokeResponse]]] = defaultdict(set)
        self._abandoned: set[grpc.Future[functions_pb2.InvokeResponse]] = set()

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    def abandon(self, worker: str) -> None:
        """See ``Transport``."""
        with self._lock:
            calls = list(self._under_way[worker])
            self._abandoned.update(calls)
        for call in calls:
            call.cancel()

    def invoke(
        self,
        worker: str,
        address: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
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
        stub = InvocationServiceStub(self._channel(address))
        future = stub.Invoke.future(request, timeout=timeout_s)
        with self._lock:
            self._under_way[worker].add(future)
        try:
            with running.ended_by(future.cancel):
                return _report_from_proto(future.result())
        except grpc.FutureCancelledError:
            raise self._cancelled(future, worker) from None
        except grpc.RpcError as error:
            raise self._failure(error, worker, address, function) from error
        finally:
            with self._lock:
                self._under_way[worker].discard(future)
                self._abandoned.discard(future)

    def _cancelled(self, future: grpc.Future[functions_pb2.InvokeResponse], worker: str) -> Exception:
        with self._lock:
            abandoned = future in self._abandoned
        if abandoned:
            return WorkerGone(worker, may_have_run=True)
        return CallAbandoned("the caller cancelled, or went away; the call was ended")

    def _failure(self, error: grpc.RpcError, worker: str, address: str, function: RoutedFunction) -> Exception:
        failure = status.decode(error, address)
        if isinstance(failure, ServerBusy):
            return failure
        if isinstance(failure, FunctionsUnavailable):
            return ServerBusy(f"worker {worker} runs no functions: {failure}")
        if isinstance(failure, StorageUnavailable):
            text = str(error).lower()
            return WorkerGone(worker, may_have_run=not any(sign in text for sign in _NEVER_SENT))
        if isinstance(failure, DeadlineExceeded):
            return DeadlineExceeded(f"function {function.name}: the call did not end within its time limit")
        return failure

    def _channel(self, address: str) -> grpc.Channel:
        with self._lock:
            if address not in self._channels:
                self._channels[address] = grpc.insecure_channel(target_of(address), options=CHANNEL_OPTIONS)
            return self._channels[address]
