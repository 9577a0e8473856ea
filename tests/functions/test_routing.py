"""Routing: turns, choice of a worker, loss of workers, the cache. Calls here take time on a clock that is set."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import pytest

from storage.errors import InvalidArgument, StorageError
from taskworker.calls.call import DEPTH_MAX, Call, CallReport, Items, RunningCall
from taskworker.errors import (
    CallAbandoned,
    CallUncertain,
    DeadlineExceeded,
    FunctionBusy,
    FunctionFailed,
    FunctionNotFound,
    FunctionsUnavailable,
    ServerBusy,
)
from taskworker.functions.routing.port import RoutedFunction, WorkerGone, WorkerUnable
from taskworker.functions.routing.router import CallRouter
from taskworker.functions.routing.statistics import CallFigures, CallStatistics, StatisticsByFunction
from taskworker.functions.routing.users import UserShares

Behaviour = Callable[[Call], CallReport]


class Fleet:
    """Workers by name, each with what it does to a call."""

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.runs: Counter[str] = Counter()
        self.asked: Callable[[], None] = lambda: None  # called whenever it is asked which workers there are
        self._lock = threading.Lock()

    def able(self, function: RoutedFunction) -> list[str]:
        self.asked()
        return sorted(self.behaviours)

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        return {"blind": "has no eyes"}

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
        with self._lock:
            self.runs[worker] += 1
        for item in call.args if items is not None else ():
            items(item, lambda: False)  # type: ignore[misc]
        return self.behaviours[worker](call)


class Clock:
    """A clock that is set; or that moves on to the end of the shortest sleep, once all threads that use it sleep."""

    def __init__(self) -> None:
        self.s = 0.0
        self._awake = 0
        self._sleeping: list[float] = []  # when each sleep ends
        self._changed = threading.Condition()

    def __call__(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        with self._changed:
            until = self.s + seconds
            self._sleeping.append(until)
            self._less_awake()
            assert self._changed.wait_for(lambda: self.s >= until, 20)
            self._sleeping.remove(until)
            self._awake += 1

    def in_threads(self, count: int, work: Callable[[], None]) -> None:
        """Do work in so many threads at once."""

        def working() -> None:
            try:
                work()
            finally:
                with self._changed:
                    self._less_awake()

        self._awake = count
        with ThreadPoolExecutor(count) as threads:
            for done in [threads.submit(working) for _ in range(count)]:
                done.result()

    def _less_awake(self) -> None:
        self._awake -= 1
        if not self._awake and self._sleeping:
            self.s = max(self.s, min(self._sleeping))
            self._changed.notify_all()


def answers(text: str = "1", after: Callable[[], None] = lambda: None) -> Behaviour:
    def behave(call: Call) -> CallReport:
        after()
        return CallReport(result=text)

    return behave


def takes(clock: Clock, seconds: float) -> Behaviour:
    return answers(after=lambda: clock.sleep(seconds))


def fails(error: Exception) -> Behaviour:
    def behave(call: Call) -> CallReport:
        raise error

    return behave


def router(fleet: Fleet, clock: Callable[[], float] = time.monotonic, **options: object) -> CallRouter:
    function = RoutedFunction("f", "v1", **options)  # type: ignore[arg-type]
    return CallRouter({"f": function}.get, fleet, clock_s=clock)


def call_often(routes: CallRouter, clock: Clock, callers: int, calls: int) -> None:
    """Make so many calls, each caller one after another."""

    def calling() -> None:
        for _ in range(calls // callers):
            routes.call(Call("f"), None)

    clock.in_threads(callers, calling)


def test_a_result_comes_back_and_a_failure_is_raised() -> None:
    assert router(Fleet(a=answers('"x"'))).call(Call("f"), None) == '"x"'
    failing = Fleet(a=lambda call: CallReport(error=FunctionFailed("ValueError: no")))
    with pytest.raises(FunctionFailed, match="ValueError: no"):
        router(failing).call(Call("f"), None)
    assert failing.runs["a"] == 1  # what a function itself ends with is not tried elsewhere
    with pytest.raises(FunctionNotFound, match="'g'"):
        router(Fleet()).call(Call("g"), None)


def test_a_lost_worker_s_call_moves() -> None:
    fleet = Fleet(a=fails(WorkerGone("a", may_have_run=True)), b=answers("2"))
    routes = router(fleet)
    for _ in range(20):
        assert routes.call(Call("f"), None) == "2"
    figures = routes.figures("f").figures
    assert figures.calls == 20
    assert figures.moved == fleet.runs["a"] > 0
    assert figures.errors == 0


def test_a_call_that_must_not_run_twice_is_not_moved_once_it_may_have_run() -> None:
    for _ in range(20):
        fleet = Fleet(a=fails(WorkerGone("a", may_have_run=True)), b=answers())
        fleet.behaviours["b"] = fails(WorkerGone("b", may_have_run=True))
        with pytest.raises(CallUncertain, match="may have run"):
            router(fleet, idempotent=False).call(Call("f"), None)
        assert fleet.runs.total() == 1


def test_a_call_that_never_left_is_moved_in_any_case() -> None:
    fleet = Fleet(a=fails(WorkerGone("a", may_have_run=False)), b=answers())
    for _ in range(10):
        assert router(fleet, idempotent=False).call(Call("f"), None) == "1"
    assert fleet.runs["a"]


def into(given: list[str]) -> Items:
    """Takes items at once, and keeps them."""
    return lambda item, _over: given.append(item)


def test_a_stream_moves_only_before_it_has_given_anything() -> None:
    lost, given = fails(WorkerGone("a", may_have_run=True)), list[str]()
    router(Fleet(a=lost, b=answers())).stream(Call("f"), None, RunningCall(), into(given))
    with pytest.raises(CallUncertain, match="after some of its results were delivered"):
        router(Fleet(a=lost)).stream(Call("f", ("1", "2")), None, RunningCall(), into(given))
    assert given == ["1", "2"]


def test_a_stream_is_given_again_from_the_cache() -> None:
    fleet = Fleet(a=answers("[1, 2]"))
    routes = router(fleet, cache_ttl_s=60.0)
    for _ in range(2):
        given: list[str] = []
        routes.stream(Call("f", ("1", "2")), None, RunningCall(), into(given))
        assert given == ["1", "2"]
        assert routes.call(Call("f", ("1", "2")), None) == "[1, 2]"  # what a call gets of the same function is one list
    assert fleet.runs["a"] == 2


def test_a_worker_five_times_slower_gets_little_of_the_load() -> None:
    clock = Clock()
    fleet = Fleet(a=takes(clock, 0.02), b=takes(clock, 0.02), slow=takes(clock, 0.1))
    routes = router(fleet, clock)
    call_often(routes, clock, 3, 300)
    assert 0 < fleet.runs["slow"] <= 300 / 8
    assert routes.outstanding() == {}


def test_a_busy_worker_s_call_goes_to_another() -> None:
    fleet = Fleet(a=fails(ServerBusy("full")), b=answers())
    for _ in range(10):
        assert router(fleet, idempotent=False).call(Call("f"), None) == "1"


def test_workers_that_come_are_waited_for() -> None:
    fleet = Fleet()
    times = count(1)
    fleet.asked = lambda: fleet.behaviours.update({"late": answers("3")} if next(times) == 3 else {})
    assert router(fleet).call(Call("f"), None) == "3"


def test_the_deadline_bounds_the_wait_for_workers() -> None:
    with pytest.raises(FunctionsUnavailable, match="blind has no eyes"):  # and its caller hears what it waited for
        router(Fleet()).call(Call("f"), 0.1)
    with pytest.raises(DeadlineExceeded):
        router(Fleet(a=fails(ServerBusy("full")))).call(Call("f"), 0.1)


def test_a_worker_that_cannot_run_a_call_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskworker.functions.routing.tried.WAIT_FOR_WORKERS_S", 0.5)
    clock = Clock()
    fleet = Fleet(a=fails(WorkerUnable("it has no sandbox")), b=fails(WorkerGone("b", may_have_run=False)))

    def pass_time() -> None:
        clock.s += 0.05

    fleet.asked = pass_time
    with pytest.raises(
        FunctionsUnavailable, match=r"a cannot run it: it has no sandbox; b was lost; blind has no eyes"
    ):
        router(fleet, clock).call(Call("f"), None)
    assert 2 <= fleet.runs["a"] <= 5  # ever more seldom
    assert router(Fleet(a=fails(WorkerUnable("no")), b=answers("2"))).call(Call("f"), None) == "2"


def test_what_a_function_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FunctionsUnavailable, match=r"needs one with gpu=a100: .*`taskworker worker --label gpu=a100`"):
        router(Fleet(), needs={"gpu": "a100"}).call(Call("f"), 0.1)


def test_a_call_that_ends_its_workers_does_not_end_them_all() -> None:
    fleet = Fleet(**{f"w{number}": fails(WorkerGone(f"w{number}", may_have_run=True)) for number in range(30)})
    with pytest.raises(CallUncertain, match="like others before it"):
        router(fleet).call(Call("f"), None)
    assert fleet.runs.total() == 10


def test_a_cancelled_call_goes_nowhere_else() -> None:
    running = RunningCall()

    def gone(call: Call) -> CallReport:
        running.cancel()
        raise WorkerGone("a", may_have_run=True)

    with pytest.raises(CallAbandoned):
        router(Fleet(a=gone)).call(Call("f"), None, running)


def test_a_cancelled_call_waits_for_no_worker() -> None:
    fleet, running = Fleet(), RunningCall()
    routes = router(fleet)
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(routes.call, Call("f"), None, running)
        eventually(lambda: routes.figures("f").running > 0)
        running.cancel()
        with pytest.raises(CallAbandoned):  # without a worker, it would be FunctionsUnavailable
            call.result(30)


def test_equal_workers_get_equal_shares_and_a_slow_one_little() -> None:
    clock = Clock()
    fleet = Fleet(a=takes(clock, 0.004), b=takes(clock, 0.004), c=takes(clock, 0.004))
    call_often(router(fleet, clock), clock, 16, 1200)
    assert max(fleet.runs.values()) <= 1.15 * min(fleet.runs.values())
    fleet = Fleet(a=takes(clock, 0.02), b=takes(clock, 0.004), c=takes(clock, 0.004))
    call_often(router(fleet, clock), clock, 16, 1200)
    assert fleet.runs["a"] <= 1200 / 6


def test_so_many_run_so_many_wait_and_the_rest_are_refused() -> None:
    release = threading.Event()

    def waits(call: Call) -> CallReport:
        release.wait(20)
        return CallReport(result="1")

    routes = router(Fleet(a=waits), concurrency=2, queue=3)
    with ThreadPoolExecutor(5) as callers:
        calls = [callers.submit(routes.call, Call("f"), None) for _ in range(5)]
        eventually(lambda: routes.figures("f").running + routes.figures("f").waiting == 5)
        assert (routes.figures("f").running, routes.figures("f").waiting) == (2, 3)
        with pytest.raises(FunctionBusy, match="2 calls running and 3 waiting"):
            routes.call(Call("f"), None)
        release.set()
        assert [call.result() for call in calls] == ["1"] * 5
    assert (routes.figures("f").running, routes.figures("f").waiting) == (0, 0)


class Held:
    """Calls that run until they are let go on, in the order in which they began."""

    def __init__(self, **options: object) -> None:
        self.began: list[str] = []
        self._held: deque[threading.Event] = deque()  # of calls that have begun and were not let go
        self._ended = False
        shares = options.pop("shares", None)
        function = RoutedFunction("f", "v1", **options)  # type: ignore[arg-type]
        self.routes = CallRouter({"f": function}.get, Fleet(a=self._run), shares=shares)  # type: ignore[arg-type]
        self._callers = ThreadPoolExecutor(200)
        self.calls: list[Future[str]] = []

    def _run(self, call: Call) -> CallReport:
        go_on = threading.Event()
        self._held.append(go_on)
        self.began.append(call.user_id)
        assert self._ended or go_on.wait(20)
        return CallReport(result="1")

    def call(self, user: str, count: int = 1) -> None:
        for _ in range(count):
            before = self._seen()
            self.calls.append(self._callers.submit(self.routes.call, Call("f", user_id=user), None))
            eventually(lambda before=before: self._seen() > before or self.calls[-1].done())  # type: ignore[misc]

    def let_go(self, count: int) -> None:
        """Let calls go on, the one that began first before the others; each time until the next one has begun."""
        for _ in range(count):
            eventually(lambda: len(self._held) > 0)
            before = self._done()
            self._held.popleft().set()
            eventually(lambda before=before: self._done() > before)  # type: ignore[misc]
            eventually(lambda: len(self.began) == self.routes.figures("f").running + self._done())

    def _done(self) -> int:
        return sum(call.done() for call in self.calls)

    def _seen(self) -> int:
        figures = self.routes.figures("f")
        return figures.running + figures.waiting

    def end(self) -> None:
        self._ended = True
        while self._done() < len(self.calls):
            with contextlib.suppress(IndexError):  # none has begun since
                self._held.popleft().set()
            time.sleep(0.001)
        self._callers.shutdown()


def eventually(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def test_one_user_s_calls_do_not_hold_another_s_up() -> None:
    held = Held(concurrency=32)
    held.call("ann", 64)
    eventually(lambda: held.began == ["ann"] * 28)
    held.call("bob", 3)
    eventually(lambda: held.began[28:] == ["bob"] * 3)  # at once, though no call of ann's has ended
    held.end()
    assert [call.result() for call in held.calls] == ["1"] * 67


def test_turns_that_come_free_go_to_the_user_who_has_the_fewest() -> None:
    held = Held(concurrency=2)
    held.call("ann", 10)
    held.call("bob", 3)
    held.call("cat", 1)
    held.let_go(2)
    eventually(lambda: len(held.began) == 4)
    assert held.began == ["ann", "ann", "bob", "cat"]
    held.end()


def test_weights_count_also_where_one_call_runs_at_a_time() -> None:
    held = Held(concurrency=1, shares=UserShares(weights={"ann": 3.0}))
    held.call("cat", 1)
    held.call("ann", 20)
    held.call("bob", 20)
    held.let_go(12)
    eventually(lambda: len(held.began) == 13)
    assert Counter(held.began[1:]) == Counter(ann=9, bob=3)
    held.end()


def test_a_user_of_more_weight_gets_more_turns() -> None:
    held = Held(concurrency=4, shares=UserShares(weights={"ann": 3.0}))
    held.call("cat", 4)
    held.call("bob", 20)
    held.call("ann", 20)
    held.let_go(4)
    eventually(lambda: len(held.began) == 8)
    assert Counter(held.began[4:]) == Counter(ann=3, bob=1)
    held.end()


def test_a_user_has_so_many_calls_under_way_and_no_more() -> None:
    held = Held(concurrency=1, shares=UserShares(calls=3, calls_of={"bob": 5}))
    held.call("ann", 3)
    held.call("bob", 5)
    for user, most in (("ann", 3), ("bob", 5)):
        with pytest.raises(FunctionBusy, match=f"{most} calls under way"):
            held.routes.call(Call("f", user_id=user), 5)
    held.end()
    assert [call.result() for call in held.calls] == ["1"] * 8
    assert held.routes.call(Call("f", user_id="ann"), 5) == "1"


def test_one_user_does_not_fill_the_queue() -> None:
    held = Held(concurrency=1, queue=16)
    held.call("ann", 15)
    with pytest.raises(FunctionBusy, match="as one user may have"):
        held.routes.call(Call("f", user_id="ann"), 5)
    held.call("bob", 2)
    with pytest.raises(FunctionBusy, match="16 waiting"):
        held.routes.call(Call("f", user_id="cat"), 5)
    held.end()


@pytest.mark.parametrize("shares", [{"calls": 0}, {"calls_of": {"ann": 0}}, {"weights": {"ann": 0.0}}])
def test_shares_that_are_none_are_refused(shares: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="user"):
        UserShares(**shares)


def test_whoever_waits_too_long_gives_its_turn_up() -> None:
    release = threading.Event()

    def waits(call: Call) -> CallReport:
        release.wait(20)
        return CallReport(result="1")

    routes = router(Fleet(a=waits), concurrency=1, queue=5)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(routes.call, Call("f"), None)
        eventually(lambda: routes.figures("f").running > 0)
        with pytest.raises(DeadlineExceeded, match="turn did not come"):
            routes.call(Call("f"), 0.05)
        assert routes.figures("f").waiting == 0
        release.set()
        assert first.result() == "1"
    assert routes.call(Call("f"), 5) == "1"


def test_whoever_is_not_waited_for_any_more_gives_its_place_in_the_queue_up() -> None:
    release = threading.Event()

    def waits(call: Call) -> CallReport:
        release.wait(20)
        return CallReport(result="1")

    fleet = Fleet(a=waits)
    routes, running = router(fleet, concurrency=1, queue=1), RunningCall()
    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(routes.call, Call("f"), None)
        eventually(lambda: routes.figures("f").running > 0)
        second = callers.submit(routes.call, Call("f"), None, running)
        eventually(lambda: routes.figures("f").waiting > 0)
        running.cancel()
        with pytest.raises(CallAbandoned, match="before its turn came"):
            second.result(10)
        assert routes.figures("f").waiting == 0
        third = callers.submit(routes.call, Call("f"), None)
        eventually(lambda: routes.figures("f").waiting > 0)
        release.set()
        assert (first.result(), third.result()) == ("1", "1")
    assert fleet.runs["a"] == 2


def test_a_function_that_calls_itself_does_not_wait_for_itself() -> None:
    routes = router(Fleet(a=lambda call: CallReport(result=nested(call))), concurrency=1, queue=0)

    def nested(call: Call) -> str:
        if len(call.chain) == 2:
            return "2"
        return routes.call(Call("f", parent=call.token), None)

    assert routes.call(Call("f"), 5) == "2"


def test_all_that_a_call_does_is_ended_even_if_some_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    running, ended = RunningCall(), []

    def fails() -> None:
        raise RuntimeError("can't start new thread")

    with running.ended_by(lambda: ended.append("outer")), running.ended_by(fails):
        running.cancel()
        with running.ended_by(fails), running.ended_by(lambda: ended.append("later")):
            assert ended == ["outer", "later"]
    assert len(caplog.records) == 2


def test_calls_without_end_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"too deeply \(.*f -> f"):
        Call("f", chain=("f",) * 4).checked()
    with pytest.raises(InvalidArgument, match="too deeply"):
        Call("f", chain=tuple(map(str, range(DEPTH_MAX)))).checked()
    with pytest.raises(InvalidArgument, match="push a file"):
        Call("f", args=("x" * (2 << 20),)).checked()


def test_results_are_given_again_as_long_as_they_may() -> None:
    results, clock = count(), Clock()
    fleet = Fleet(a=lambda call: CallReport(result=str(next(results))))
    routes = router(fleet, clock, cache_ttl_s=60.0)
    assert [routes.call(Call("f", ("1",), user_id="ann"), None) for _ in range(3)] == ["0", "0", "0"]
    assert routes.call(Call("f", ("2",), user_id="ann"), None) == "1"
    assert routes.call(Call("f", ("1",), user_id="bob"), None) == "2"  # never another user's
    assert routes.call(Call("f", ("1",), {"k": "1"}, user_id="ann"), None) == "3"
    clock.s += 59.0
    assert routes.call(Call("f", ("1",), user_id="ann"), None) == "0"
    clock.s += 1.0
    assert routes.call(Call("f", ("1",), user_id="ann"), None) == "4"
    assert routes.figures("f").figures.cached == 3


def test_results_are_kept_without_what_was_asked() -> None:
    routes = router(Fleet(a=answers()), cache_ttl_s=60.0)
    tracemalloc.start()
    try:
        for number in range(30):
            text = f'"{number}{"x" * (1_000_000)}"'
            routes.call(Call("f", (text,)), None)
            routes.stream(Call("f", (), {"k": text}), None, RunningCall(), nothing)
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()


def nothing(item: str, over: Callable[[], bool], /) -> None:
    """Take an item."""


def test_arguments_that_look_alike_have_results_of_their_own() -> None:
    results = count()
    routes = router(Fleet(a=lambda call: CallReport(result=str(next(results)))), cache_ttl_s=60.0)
    calls = [
        Call("f"),
        Call("f", ("",)),
        Call("f", ("", "")),
        Call("f", ("ab",)),
        Call("f", ("a", "b")),
        Call("f", (), {"a": "b"}),
        Call("f", ("a",), {"b": ""}),
        Call("f", (), {"a": "b", "b": "a"}),
        Call("f", ("ab",), user_id="ann"),
        Call("f", ("\ud800",)),
    ]
    assert [routes.call(call, None) for call in calls * 2] == 2 * list(map(str, range(len(calls))))
    assert routes.call(Call("f", (), {"b": "a", "a": "b"}), None) == "7"  # in whatever order they are named


def test_results_are_kept_by_the_memory_that_they_take() -> None:
    fleet = Fleet(a=answers(f'"{chr(0x1F600) * 300_000}"'))  # which takes four bytes a character
    routes = router(fleet, cache_ttl_s=60.0)
    for _ in range(2):
        routes.call(Call("f"), None)
    assert fleet.runs["a"] == 2


def test_failures_are_not_kept() -> None:
    outcomes = iter([CallReport(error=FunctionFailed("once")), CallReport(result="1")])
    routes = router(Fleet(a=lambda call: next(outcomes)), cache_ttl_s=60.0)
    with pytest.raises(StorageError):
        routes.call(Call("f"), None)
    assert routes.call(Call("f"), None) == "1"


def test_what_is_known_of_a_function_s_calls_goes_with_it() -> None:
    functions = {f"f{number}": RoutedFunction(f"f{number}", "v", cache_ttl_s=60.0) for number in range(3)}
    fleet, statistics = Fleet(a=answers()), StatisticsByFunction()
    routes = CallRouter(functions.get, fleet, statistics=statistics)
    for name in functions:
        routes.call(Call(name), None)
    routes.forget("f1")
    assert [routes.figures(name).figures.calls for name in functions] == [1, 0, 1]
    assert sorted(name for name, _ in statistics.changed().documents) == ["f0", "f2"]  # nor does asking make any
    for name in functions:
        routes.call(Call(name), None)
    assert fleet.runs["a"] == 4  # and f1's results are not given again


class InOrder(random.Random):
    """Compares workers in the order in which they are named, so that of two alike the first is chosen."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        return list(population[:k])


