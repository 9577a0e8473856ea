"""The machine has no thread for the moment, or a user interrupts: what was refused never runs, and nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

from storage import StoreClosed, StoreUnavailable
from storage.runtime import Runtime
from storage.submitting import submitted
from tests.scarce_threads import Busy
from tests.storage.helpers import CHUNK, USER, content, get, open_store, push

T = TypeVar("T")
DATA = content(1, 3 * CHUNK)


class Given(Runtime):
    """The machine, with a given executor for chunks."""

    def __init__(self, chunks: Executor) -> None:
        self._chunks = chunks

    def executor(self, threads: int, name: str) -> Executor:
        return self._chunks if name == "store-chunks" else super().executor(threads, name)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    busy = Busy(monkeypatch)
    yield busy
    busy.end()


class Interrupted(ThreadPoolExecutor):
    """The first who waits for an outcome is interrupted."""

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        future = super().submit(work, *arguments, **keywords)
        if self._is_first:
            self._is_first = False

            def interrupt(_timeout: float | None = None) -> T:
                del future.result
                raise KeyboardInterrupt

            future.result = interrupt  # type: ignore[method-assign, assignment]
        return future

    _is_first = True


def test_a_chunk_that_got_no_thread_is_not_stored_later(tmp_path: Path, busy: Busy) -> None:
    with open_store(tmp_path / "store", runtime=Given(busy.executor)) as store:
        with busy.no_threads(), pytest.raises(StoreUnavailable, match="no more threads now"):
            push(store, DATA)
        busy.let_go()
        assert not store.stats().stored_bytes
        assert get(store, push(store, DATA)) == DATA


def test_an_interrupted_upload_that_is_aborted_keeps_no_chunk(tmp_path: Path) -> None:
    with open_store(tmp_path / "store", runtime=Given(Interrupted(2))) as store:
        upload = store.upload(filename="file", user_id=USER)
        with pytest.raises(KeyboardInterrupt):
            upload.write(content(1, 20 * CHUNK))
        upload.abort(keep_chunks=False)
        store.collect(grace_s=0)
        assert not store.stats().stored_bytes


def test_work_that_was_refused_never_runs(busy: Busy) -> None:
    done: list[int] = []
    with busy.no_threads(), pytest.raises(StoreUnavailable):
        submitted("closed", busy.executor, done.append, 1)
    busy.let_go()
    submitted("closed", busy.executor, done.append, 2).result()
    assert done == [2]
    busy.executor.shutdown()
    with pytest.raises(StoreClosed, match=r"^closed$"):
        submitted("closed", busy.executor, done.append, 3)
