"""Users who want more than there is: what each gets, and in which order. Workers here are threads that wait."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager

import pytest

from taskworker.calls.call import Call, CallReport, Items, OutputLine, RunningCall
from taskworker.calls.capabilities import ApiRequest, ApiResponse
from taskworker.calls.concurrency import Places
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy, ServerBusy
from taskworker.functions.routing.call_log import CallLog
from taskworker.functions.routing.port import RoutedFunction
from taskworker.functions.routing.router import CallRouter
from taskworker.functions.routing.users import UserCalls, UserShares
from taskworker.pool.deployed import Deployment
from taskworker.protos import functions_pb2, outside_pb2
from taskworker.services.capabilities import OutsideService
from taskworker.services.functions import FunctionService
from taskworker.shares import UserPlaces

WAIT_S = 60.0


def eventually(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.001)


class Worker:
    """One, with few places, whose calls run until they are let go on."""

    def __init__(self, shares: UserShares | None = None, places: int = 8, pool_places: int = 100) -> None:
        shares = shares or UserShares()
        self.began: list[str] = []
        self._places = Places(places, 2, 1, "this worker", shares.weight_of)
        self._held: deque[tuple[Call, threading.Event]] = deque()
        self._asked: set[str] = set()  # for a place
        self._ended = False
        functions = {name: RoutedFunction(name, "v", concurrency=64) for name in "fg"}
        pool = Places(pool_places, 8, 1, "this pool", shares.weight_of)
        self.routes = CallRouter(functions.get, self, shares=shares, places=pool)
        self._callers = ThreadPoolExecutor(100)
        self.calls: list[Future[str]] = []

    def able(self, function: RoutedFunction) -> list[str]:
        return ["w"]

    def obstacles(self, function: RoutedFunction) -> dict[str, str]:
        return {}

    def place(self, worker: str, call: Call) -> AbstractContextManager[None]:
        self._asked.add(call.call_id)
        return self._places.one(len(call.chain), call.user_id)

    def invoke(
        self,
        worker: str,
        function: RoutedFunction,
        call: Call,
        timeout_s: float | None,
        running: RunningCall,
        items: Items | None = None,
    ) -> CallReport:
        go_on = threading.Event()
        self._held.append((call, go_on))
        self.began.append(call.user_id)
        assert self._ended or go_on.wait(WAIT_S)
        return CallReport(result="1")

    def call(self, user: str, function: str = "f", count: int = 1) -> None:
        """Make calls; each has begun, or waits for a place, when this returns."""
        for _ in range(count):
            made = Call(function, user_id=user, call_id=str(len(self.calls)))
            self.calls.append(self._callers.submit(self.routes.call, made, None))
            eventually(lambda made=made: made.call_id in self._asked)  # type: ignore[misc]

    def running(self) -> list[Call]:
        return [call for call, _ in self._held]

    def let_go(self, user: str) -> None:
        """Let the call go on that began first of a user's."""
        before = sum(call.done() for call in self.calls)
        held = next(one for one in self._held if one[0].user_id == user)
        self._held.remove(held)
        held[1].set()
        eventually(lambda: sum(call.done() for call in self.calls) > before)

    def end(self) -> None:
        self._ended = True
        while not all(call.done() for call in self.calls):
            while self._held:
                self._held.popleft()[1].set()
            time.sleep(0.001)
        self._callers.shutdown()


@contextmanager
def worker(shares: UserShares | None = None, places: int = 8, pool_places: int = 100) -> Iterator[Worker]:
    one = Worker(shares, places, pool_places)
    try:
        yield one
    finally:
        one.end()


def test_calls_that_fill_a_worker_leave_a_place_to_another_user_s() -> None:
    with worker() as one:
        one.call("ann", "f", 12)
        eventually(lambda: one.began == ["ann"] * 7)
        one.call("bob", "g")
        eventually(lambda: one.began[7:] == ["bob"])  # at once, though no call of ann's has ended


def test_places_that_come_free_go_to_the_user_who_has_the_fewest() -> None:
    with worker() as one:
        one.call("ann", "f", 20)
        eventually(lambda: len(one.began) == 7)
        one.call("bob", "g", 5)
        one.call("cat", "f", 2)
        eventually(lambda: len(one.began) == 8)
        for number in range(4):
            one.let_go("ann")
            eventually(lambda number=number: len(one.began) == 9 + number)  # type: ignore[misc]
        assert one.began[8] == "cat"  # who had none
        assert Counter(one.began[8:]) == Counter(bob=2, cat=2)  # three each, then, and two of who wants no more
    assert [call.result() for call in one.calls] == ["1"] * 27


def test_a_user_of_more_weight_gets_more_places() -> None:
    with worker(UserShares(weights={"ann": 3.0})) as one:
        one.call("cat", "f", 7)
        one.call("bob", "f", 10)
        one.call("ann", "g", 10)
        eventually(lambda: len(one.began) == 8)
        for number in range(7):
            one.let_go("cat")
            eventually(lambda number=number: len(one.began) == 9 + number)  # type: ignore[misc]
        assert Counter(call.user_id for call in one.running()) == Counter(ann=6, bob=2)


