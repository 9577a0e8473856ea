"""Users who are refused again and again wait for it, and others do not."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.rpc import refusals
from taskworker.rpc.admission import ServerLimits
from taskworker.rpc.refusals import LONGEST_S, Refusals
from tests.services.conftest import Guarded, first_ended

ANN = "ann"
SELDOM = 0.001  # refusals a second


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.integers(2, 40))
def test_refusals_come_at_the_rate_or_as_late_as_they_may(pauses_s: list[float], rate: int) -> None:
    clock = Clock()
    paced = Refusals(rate, 1, clock)
    came_s: list[float] = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        delay_s = paced.delay_s("mallory")
        assert 0 <= delay_s <= LONGEST_S
        if delay_s < LONGEST_S:
            came_s.append(clock.now_s + delay_s)
    for seconds in (1, 2, 3):  # as many at once as in a second, and then at the rate
        for first, later in zip(came_s, came_s[seconds * rate :], strict=False):
            assert later - first > seconds - 1 + 1 / rate - 1e-6


def test_only_users_who_are_refused_often_wait() -> None:
    clock = Clock()
    paced = Refusals(8, 1, clock)
    assert [paced.delay_s("mallory") for _ in range(8)] == [0.0] * 8
    assert paced.are_delayed("mallory")
    assert paced.delay_s("mallory") > 0
    assert (paced.are_delayed(ANN), paced.delay_s(ANN)) == (False, 0.0)
    clock.now_s += 2.0
    assert (paced.are_delayed("mallory"), paced.delay_s("mallory")) == (False, 0.0)


class Endless:
    """A call that goes on."""

    def add_callback(self, _callback: Callable[[], None]) -> bool:
        return True


def test_few_threads_wait() -> None:
    paced = Refusals(SELDOM, 1)
    waiting = threading.Thread(target=paced.wait, args=(3600.0, Endless()))
    waiting.start()
    while not paced.are_all_waiting:
        waiting.join(0.01)
    paced.wait(3600.0, Endless())
    paced.end()
    waiting.join()


def test_a_refusal_that_cannot_be_sent_does_not_keep_the_others() -> None:
    paced, told = Refusals(10, 1), threading.Event()

    def fails() -> None:
        raise RuntimeError("the call is gone")

    for _ in range(11):
        paced.delay_s("mallory")
    paced.hold("mallory", fails)
    paced.hold("mallory", told.set)
    assert told.wait(30)
    paced.end()


def test_users_who_were_refused_long_ago_are_forgotten() -> None:
    clock = Clock()
    paced = Refusals(1, 1, clock)
    paced.delay_s(ANN)
    tracemalloc.start()
    try:
        for number in range(10_000):
            paced.delay_s(f"user {number}")
            clock.now_s += 0.01
            paced.delay_s(ANN)
        own = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, refusals.__file__)])
        assert sum(trace.size for trace in own.traces) < 250_000  # not what other threads take meanwhile
    finally:
        tracemalloc.stop()
    assert paced.are_delayed(ANN)
    assert paced.are_delayed("user 9999")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals may come as late as the rate says."""
    monkeypatch.setattr(refusals, "LONGEST_S", 3600.0)


@pytest.mark.usefixtures("patient")
def test_a_user_who_has_all_transfers_waits_for_the_refusal_of_more(guarded: Any, silent: Any) -> None:
    site: Guarded = guarded(ServerLimits(streams=4, refusals=SELDOM))
    mallory = site.shown("mallory")
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        stub = StoreServiceStub(channel)
        own = store_pb2.PushPart(header=store_pb2.PushHeader(filename="a"))
        calls = [stub.PushStream.future(iter(silent(own)), metadata=mallory) for _ in range(12)]
        first_ended(calls)
        _check_others_are_served(ann)
        assert sum(one.done() for one in calls) == 1
        gone = next(one for one in calls if not one.done())
        gone.cancel()
        site.server.stop(0.0)
        first_ended(calls, len(calls))


@pytest.mark.usefixtures("patient")
def test_a_user_who_has_all_calls_waits_for_the_refusal_of_more(guarded: Any, silent: Any) -> None:
    site: Guarded = guarded(ServerLimits(calls=4, reserved=0, unfinished=100, refusals=SELDOM))
    mallory = site.shown("mallory")
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        call: Any = channel.stream_unary("/taskworker.FileService/Get")
        calls = [call.future(iter(silent()), metadata=mallory) for _ in range(20)]
        first_ended(calls)
        _check_others_are_served(ann)
        assert sum(one.done() for one in calls) == 1
        site.server.stop(0.0)
        first_ended(calls, len(calls))


@pytest.mark.usefixtures("patient")
def test_refusals_of_quick_calls_hold_up_nobody(guarded: Any) -> None:
    site: Guarded = guarded(ServerLimits(refusals=SELDOM))
    unknown = (("authorization", "Bearer nobody's"),)
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        stub = StoreServiceStub(channel)
        request = store_pb2.StatRequest(filename="a")
        first_ended([stub.Stat.future(request, metadata=unknown)])
        calls = [stub.Stat.future(request, metadata=unknown) for _ in range(60)]
        _check_others_are_served(ann)
        assert not any(one.done() for one in calls)
        site.server.stop(0.0)
        first_ended(calls, len(calls))


def _check_others_are_served(ann: Any) -> None:
    version = ann.push(b"x", filename="b", user_id=ANN)
    assert ann.get(version.file_id, user_id=ANN) == b"x"
