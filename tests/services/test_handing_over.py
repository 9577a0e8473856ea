"""Callers who take what a function gives slowly, or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import grpc
import pytest

from taskworker.calls.call import Call, CallReport, Items, RunningCall
from taskworker.errors import DeadlineExceeded
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter
from taskworker.protos import functions_pb2
from taskworker.rpc.binding import generic_handler
from taskworker.services import handing_over
from taskworker.services.handing_over import Outcome, handed_over
from taskworker.services.rpc import StreamService

WAIT_S = 60.0
ITEM = f'"{"x" * 300_000}"'
COUNT = 100
"""Of these items: more than gRPC and the pool hold for one caller."""


class Worker:
    """Gives many large items, and ends in time; so it says."""

    def __init__(self) -> None:
        self.ended = threading.Event()

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
        assert items is not None
        for _ in range(int(call.args[0])):
            items(ITEM, lambda: running.cancelled)
        self.ended.set()
        return CallReport()


Stream = Callable[[str], Iterator[functions_pb2.FunctionItem]]


@contextmanager
def served(worker: Worker, wall_s: float, clock_s: Callable[[], float] = time.monotonic) -> Iterator[Stream]:
    """A pool's service with one thread, so that it serves one caller at a time."""
    router = CallRouter({"f": RoutedFunction("f", "v1", wall_s=wall_s)}.get, worker, clock_s=clock_s)
    descriptor = functions_pb2.DESCRIPTOR.services_by_name["StreamService"]
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((generic_handler(descriptor, StreamService(router)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_stream(
            "/taskworker.functions.StreamService/StreamFunction",
            request_serializer=functions_pb2.StreamFunctionRequest.SerializeToString,
            response_deserializer=functions_pb2.FunctionItem.FromString,
        )
        yield lambda count: method(
            functions_pb2.StreamFunctionRequest(function_name="f", args=[count], user_id="ann"), wait_for_ready=True
        )
    server.stop(0).wait()


def test_a_call_that_is_over_waits_for_nobody() -> None:
    worker, now = Worker(), [0.0]
    with served(worker, 60.0, lambda: now[0]) as stream:
        stalled = stream(str(COUNT))
        assert next(stalled).item == ITEM
        assert not worker.ended.wait(0.01)
        now[0] = 60.0
        assert worker.ended.wait(WAIT_S)
        with pytest.raises(grpc.RpcError) as told:
            list(stalled)
        assert told.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_caller_that_takes_nothing_after_the_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_over, "UNTAKEN_S", 0.3)
    worker = Worker()
    with served(worker, wall_s=0.5) as stream:
        stalled = stream(str(COUNT))
        assert next(stalled).item == ITEM
        assert [message.item for message in stream("2")] == [ITEM, ITEM]  # the only thread serves again
        with pytest.raises(grpc.RpcError) as told:
            list(stalled)
        assert told.value.code() is grpc.StatusCode.CANCELLED


def test_what_is_ahead_is_bounded_by_its_size() -> None:
    ahead, full, over = threading.Semaphore(0), threading.Event(), threading.Event()

    def is_over() -> bool:
        full.set()
        return over.is_set()

    def work(take: Items) -> str:
        for _ in range(COUNT):
            take(ITEM, is_over)
            ahead.release()
        return "end"

    items = handed_over(work, RunningCall(), lambda: None)
    assert next(items) == ITEM
    assert full.wait(WAIT_S)  # it waits for room
    taken = sum(1 for _ in iter(lambda: ahead.acquire(blocking=False), False))
    assert 1 < taken < 10
    over.set()
    *rest, end = items
    assert end == Outcome("end")
    assert 1 < len(rest) < COUNT - 1  # some were dropped: the one who said that it was over knows


def test_what_the_work_raises_comes_after_its_items() -> None:
    def work(take: Items) -> str:
        take("1", lambda: False)
        raise DeadlineExceeded("late")

    items = handed_over(work, RunningCall(), lambda: None)
    assert next(items) == "1"
    with pytest.raises(DeadlineExceeded, match="late"):
        next(items)
