"""Few threads for quick calls: others join when these wait, and every call is made once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, wait
from typing import Any

import pytest

from storage import FileStorage, Version
from taskworker import Client
from taskworker.rpc.quick_threads import QuickThreads

TIMEOUT_S = 30


def finished(futures: list[Future[int]]) -> list[int]:
    """The results of calls, all of which must end."""
    assert not wait(futures, TIMEOUT_S).not_done
    return [future.result() for future in futures]


def test_calls_that_wait_do_not_hold_up_others() -> None:
    threads = QuickThreads(16, few=2)
    gate = threading.Event()
    blocked = [threads.submit(gate.wait, TIMEOUT_S) for _ in range(6)]
    for _ in range(3):
        assert finished([threads.submit(int, number) for number in range(50)]) == list(range(50))
    assert not any(future.done() for future in blocked)
    gate.set()
    assert not wait(blocked, TIMEOUT_S).not_done
    threads.shutdown()


def test_nobody_looks_after_calls_for_which_there_are_threads() -> None:
    threads = QuickThreads(16, few=2)
    for _ in range(200):
        assert finished([threads.submit(int, 1), threads.submit(int, 2)]) == [1, 2]
    cancelled: Future[int] = threads.submit(int, 3)
    cancelled.cancel()
    assert threads._watcher is None
    gate = threading.Event()
    blocked = [threads.submit(gate.wait, TIMEOUT_S) for _ in range(2)]
    assert finished([threads.submit(int, 4)]) == [4]  # by a helper
    gate.set()
    assert not wait(blocked, TIMEOUT_S).not_done
    threads.shutdown()


def test_threads_that_cannot_be_started_now_are_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = QuickThreads(16, few=2)
    start, refused = threading.Thread.start, Counter[str]()

    def starting(thread: threading.Thread) -> None:
        if thread.name in ("quick-watch", "quick-helper") and refused[thread.name] < 2:
            refused[thread.name] += 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starting)
    gate = threading.Event()
    blocked = [threads.submit(gate.wait, TIMEOUT_S) for _ in range(6)]
    assert finished([threads.submit(int, number) for number in range(50)]) == list(range(50))
    assert refused == {"quick-watch": 2, "quick-helper": 2}
    gate.set()
    assert not wait(blocked, TIMEOUT_S).not_done
    threads.shutdown()


def test_there_are_no_more_threads_than_allowed() -> None:
    threads = QuickThreads(3, few=1)
    gate, inside, started = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        started.release()
        gate.wait(TIMEOUT_S)
        inside.release()

    futures = [threads.submit(work) for _ in range(8)]
    for _ in range(3):
        assert started.acquire(timeout=TIMEOUT_S)
    assert not started.acquire(timeout=0.05)
    gate.set()
    assert not wait(futures, TIMEOUT_S).not_done
    threads.shutdown()


def test_errors_and_callbacks_are_those_of_an_executor() -> None:
    threads = QuickThreads(4)
    told: list[object] = []
    failed = threads.submit(int, "x")
    failed.add_done_callback(told.append)
    with pytest.raises(ValueError, match="invalid literal"):
        failed.result(TIMEOUT_S)
    threads.shutdown()
    assert told == [failed]


def test_a_shutdown_waits_for_all_calls() -> None:
    threads = QuickThreads(4, few=1)
    gate = threading.Event()
    made: list[int] = []
    threads.submit(gate.wait, TIMEOUT_S)
    for number in range(20):
        threads.submit(made.append, number)
    ending = threading.Thread(target=threads.shutdown)
    ending.start()
    gate.set()
    ending.join(TIMEOUT_S)
    assert sorted(made) == list(range(20))
    with pytest.raises(RuntimeError):
        threads.submit(made.append, 0)


def test_gets_of_small_files_use_them(client: Client, store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = client.push(b"small", filename="a", user_id="u1")
    names: list[str] = []
    getting = FileStorage.get_small

    def noting(self: FileStorage, *arguments: Any, **options: Any) -> tuple[Version, bytes | None]:
        names.append(threading.current_thread().name)
        return getting(self, *arguments, **options)

    monkeypatch.setattr(FileStorage, "get_small", noting)
    assert client.get(version.file_id, user_id="u1") == b"small"
    assert names[0].startswith("quick")