def test_which_workers_were_slow_is_forgotten_with_a_function() -> None:
    fleet, routes, clock = of_two_workers()

    def takes_longer(_call: Call) -> CallReport:
        clock.s += 2.5
        return CallReport()

    fleet.behaviours["a"] = takes_longer
    for _ in range(2):
        routes.call(Call("f"), None)
    assert fleet.runs == {"b": 2, "a": 1}  # a is slower
    routes.forget("f")
    routes.call(Call("f"), None)
    assert fleet.runs == {"b": 2, "a": 2}


def test_which_workers_have_processes_of_users_is_forgotten_with_a_function() -> None:
    fleet, routes, _ = of_two_workers(keeps=True)
    fleet.behaviours["a"] = answers()
    routes.call(Call("f", user_id="ann"), None)
    assert fleet.runs == {"b": 2}  # which has one
    routes.forget("f")
    routes.call(Call("f", user_id="ann"), None)
    assert fleet.runs == {"b": 2, "a": 1}


def of_two_workers(**options: Any) -> tuple[Fleet, CallRouter, Clock]:
    """Worker b has run a call of f for a second; a, which is chosen if they are alike, is about to join."""
    clock = Clock()

    def takes_a_second(_call: Call) -> CallReport:
        clock.s += 1.0
        return CallReport()

    fleet = Fleet(b=takes_a_second)
    routes = CallRouter({"f": RoutedFunction("f", "v", **options)}.get, fleet, clock_s=clock, rng=InOrder())
    routes.call(Call("f", user_id="ann"), None)
    return fleet, routes, clock