def test_what_a_call_leads_to_is_of_the_user_who_made_it() -> None:
    with worker() as one:
        one.call("ann")
        eventually(lambda: len(one.running()) == 1)
        nested = Call("g", user_id="bob", parent=one.running()[0].token)
        one.calls.append(one._callers.submit(one.routes.call, nested, None))
        eventually(lambda: one.began == ["ann", "ann"])


def test_a_pool_s_places_are_not_one_user_s() -> None:
    with worker(places=40, pool_places=8) as one:
        one.call("ann", count=7)
        with pytest.raises(ServerBusy, match=r"7 calls of this user under way.*others"):
            one.routes.call(Call("f", user_id="ann"), 5)
        one.call("bob")
        eventually(lambda: one.began == ["ann"] * 7 + ["bob"])
        with pytest.raises(ServerBusy, match="as many calls under way"):
            one.routes.call(Call("f", user_id="cat"), 5)


def test_many_users_who_want_all_leave_places_to_others() -> None:
    places = Places(64, 1, 1, "this worker")
    had: Counter[str] = Counter()
    users, left = [f"u{number}" for number in range(4)], True
    holds = []
    while left:
        left = False
        for user in users:
            hold = places.one(0, user)
            try:
                hold.__enter__()
            except ServerBusy:
                continue
            holds.append(hold)
            had[user] += 1
            left = True
    assert set(had.values()) == {15, 16}
    assert sum(had.values()) == 62
    with places.one(0, "who comes next"):
        pass
    for hold in holds:
        hold.__exit__(None, None, None)
    with places.one(0, "u0"):
        pass


def test_so_many_calls_of_a_user_wait_in_line_and_the_rest_are_refused() -> None:
    users = UserCalls(UserShares(calls=2, calls_of={"bob": 1}, queue=2, queue_of={"bob": 0}))
    order: list[int] = []
    go_on = [threading.Event() for _ in range(4)]

    def call(number: int) -> None:
        with users.one("ann", WAIT_S, RunningCall()):
            order.append(number)
            assert go_on[number].wait(WAIT_S)

    with ThreadPoolExecutor(4) as callers:
        made = []
        for number in range(4):
            made.append(callers.submit(call, number))
            eventually(lambda number=number: users.counts("ann") == (min(2, number + 1), max(0, number - 1)))  # type: ignore[misc]
        with pytest.raises(FunctionBusy, match=r"2 calls under way and 2 waiting, .*--user-queue.*try again"):
            users.one("ann", WAIT_S, RunningCall()).__enter__()
        with users.one("bob", WAIT_S, RunningCall()), pytest.raises(FunctionBusy, match="1 calls under way, "):
            users.one("bob", WAIT_S, RunningCall()).__enter__()
        go_on[1].set()
        eventually(lambda: order[2:] == [2])
        for event in go_on:
            event.set()
        for one in made:
            one.result(WAIT_S)
    assert order[2:] == [2, 3]
    assert users.counts("ann") == (0, 0)


def test_who_waits_in_line_too_long_or_is_cancelled_gives_the_place_up() -> None:
    users, running = UserCalls(UserShares(calls=1, queue=1)), RunningCall()
    with users.one("ann", None, RunningCall()), ThreadPoolExecutor(1) as callers:
        with pytest.raises(DeadlineExceeded, match="none of this user's running calls ended within"):
            users.one("ann", 0.02, RunningCall()).__enter__()
        waits = callers.submit(users.one("ann", None, running).__enter__)
        eventually(lambda: users.counts("ann") == (1, 1))
        running.cancel()
        with pytest.raises(CallAbandoned):
            waits.result(WAIT_S)
        assert users.counts("ann") == (1, 0)
    assert users.counts("ann") == (0, 0)


def test_calls_that_calls_make_do_not_wait_in_line() -> None:
    with worker(UserShares(calls=1, queue=5)) as one:
        one.call("ann")
        eventually(lambda: len(one.running()) == 1)
        nested = Call("g", parent=one.running()[0].token)
        one.calls.append(one._callers.submit(one.routes.call, nested, None))
        eventually(lambda: one.began == ["ann", "ann"])


def test_the_calls_that_one_user_s_calls_make_leave_places_to_others() -> None:
    places = Places(8, 16, 2, "this pool")
    with ExitStack() as held:
        for _ in range(14 + 2):  # seven eighths of those of all depths, and those of this depth
            held.enter_context(places.one(1, "ann"))
        with pytest.raises(ServerBusy, match="14 calls that functions make of this user"):
            held.enter_context(places.one(1, "ann"))
        held.enter_context(places.one(1, "bob"))
        held.enter_context(places.one(2, "ann"))  # each depth has its own: callers never wait for themselves
    with ExitStack() as held:
        for _ in range(16):
            held.enter_context(places.one(1, "ann"))  # all was given back


