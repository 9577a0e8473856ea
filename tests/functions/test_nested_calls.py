"""Calls that calls make: no shape of them waits for itself. Workers here are threads with few places."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from taskworker.calls.call import DEPTH_MAX, LOOPS_MAX, Call, CallReport, Items, RunningCall
from taskworker.calls.concurrency import Places
from taskworker.calls.nested import patiently
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy, ServerBusy
from taskworker.functions.routing import router as routing
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter

WAIT_S = 60.0
"""For what takes milliseconds, unless it waits for itself."""

Steps = tuple[tuple[str, ...], ...]
"""What a function does: it calls all functions of a step at the same time, one step after another."""


class Shapes:
    """A router whose functions call one another, on workers with as few places as there may be."""

    def __init__(
        self, functions: Mapping[str, Steps], concurrency: Mapping[str, int], workers: int = 1, depth: int = DEPTH_MAX
    ) -> None:
        self._functions = functions
        self._depth = depth
        self._places = {f"w{number}": Places(2, 1, 1, "this worker") for number in range(workers)}
        routed = {name: RoutedFunction(name, "v", concurrency=concurrency[name], queue=500) for name in functions}
        self.routes = CallRouter(routed.get, self, places=Places(6, 2, 1, "this pool"))
        self._lock = threading.Lock()
        self._running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()

    def able(self, function: RoutedFunction) -> list[str]:
        return sorted(self._places)

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        return {}

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        return self._places[worker].one(len(call.chain), call.user_id)

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
            self._running[function.name] += 1
            self.most[function.name] = max(self.most[function.name], self._running[function.name])
        try:
            return CallReport(result=str(self._run(function.name, call)))
        finally:
            with self._lock:
                self._running[function.name] -= 1

    def _run(self, name: str, call: Call) -> int:
        """How many calls it came to."""
        path, count = (*call.chain, name), 1
        time.sleep(0.001)  # so that others get as far
        for step in self._functions[name]:
            made = [other for other in step if path.count(other) < LOOPS_MAX and len(path) < self._depth]
            if len(made) == 1:
                count += self._call(made[0], call)
            elif made:
                with ThreadPoolExecutor(len(made)) as asks:
                    count += sum(asks.map(lambda other: self._call(other, call), made))
        return count

    def _call(self, name: str, call: Call) -> int:
        nested = Call(name, parent=call.token)
        return int(patiently(lambda left_s: self.routes.call(nested, left_s), WAIT_S, RunningCall()))

    def all_called(self, calls: list[tuple[str, str]]) -> list[int]:
        """Calls made at the same time, each (function, user), and what each came to."""

        def one(call: tuple[str, str]) -> int:
            name, user = call
            return int(patiently(lambda s: self.routes.call(Call(name, user_id=user), s), WAIT_S, RunningCall()))

        with ThreadPoolExecutor(len(calls)) as callers:
            return [made.result(2 * WAIT_S) for made in [callers.submit(one, call) for call in calls]]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "_LOOK_AGAIN_S", 0.002)
    monkeypatch.setattr("taskworker.calls.nested._AGAIN_S", 0.002)
    monkeypatch.setattr("taskworker.calls.nested._AGAIN_S_MAX", 0.004)


NAMES = ("a", "b", "c", "d")


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shapes, list[tuple[str, str]]]:
    some = st.sampled_from(NAMES)
    # Few calls at each level, as they multiply: what matters is who waits for whom.
    functions: dict[str, Steps] = {name: ((draw(some),),) if draw(st.integers(0, 4)) else () for name in NAMES}
    forking = draw(some)
    functions[forking] = (tuple(draw(st.lists(some, min_size=2, max_size=3))),)
    concurrency = {name: draw(st.integers(1, 3)) for name in NAMES}
    calls = draw(st.lists(st.tuples(some, st.sampled_from(["ann", "bob"])), min_size=6, max_size=12))
    return Shapes(functions, concurrency, draw(st.integers(1, 2)), depth=draw(st.integers(2, 5))), calls


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(shapes())
def test_no_shape_of_calls_waits_for_itself(shape: tuple[Shapes, list[tuple[str, str]]]) -> None:
    fleet, calls = shape
    counts = fleet.all_called(calls)
    by_name: dict[str, set[int]] = {}
    for (name, _user), count in zip(calls, counts, strict=True):
        by_name.setdefault(name, set()).add(count)
    assert all(len(same) == 1 for same in by_name.values())  # each made all the calls that it makes


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_functions_that_call_one_another_do_not_wait_for_each_other_s_turns(concurrency: int) -> None:
    both = {"a": (("b",),), "b": (("a",),)}
    calls = [(name, user) for name in both for user in ("ann", "bob", "cid")] * 2
    # LOOPS_MAX of each, one after another.
    assert Shapes(both, dict.fromkeys(both, concurrency)).all_called(calls) == [2 * LOOPS_MAX] * len(calls)


def test_callers_that_fill_a_worker_leave_places_to_what_they_call() -> None:
    functions: dict[str, Steps] = {"a": (("b", "b"),), "b": (("c",),), "c": ()}
    fleet = Shapes(functions, dict.fromkeys(functions, 32))
    assert fleet.all_called([("a", "ann")] * 4 + [("b", "bob")] * 4 + [("c", "cid")] * 4) == [5] * 4 + [2] * 4 + [1] * 4


def test_a_function_that_nobody_waits_in_has_no_more_turns_than_it_may() -> None:
    functions: dict[str, Steps] = {"a": (("c", "c", "c", "c"),), "c": ()}
    fleet = Shapes(functions, {"a": 1, "c": 1}, workers=4)
    assert fleet.all_called([("a", "ann")] * 3 + [("c", "bob")] * 3) == [5] * 3 + [1] * 3
    assert fleet.most == {"a": 1, "c": 1}  # `a` keeps its turn while it waits: nobody in it waits for it


def test_what_a_call_left_behind_makes_no_calls() -> None:
    fleet = Shapes({"a": ()}, {"a": 1})
    with pytest.raises(CallAbandoned, match="is over"):
        fleet.routes.call(Call("a", parent="0" * 32), 5.0)


def test_who_claims_to_be_called_by_others_has_no_places_of_theirs() -> None:
    """And does not get around what a user may have."""
    release, seen = threading.Event(), list[tuple[str, ...]]()

    class Holding(Shapes):
        def invoke(self, worker: str, function: RoutedFunction, call: Call, *_rest: object) -> CallReport:
            seen.append(call.chain)
            release.wait(WAIT_S)
            return CallReport(result="1")

    fleet = Holding({"a": ()}, {"a": 8}, workers=3)
    claimed = Call("a", user_id="ann", chain=("x", "y"))
    with ThreadPoolExecutor(6) as callers:
        made = [callers.submit(fleet.routes.call, claimed, WAIT_S) for _ in range(6)]
        while len(seen) < 6:
            threading.Event().wait(0.002)
        with pytest.raises(ServerBusy, match="this pool has as many calls under way"):
            fleet.routes.call(claimed, 5.0)
        release.set()
        assert [one.result(WAIT_S) for one in made] == ["1"] * 6
    assert seen == [()] * 6


def test_a_nested_call_that_finds_no_place_is_made_again() -> None:
    outcomes = iter([ServerBusy("full"), ServerBusy("full"), None])

    def call(left_s: float | None) -> str:
        if (error := next(outcomes)) is not None:
            raise error
        return "1"

    assert patiently(call, None, RunningCall()) == "1"


def test_a_nested_call_is_not_made_again_for_ever() -> None:
    def refused(left_s: float | None) -> str:
        raise ServerBusy("full")

    with pytest.raises(ServerBusy, match="full"):
        patiently(refused, 0.02, RunningCall())
    ended = RunningCall()
    ended.cancel()
    with pytest.raises(CallAbandoned):
        patiently(refused, None, ended)

    def too_many_wait(left_s: float | None) -> str:
        raise FunctionBusy("function f has as many calls as it may")

    with pytest.raises(FunctionBusy):
        patiently(too_many_wait, None, RunningCall())


def test_a_turn_is_not_waited_for_longer_than_the_caller_waits() -> None:
    fleet = Shapes({"a": (("a",),)}, {"a": 1})
    with pytest.raises(DeadlineExceeded):
        fleet.routes.call(Call("a"), 0.0)