def test_so_many_functions_are_counted_and_no_more() -> None:
    statistics = StatisticsByFunction()
    for number in range(1100):
        statistics.of(f"f{number}").ended(0.5, failed=False)
        statistics.of("f0").from_cache()
    assert len(statistics.changed().documents) == 1024
    assert statistics.figures("f0").cached == 1100  # one that is called is not forgotten
    assert statistics.figures("f1") == CallFigures()


def test_figures_are_of_the_latest_calls() -> None:
    counted = CallStatistics()
    for number in range(5000):
        counted.ended(1.0 if number < 1000 else 2.0, failed=False)
    assert (counted.figures().calls, counted.figures().p50_s, counted.figures().p99_s) == (5000, 2.0, 2.0)
    again = CallStatistics()
    again.restore(counted.to_json())
    again.ended(7.0, failed=True)
    assert (again.figures().calls, again.figures().errors, again.figures().p50_s) == (5001, 1, 2.0)


def test_a_user_s_calls_go_where_the_user_s_process_is() -> None:
    clock = Clock()  # which stands still: workers that answer at once are alike
    fleet = Fleet(a=answers(), b=answers(), c=answers())
    routes = router(fleet, clock, keeps=True)
    for user in ("ann", "bob", "eve"):
        fleet.runs.clear()
        for _ in range(20):
            routes.call(Call("f", user_id=user), None)
        assert list(fleet.runs.values()) == [20]
    fleet.runs.clear()
    apart = router(fleet, clock)
    for _ in range(60):
        apart.call(Call("f", user_id="ann"), None)
    assert len(fleet.runs) == 3


def test_a_user_s_calls_go_elsewhere_when_the_worker_of_the_process_is_busy_or_lost() -> None:
    go_on = threading.Event()

    def waits(_call: Call) -> CallReport:
        assert go_on.wait(30)
        return CallReport(result="1")

    fleet = Fleet(a=answers(), b=answers(), c=answers())
    routes = router(fleet, keeps=True)
    routes.call(Call("f", user_id="ann"), None)
    (home,) = fleet.runs
    fleet.behaviours[home] = waits
    with ThreadPoolExecutor(8) as callers:
        calls = [callers.submit(routes.call, Call("f", user_id="ann"), None) for _ in range(8)]
        # Of those at work elsewhere, which did not wait for home.
        eventually(lambda: sum(call.done() for call in calls) >= 2)
        go_on.set()
    fleet.behaviours[home] = fails(WorkerGone(home, may_have_run=True))
    assert routes.call(Call("f", user_id="ann"), None) == "1"
