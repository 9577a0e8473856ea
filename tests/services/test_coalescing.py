"""Calls that threads make at the same time share calls: each gets its own answer, whatever becomes of the others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest

from storage.errors import StorageError
from taskworker.client.coalescing import Coalescing
from taskworker.client.deadline import Deadline
from taskworker.client.scope import CallScope, current_scope
from taskworker.errors import CallAbandoned, DeadlineExceeded, StorageUnavailable

WAIT_S = 30.0
ENDLESS = Deadline(None)


class Server:
    """Answers each number with its text, once it is let; counts its calls."""

    def __init__(self) -> None:
        self.alone: list[int] = []
        self.together: list[list[int]] = []
        self.answering = threading.Event()
        self.begun = threading.Semaphore(0)
        self.broken: Callable[[int], None] = lambda _position: None
        self.calls: Coalescing[str, int, str] = Coalescing(self._together, 64)

    def _together(self, group: str, asked: Sequence[int], deadline: Deadline) -> Iterator[str | None]:
        self.together.append(list(asked))
        self.begun.release()
        assert self.answering.wait(deadline.remaining_s() or WAIT_S)
        for position, number in enumerate(asked):
            self.broken(position)
            yield None if number < 0 else f"{group}{number}"

    def _alone(self, group: str, number: int) -> str:
        self.alone.append(number)
        self.begun.release()
        assert self.answering.wait(WAIT_S)
        return f"{group}{number} alone"

    def ask(self, number: int, group: str = "", deadline: Deadline = ENDLESS) -> str:
        return self.calls.call(group, number, lambda: self._alone(group, number), deadline)

    def await_begun(self, count: int) -> None:
        for _ in range(count):
            assert self.begun.acquire(timeout=WAIT_S)

    def waits(self, count: int) -> None:
        """Wait until so many callers wait for others' calls."""
        for _ in range(int(WAIT_S / 0.002)):
            if sum(map(len, self.calls._waiting.values())) == count:
                return
            threading.Event().wait(0.002)
        raise AssertionError(f"{self.calls._waiting} wait")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers wait for others as long as it takes."""
    monkeypatch.setattr("taskworker.client.coalescing._WAIT_S", WAIT_S)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.calls._under_way == 0
    assert not server.calls._waiting


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as threads:
        yield threads


def busy(server: Server, threads: ThreadPoolExecutor) -> list[Future[str]]:
    """As many calls under way as are made at once."""
    asked = [threads.submit(server.ask, number) for number in (100, 101)]
    server.await_begun(2)
    return asked


@pytest.mark.usefixtures("patient")
def test_those_who_find_calls_under_way_go_together(server: Server, threads: ThreadPoolExecutor) -> None:
    first = busy(server, threads)
    others = {number: threads.submit(server.ask, number) for number in range(10)}
    server.waits(10)
    server.answering.set()
    assert [each.result(WAIT_S) for each in first] == ["100 alone", "101 alone"]
    assert {number: each.result(WAIT_S) for number, each in others.items()} == {n: str(n) for n in range(10)}
    assert sorted(server.alone) == [100, 101]
    assert [sorted(asked) for asked in server.together] == [list(range(10))]


@pytest.mark.usefixtures("patient")
def test_only_calls_of_one_group_go_together(server: Server, threads: ThreadPoolExecutor) -> None:
    busy(server, threads)
    asked = [threads.submit(server.ask, number, "ab"[number % 2]) for number in range(8)]
    server.waits(8)
    server.answering.set()
    assert [each.result(WAIT_S) for each in asked] == ["a0", "b1", "a2", "b3", "a4", "b5", "a6", "b7"]
    assert sorted(map(sorted, server.together)) == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.usefixtures("patient")
def test_nobody_waits_for_the_end_of_calls_over_a_distant_link(server: Server, threads: ThreadPoolExecutor) -> None:
    calls = threads.submit(server.ask, 0)
    server.await_begun(1)
    time.sleep(0.02)
    server.answering.set()
    calls.result(WAIT_S)
    server.answering.clear()
    server.alone.clear()
    busy(server, threads)
    late = threads.submit(server.ask, 1)
    server.await_begun(1)  # though the others still run
    assert server.alone[2:] == [1]
    server.answering.set()
    assert late.result(WAIT_S) == "1 alone"


def test_nobody_waits_for_slow_calls(server: Server, threads: ThreadPoolExecutor) -> None:
    busy(server, threads)
    late = threads.submit(server.ask, 1)
    server.await_begun(1)  # though the others still run
    assert server.alone[2:] == [1]
    server.answering.set()
    assert late.result(WAIT_S) == "1 alone"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("answered", [0, 3, 7])
def test_what_fails_together_is_made_alone(server: Server, threads: ThreadPoolExecutor, answered: int) -> None:
    def broken(position: int) -> None:
        if position == answered:
            raise StorageUnavailable("the connection broke")

    server.broken = broken
    busy(server, threads)
    asked = [threads.submit(server.ask, number) for number in range(8)]
    server.waits(8)
    server.answering.set()
    got = sorted(each.result(WAIT_S) for each in asked)
    assert len([answer for answer in got if answer.endswith(" alone")]) == 8 - answered
    assert {answer.split()[0] for answer in got} == set(map(str, range(8)))


@pytest.mark.usefixtures("patient")
def test_what_has_no_answer_is_made_alone(server: Server, threads: ThreadPoolExecutor) -> None:
    busy(server, threads)
    asked = [threads.submit(server.ask, number) for number in (-2, -1, 1, 2)]
    server.waits(4)
    server.answering.set()
    assert [each.result(WAIT_S) for each in asked] == ["-2 alone", "-1 alone", "1", "2"]


@pytest.mark.usefixtures("patient")
def test_an_interrupted_thread_leaves_the_others_nothing_to_wait_for(
    server: Server, threads: ThreadPoolExecutor
) -> None:
    def broken(_position: int) -> None:
        raise KeyboardInterrupt

    server.broken = broken
    busy(server, threads)
    asked = [threads.submit(server.ask, number) for number in range(8)]
    server.waits(8)
    server.answering.set()
    errors = [each.exception(WAIT_S) for each in asked]
    assert [type(error) for error in errors if error is not None] == [KeyboardInterrupt]
    assert sum(each.exception() is None and each.result().endswith(" alone") for each in asked) == 7


@pytest.mark.usefixtures("patient")
def test_a_caller_waits_no_longer_than_until_its_deadline(server: Server, threads: ThreadPoolExecutor) -> None:
    busy(server, threads)
    with pytest.raises(DeadlineExceeded):
        server.ask(1, deadline=Deadline(0.05))
    asked = threads.submit(server.ask, 2)
    server.waits(1)
    server.answering.set()
    assert asked.result(WAIT_S) == "2 alone"  # as it is the only one


@pytest.mark.usefixtures("patient")
def test_a_cancelled_caller_waits_no_longer(server: Server, threads: ThreadPoolExecutor) -> None:
    busy(server, threads)
    scope = CallScope()

    def within_scope(number: int) -> str:
        token = current_scope.set(scope)
        try:
            return server.ask(number)
        finally:
            current_scope.reset(token)

    cancelled = threads.submit(within_scope, 1)
    others = [threads.submit(server.ask, number) for number in (2, 3)]
    server.waits(3)
    scope.cancel()
    assert isinstance(cancelled.exception(WAIT_S), CallAbandoned)
    server.answering.set()
    assert [each.result(WAIT_S) for each in others] == ["2", "3"]


def test_a_caller_that_others_keep_waiting_makes_its_own_call(
    server: Server, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskworker.client.coalescing._WAIT_S", 1.0)
    monkeypatch.setattr("taskworker.client.coalescing._PATIENCE_S", 0.05)
    busy(server, threads)
    asked = [threads.submit(server.ask, number) for number in range(4)]
    server.await_begun(1 + 3)  # one call together, and the three who do not lead it alone
    assert len(server.together) == 1
    server.answering.set()
    assert sorted(each.result(WAIT_S).split()[0] for each in asked) == ["0", "1", "2", "3"]


def test_many_threads_get_their_own_answers(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskworker.client.coalescing._CALLS_MAX", 1)
    rng = random.Random(1)
    asked_together: list[int] = []

    def together(group: int, asked: Sequence[int], _deadline: Deadline) -> Iterator[int | None]:
        asked_together.append(len(asked))
        for position, number in enumerate(asked):
            if number % 97 == 0:
                return  # the rest has no answers
            if number % 89 == 0:
                raise StorageError("broken")
            yield None if number % 83 == 0 else group * 1_000_000 + number
            assert position < 64

    calls: Coalescing[int, int, int] = Coalescing(together, 64)

    def slowly(answer: int) -> int:
        time.sleep(0.0005)
        return answer

    def caller(first: int) -> None:
        for number in range(first, first + 200):
            group = number % 2
            alone = partial(slowly, group * 1_000_000 + number)
            assert calls.call(group, number, alone, Deadline(WAIT_S)) == group * 1_000_000 + number

    for each in [threads.submit(caller, rng.randrange(10**6)) for _ in range(24)]:
        each.result(WAIT_S)
    assert max(asked_together) > 1
    assert calls._under_way == 0
    assert not calls._waiting