class SlowDeployments:
    """Deploys when it is let."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.go_on = threading.Event()

    def deploy(self, bundle: bytes, user_id: str, *, dry_run: bool, permit: Callable[[str], None]) -> Deployment:
        self.asked.release()
        assert self.go_on.wait(WAIT_S)
        return Deployment(user_id, "", changed=False)


def test_one_user_s_slow_deployments_leave_a_turn_to_others() -> None:
    """A module may take a minute to import."""
    slow = SlowDeployments()
    service = FunctionService(slow, None, None, None)  # type: ignore[arg-type]

    def deploy(user: str) -> functions_pb2.DeployResponse:
        return service.Deploy(functions_pb2.DeployRequest(user_id=user), Asking())

    with ThreadPoolExecutor(4) as threads:
        try:
            under_way = []
            for user in ("ann", "ann", "ann"):
                under_way.append(threads.submit(deploy, user))
                assert slow.asked.acquire(timeout=WAIT_S)
            with pytest.raises(ServerBusy, match="3 deployments of this user"):
                deploy("ann")
            under_way.append(threads.submit(deploy, "bob"))
            assert slow.asked.acquire(timeout=WAIT_S)
        finally:
            slow.go_on.set()
        assert [one.result().function_name for one in under_way] == ["ann", "ann", "ann", "bob"]


def test_who_follows_a_log_leaves_calls_to_operators() -> None:
    log = CallLog()
    service = FunctionService(None, None, None, log)  # type: ignore[arg-type]

    def follow() -> Iterator[functions_pb2.LogLine]:
        lines = service.Logs(functions_pb2.LogsRequest(function_name="f", follow=True), Asking())
        next(lines)
        return lines

    log.finished(Call("f", call_id="c"), "w", CallReport(output=[OutputLine(1, "stdout", "line")]))
    following = deque(follow() for _ in range(32))
    with pytest.raises(ServerBusy, match="32 logs of functions are being followed"):
        follow()
    assert len(list(service.Logs(functions_pb2.LogsRequest(function_name="f"), Asking()))) == 1
    following.pop()  # which ends it, as the end of its caller does
    following.append(follow())
    following.clear()
    log.close()


class SlowOutside:
    """A world outside whose APIs do not answer until they are let (an ``Outside``)."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.answers = threading.Event()

    def secret(self, name: str) -> str:
        return name.upper()

    def request(self, request: ApiRequest) -> ApiResponse:
        self.asked.release()
        assert self.answers.wait(WAIT_S)
        return ApiResponse(200, (), b"", request.url)

    def resolve(self, name: str, kind: str) -> list[str]:
        self.asked.release()
        assert self.answers.wait(WAIT_S)
        return [kind]


class Asking:
    """A caller without a deadline, who is there."""

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> None:
        return None


@pytest.mark.parametrize("kind", ["requests", "lookups"])
def test_a_user_whose_outside_does_not_answer_leaves_it_to_others(kind: str) -> None:
    calls = {user: Call("f", user_id=user) for user in ("ann", "bob")}
    outside = SlowOutside()
    places = UserPlaces(16, "this pool", kind)
    service = OutsideService(calls.get, lambda _call, _timeout_s: outside, places, places)

    def ask(user: str) -> object:
        if kind == "requests":
            wanted = outside_pb2.ExternalApiRequest(token=user, method="GET", url="http://x/")
            return service.CallExternalApi(wanted, Asking())  # type: ignore[arg-type]
        lookup = outside_pb2.ResolveRequest(token=user, name="x", type="A")
        return service.Resolve(lookup, Asking())  # type: ignore[arg-type]

    with ThreadPoolExecutor(16) as threads:
        try:
            hanging = []
            for _ in range(14):
                hanging.append(threads.submit(ask, "ann"))
                assert outside.asked.acquire(timeout=WAIT_S)
            with pytest.raises(ServerBusy, match=f"14 {kind} of this user"):
                ask("ann")
            hanging.append(threads.submit(ask, "bob"))
            assert outside.asked.acquire(timeout=WAIT_S)
            for user in calls:
                found = service.GetSecret(outside_pb2.GetSecretRequest(token=user, name="k"), Asking())
                assert found.value == "K"
        finally:
            outside.answers.set()
        assert all(one.result() for one in hanging)


def test_processor_time_of_a_user_is_limited_by_the_hour() -> None:
    now_s = 1000.0
    calls = UserCalls(UserShares(cpu_s=60, cpu_s_of={"root": 0}), lambda: now_s)

    def call(user: str) -> None:
        with calls.one(user, None, RunningCall()):
            pass

    for user in ("ann", "bob", "root"):
        call(user)
        calls.took(user, 30.0)
        call(user)
    calls.took("ann", 40.0)
    calls.took("root", 4000.0)
    with pytest.raises(FunctionBusy, match=r"took 70 s .* 60 s in an hour .*; try again in 601 s"):
        call("ann")
    call("bob")
    call("root")
    now_s += 601
    call("ann")
