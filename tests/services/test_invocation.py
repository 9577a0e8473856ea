"""Calls handed to a worker over gRPC, and ended there: as often as asked for, and however full the worker is."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import grpc
import pytest

from taskworker.calls.call import ERROR_CHARS_MAX, LINE_CHARS_MAX, LINES_MAX, Call, CallReport, Items, RunningCall
from taskworker.errors import CallAbandoned, FunctionBroken, FunctionCrashed, ServerBusy
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter
from taskworker.protos import functions_pb2, taskworker_pb2
from taskworker.protos.functions_pb2_grpc import InvocationServiceServicer, add_InvocationServiceServicer_to_server
from taskworker.services.invocation import GrpcTransport
from taskworker.services.rpc import RpcService

FUNCTION = RoutedFunction("f", "v1")
UNTOLD_S = 5.0


class Worker(InvocationServiceServicer):
    """Its calls end when they are cancelled; the result is whether they were. It refuses so many cancels first."""

    def __init__(self, refusals: int = 0) -> None:
        self.begun = threading.Semaphore(0)
        self._ended: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self._refusals = refusals

    def Invoke(  # noqa: N802 - the names are the contract's
        self, request: functions_pb2.InvokeRequest, context: grpc.ServicerContext
    ) -> functions_pb2.InvokeResponse:
        ended = self._ended[request.token]
        self.begun.release()
        return functions_pb2.InvokeResponse(result="true" if ended.wait(UNTOLD_S) else "false")

    def InvokeStream(  # noqa: N802
        self, request: functions_pb2.InvokeRequest, context: grpc.ServicerContext
    ) -> Iterator[functions_pb2.InvokeEvent]:
        for item in request.args:
            yield functions_pb2.InvokeEvent(item=item)
        if request.call_id == "lies":
            lie = functions_pb2.LogLine(time_ms=-1, stream="x" * 9_999, text="y" * 99_999)
            yield functions_pb2.InvokeEvent(outcome=functions_pb2.InvokeResponse(output=[lie]))
        elif request.call_id == "much":
            lines = [functions_pb2.LogLine(stream="stdout", text="y")] * 20_000
            yield functions_pb2.InvokeEvent(outcome=functions_pb2.InvokeResponse(output=lines))
        elif request.call_id != "no outcome":
            yield functions_pb2.InvokeEvent(outcome=functions_pb2.InvokeResponse())

    def Prepare(  # noqa: N802
        self, request: functions_pb2.PrepareRequest, context: grpc.ServicerContext
    ) -> functions_pb2.PrepareResponse:
        match request.function_name:
            case "broken":
                return functions_pb2.PrepareResponse(kind="FunctionBroken", text="no such module\n" * 9_000)
            case "old":
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return functions_pb2.PrepareResponse()

    def Cancel(  # noqa: N802
        self, request: functions_pb2.CancelRequest, context: grpc.ServicerContext
    ) -> functions_pb2.CancelResponse:
        if self._refusals:
            self._refusals -= 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many calls as may be are under way")
        self._ended[request.token].set()
        return functions_pb2.CancelResponse()


class Served:
    """A worker on loopback, and the pool's way to it."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._server = grpc.server(ThreadPoolExecutor(8))
        add_InvocationServiceServicer_to_server(worker, self._server)
        self._address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        self._transport = GrpcTransport()

    def invoke(self, token: str, running: RunningCall) -> CallReport:
        """Run a call to its end."""
        return self._transport.invoke("w", self._address, FUNCTION, Call("f", token=token), 30.0, running)

    def stream(self, call: Call) -> tuple[list[str], CallReport]:
        """Run a call to its end; what it gave, and its report."""
        items: list[str] = []

        def take(item: str, _over: Callable[[], bool]) -> None:
            items.append(item)

        return items, self._transport.invoke("w", self._address, FUNCTION, call, 30.0, RunningCall(), take)

    def prepare(self, function: str) -> None:
        """Have a function imported."""
        self._transport.prepare("w", self._address, RoutedFunction(function, "1", "file"), 30.0)

    def close(self) -> None:
        self._transport.close()
        self._server.stop(0).wait()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served(Worker())
    yield served
    served.close()


def test_a_worker_imports_a_function_or_says_why_it_cannot(served: Served) -> None:
    served.prepare("f")
    with pytest.raises(FunctionBroken, match="no such module") as raised:
        served.prepare("broken")
    assert len(str(raised.value)) <= ERROR_CHARS_MAX
    with pytest.raises(ServerBusy, match="earlier release"):
        served.prepare("old")


def test_what_a_worker_says_that_a_call_printed_is_bounded(served: Served) -> None:
    _, report = served.stream(Call("f", call_id="lies"))
    (line,) = report.output
    assert (line.stream, len(line.text)) == ("event", LINE_CHARS_MAX + 3)
    _, report = served.stream(Call("f", call_id="much"))
    assert len(report.output) == LINES_MAX + 1


def test_every_cancel_ends_its_call(served: Served) -> None:
    with ThreadPoolExecutor(1) as callers:
        for number in range(50):
            running = RunningCall()
            call = callers.submit(served.invoke, str(number), running)
            assert served.worker.begun.acquire(timeout=30)
            running.cancel()
            assert call.result(30).result == "true"


def test_a_call_cancelled_before_its_worker_is_connected_ends(served: Served) -> None:
    running = RunningCall()
    running.cancel()
    assert served.invoke("early", running).result == "true"


def test_a_worker_too_busy_to_be_told_is_told_again() -> None:
    served = Served(Worker(refusals=2))
    running = RunningCall()
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(served.invoke, "refused", running)
        assert served.worker.begun.acquire(timeout=30)
        running.cancel()
        assert call.result(30).result == "true"
    served.close()


def test_items_of_a_worker_are_read_as_from_a_stranger(served: Served) -> None:
    items, report = served.stream(Call("f", ("1", '"two"', "[3]"), token="a"))
    assert items == ["1", '"two"', "[3]"]
    assert report.error is None
    items, report = served.stream(Call("f", ("1", "no json", "3"), token="b"))
    assert items == ["1"]
    assert isinstance(report.error, FunctionCrashed)
    items, report = served.stream(Call("f", ("1",), call_id="no outcome", token="c"))
    assert items == ["1"]
    assert isinstance(report.error, FunctionCrashed)


class Gone:
    """A caller who went away before anything could be arranged for that; gRPC tells of it so."""

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float | None:
        return None

    def add_callback(self, callback: object) -> bool:
        return False

    def invocation_metadata(self) -> object:
        return ()

    def cancel(self) -> object:
        return None


class Unasked:
    """Workers that nothing is to come to."""

    def able(self, function: RoutedFunction) -> list[str]:
        return ["w"]

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        return {}

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        return nullcontext()

    def invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        raise AssertionError("nobody waits for this call")


def test_a_caller_gone_at_once_has_nothing_run() -> None:
    service = RpcService(CallRouter({"f": FUNCTION}.get, Unasked()))
    with pytest.raises(CallAbandoned):
        service.CallFunction(taskworker_pb2.FunctionCallRequest(function_name="f"), Gone())
