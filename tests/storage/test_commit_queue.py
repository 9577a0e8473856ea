"""Versions wait in a queue, and are committed in batches by one of the threads that wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from storage.errors import StorageError
from storage.write import queue as queue_module
from storage.write.pending import PendingVersion
from storage.write.queue import CommitQueue

DONE: Any = object()
A_LONG_TIME_S = 3600.0
"""Whoever waits this long for others hangs, and the test fails."""


class Version(PendingVersion):
    """A version of which only the outcome matters."""

    def __init__(self, problem: Exception | None = None) -> None:
        nothing: Any = None
        super().__init__(nothing, nothing, [], [], {}, None, None, ())
        self.problem = problem

    def prepare(self) -> None:
        if self.problem is not None:
            raise self.problem


class Committed:
    """A queue that notes the sizes of its batches.

    Attributes:
        sizes: the sizes.
        before: called with the number of each batch, from 0, before it is settled.
        now_s: what the queue's clock shows.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.before: Callable[[int], None] = lambda number: None
        self.now_s = 100.0
        self.queue = CommitQueue(self._commit, lambda: self.now_s)

    def _commit(self, batch: list[PendingVersion]) -> None:
        self.sizes.append(len(batch))
        self.before(len(self.sizes) - 1)
        for pending in batch:
            pending.settle(DONE)

    def await_waiting(self, count: int) -> None:
        """Wait until this many versions are in the queue."""
        deadline = time.monotonic() + 20
        while len(self.queue) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(self.queue) == count


def in_threads(*work: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one, daemon=True) for one in work]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader waits for others as long as it takes."""
    monkeypatch.setattr(queue_module, "_GATHER_S", A_LONG_TIME_S)


def push_together(committed: Committed, rounds: int) -> list[threading.Thread]:
    """Let one thread commit a version alone, and four others, which wait meanwhile, commit some more."""

    def push(times: int) -> None:
        for _ in range(times):
            committed.queue.commit_all([Version()])

    committed.before = lambda number: committed.await_waiting(4) if number == 0 else None
    first = in_threads(lambda: push(1))
    while not committed.sizes:
        time.sleep(0.001)
    return first + in_threads(*[lambda: push(rounds)] * 4)


@pytest.mark.usefixtures("patient")
def test_a_thread_on_its_own_waits_for_nobody() -> None:
    committed = Committed()
    for _ in range(3):
        committed.queue.commit_all([Version()])
    committed.queue.commit_all([Version(), Version(), Version()])
    committed.queue.commit_all([Version()])
    assert committed.sizes == [1, 1, 1, 3, 1]


@pytest.mark.usefixtures("patient")
def test_threads_that_were_in_a_batch_together_are_in_the_next_one_together() -> None:
    committed = Committed()
    joined(push_together(committed, rounds=5))
    assert committed.sizes == [1, 4, 4, 4, 4, 4]


def test_a_leader_does_not_wait_for_ever_for_the_others() -> None:
    committed = Committed()
    joined(push_together(committed, rounds=1))
    committed.queue.commit_all([Version()])
    assert committed.sizes == [1, 4, 1]


@pytest.mark.usefixtures("patient")
def test_nobody_waits_for_threads_of_a_batch_that_ended_long_ago() -> None:
    committed = Committed()
    joined(push_together(committed, rounds=1))
    committed.now_s += 2 * A_LONG_TIME_S
    committed.queue.commit_all([Version()])
    assert committed.sizes == [1, 4, 1]


def test_a_version_that_cannot_be_prepared_fails_alone_and_at_once() -> None:
    committed = Committed()
    bad, good = Version(ValueError("no")), Version()
    failed = threading.Event()

    def push_bad() -> None:
        committed.queue.commit_all([bad])
        failed.set()

    def before(number: int) -> None:
        if number == 0:
            committed.await_waiting(2)
        else:
            assert failed.wait(20)  # it does not wait for the others' commit

    committed.before = before
    threads = in_threads(lambda: committed.queue.commit_all([Version()]))
    while not committed.sizes:
        time.sleep(0.001)
    threads += in_threads(lambda: committed.queue.commit_all([good]))
    committed.await_waiting(1)
    threads += in_threads(push_bad)
    joined(threads)
    assert committed.sizes == [1, 1]
    assert good.result() is DONE
    with pytest.raises(ValueError, match="no"):
        bad.result()


def test_a_leader_that_cannot_be_prepared_commits_the_others() -> None:
    committed = Committed()
    bad, good = Version(ValueError("no")), Version()
    committed.queue.commit_all([bad, good])
    assert committed.sizes == [1]
    assert good.result() is DONE
    committed.queue.commit_all([Version(ValueError("no"))])
    assert committed.sizes == [1]


def test_an_interrupted_commit_fails_for_all_and_the_queue_goes_on() -> None:
    committed = Committed()
    interrupted = threading.Event()

    def before(number: int) -> None:
        if number == 0:
            raise KeyboardInterrupt

    def push() -> None:
        try:
            committed.queue.commit_all([one, other])
        except KeyboardInterrupt:
            interrupted.set()

    committed.before = before
    one, other = Version(), Version()
    joined(in_threads(push))
    assert interrupted.is_set()
    for version in (one, other):
        with pytest.raises(StorageError, match="interrupted"):
            version.result()
    later = Version()
    committed.queue.commit_all([later])
    assert later.result() is DONE
