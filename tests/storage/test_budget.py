"""The memory that all calls together may hold."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storage.budget import Budget
from storage.engine import parts
from storage.runtime import Runtime
from storage.write import context
from tests.storage.helpers import CHUNK, USER, content, get, open_store, push

T = TypeVar("T")


class Counting(ThreadPoolExecutor):
    """Counts submitted work, and the most that was unfinished at the same time."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.submitted = self.most = self._under_way = 0
        self._counts = threading.Lock()

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        with self._counts:
            self.submitted += 1
            self._under_way += 1
            self.most = max(self.most, self._under_way)
        return super().submit(self._run, work, *arguments, **keywords)

    def _run(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> T:
        try:
            return work(*arguments, **keywords)
        finally:
            with self._counts:
                self._under_way -= 1


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counting]:
    """The executors of stores opened from now on, by name."""
    made: dict[str, Counting] = {}

    def executor(_runtime: Runtime, threads: int, name: str) -> Executor:
        made[name] = Counting(threads)
        return made[name]

    monkeypatch.setattr(Runtime, "executor", executor)
    return made


def test_uploads_share_what_is_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executors: dict[str, Counting]
) -> None:
    monkeypatch.setattr(context, "IN_FLIGHT_BYTES_ALL", 3 * CHUNK)
    files = {f"file-{number}": content(number, 20 * CHUNK + 5) for number in range(4)}
    with open_store(tmp_path / "store") as store, ThreadPoolExecutor() as users:
        pushed = {name: users.submit(push, store, data, name) for name, data in files.items()}
        for name, data in files.items():
            assert get(store, pushed[name].result()) == data
    assert 2 <= executors["store-chunks"].most <= 3


def test_readers_share_what_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executors: dict[str, Counting]
) -> None:
    monkeypatch.setattr(parts, "AHEAD_BYTES_ALL", 4 * CHUNK)
    data = content(1, 12 * CHUNK)
    with open_store(tmp_path / "store") as store:
        file_id = push(store, data, "file").file_id
        loads = executors["read-chunks"]
        readers = [store.open_file(file_id, user_id=USER) for _ in range(3)]
        pieces = [reader.iter_chunks() for reader in readers]
        asked = []
        for each in pieces:
            before = loads.submitted
            assert bytes(next(each)) == data[:CHUNK]
            asked.append(loads.submitted - before)
        assert asked == [5, 1, 1]  # the first reads its own and four ahead; the others only their own
        pieces[0].close()  # type: ignore[attr-defined]
        assert b"".join(map(bytes, pieces[1])) == data[CHUNK:]
        for reader in readers:
            reader.close()


def test_a_budget_is_waited_for_and_more_than_all_of_it_is_had_alone() -> None:
    budget = Budget(10)
    assert budget.try_take(25)
    assert not budget.try_take(1)
    had = threading.Event()

    def wait() -> None:
        budget.take(10)
        had.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not had.is_set()
    budget.give_back(25)
    waiting.join()
    assert had.is_set()
    assert not budget.try_take(1)
    budget.give_back(10)
    assert budget.try_take(1)


def test_whoever_is_interrupted_while_it_waits_keeps_nothing() -> None:
    budget = Budget(10)
    budget.take(5)
    others = ThreadPoolExecutor()

    def interrupt() -> None:
        while budget.try_take(1):  # nobody is waiting yet
            budget.give_back(1)
        behind.append(others.submit(budget.take, 4))
        threading.Event().wait(0.2)  # a signal that comes just before the wait would not end it
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    behind: list[Future[None]] = []
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes that run tests may ignore it
    try:
        interrupting = others.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            budget.take(8)
    finally:
        signal.signal(signal.SIGINT, former)
    interrupting.result()
    budget.give_back(5)
    behind[0].result(60)
    budget.give_back(4)
    assert budget.try_take(10)
    others.shutdown()
