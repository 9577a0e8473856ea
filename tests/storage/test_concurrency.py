"""Many concurrent threads: nothing is lost, nothing waits for ever, and heads change one at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import ConflictError, FileNotFound, FileStorage, StorageError, StoreClosed, Version
from tests.storage.helpers import CHUNK, USER, check_all, content, diff_of, digest, get, open_store, push, push_many

PATIENCE_S = 120
THREADS = 6


def at_once(*work: Callable[[], object]) -> list[Exception]:
    """Run all functions in threads and return their errors. Fails if one does not end."""
    errors: list[Exception] = []
    start = threading.Barrier(len(work))

    def run(job: Callable[[], object]) -> None:
        start.wait()
        try:
            job()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,), daemon=True) for job in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return errors


# -- heads ------------------------------------------------------------------------------------------------


def test_pushes_to_one_name_make_one_chain(store: FileStorage) -> None:
    def pusher(seed: int) -> Callable[[], object]:
        return lambda: [push(store, content(seed, 100 + number)) for number in range(10)]

    assert at_once(*(pusher(seed) for seed in range(THREADS))) == []
    (head,) = store.list_files(user_id=USER)
    history = store.history(head.file_id, user_id=USER)
    assert len({version.version_id for version in history}) == len(history) == 10 * THREADS
    assert [version.sequence for version in history] == sorted((v.sequence for v in history), reverse=True)
    assert [version.parent_id for version in history] == [*(v.version_id for v in history[1:]), None]
    assert (store.stats().files, store.stats().versions) == (1, 10 * THREADS)


@pytest.mark.parametrize("size", [100, 3 * CHUNK])
def test_equal_content_pushed_at_once(store: FileStorage, size: int) -> None:
    versions: list[Version] = []
    assert at_once(*[lambda: versions.append(push(store, content(1, size)))] * THREADS) == []
    assert len(set(versions)) == 1
    assert get(store, versions[0]) == content(1, size)
    assert store.scrub().clean


def test_one_of_many_revisions_wins(store: FileStorage) -> None:
    base = push(store, content(1, 2 * CHUNK))
    won: list[Version] = []

    def reviser(seed: int) -> Callable[[], None]:
        data = content(seed + 10, CHUNK)
        diff = diff_of(base, 2 * CHUNK, [(1, digest(data), data)])
        return lambda: won.append(store.revise(base.file_id, diff, user_id=USER))

    errors = at_once(*(reviser(seed) for seed in range(THREADS)))
    (winner,) = won
    assert len(errors) == THREADS - 1
    for error in errors:
        assert isinstance(error, ConflictError)
        assert error.head == winner.version_id
    assert store.history(base.file_id, user_id=USER) == [winner, base]


def test_a_delete_among_revisions(store: FileStorage) -> None:
    base = push(store, b"base")
    diff = store.diff(base.file_id, b"next", user_id=USER)
    errors = at_once(
        lambda: store.delete(base.file_id, user_id=USER), lambda: store.revise(base.file_id, diff, user_id=USER)
    )
    assert all(isinstance(error, FileNotFound) for error in errors)
    assert store.list_files(user_id=USER) == []
    assert store.stats().files == 0
    assert store.stats().logical_bytes == 0


def test_one_of_many_deletes_wins(store: FileStorage) -> None:
    version = push(store, b"x")
    errors = at_once(*[lambda: store.delete(version.file_id, user_id=USER)] * THREADS)
    assert [type(error) for error in errors] == [FileNotFound] * (THREADS - 1)
    assert store.stats().files == 0


# -- everything at once -------------------------------------------------------------------------------------


class Worker:
    """A user who pushes, revises, reads and deletes their own files, and knows their contents."""

    def __init__(self, store: FileStorage, number: int, rounds: int) -> None:
        self.store = store
        self.user = f"user {number}"
        self.rounds = rounds
        self.rng = random.Random(number)
        self.kept: dict[str, tuple[Version, bytes]] = {}

    def __call__(self) -> None:
        for _ in range(self.rounds):
            self.rng.choice([self.push, self.push, self.revise, self.read, self.delete, self.list])()
        check_all(self.store, self.kept)

    def _data(self) -> bytes:
        """Return one of few contents, so that users share chunks, and chunks are freed and stored again."""
        return content(self.rng.randrange(3), self.rng.choice([50, 5000, CHUNK, 2 * CHUNK + 1]))

    def push(self) -> None:
        name, data = f"f{self.rng.randrange(5)}", self._data()
        self.kept[name] = push(self.store, data, name, self.user), data

    def revise(self) -> None:
        if self.kept:
            name = self.rng.choice(sorted(self.kept))
            version, data = self.kept[name][0], self._data()
            diff = self.store.diff(version.file_id, data, user_id=self.user)
            self.kept[name] = self.store.revise(version.file_id, diff, user_id=self.user), data

    def read(self) -> None:
        check_all(self.store, dict([self.rng.choice(sorted(self.kept.items()))] if self.kept else []))

    def delete(self) -> None:
        if self.kept:
            version, _ = self.kept.pop(self.rng.choice(sorted(self.kept)))
            self.store.delete(version.file_id, user_id=self.user)

    def list(self) -> None:
        assert [version.filename for version in self.store.list_files(user_id=self.user)] == sorted(self.kept)
        for version, _ in self.kept.values():
            assert self.store.history(version.file_id, user_id=self.user)[0] == version


def _everything_at_once(root: Path, rounds: int, maintenance: int) -> None:
    with open_store(root, k=2, n=3, segment_bytes_max=200_000) as store:
        workers = [Worker(store, number, rounds) for number in range(4)]

        def keeper(action: Callable[[], object]) -> Callable[[], object]:
            return lambda: [action() for _ in range(maintenance)]

        upkeepers = [keeper(lambda: store.collect(grace_s=0)), keeper(store.scrub), keeper(store.repair)]
        assert at_once(*workers, *upkeepers) == []
        store.collect(grace_s=0)
        for worker in workers:
            check_all(store, worker.kept)
        assert store.repair().complete
        assert store.scrub().clean
    with open_store(root) as store:
        for worker in workers:
            check_all(store, worker.kept)
        assert store.stats().files == sum(len(worker.kept) for worker in workers)


@pytest.mark.parametrize("run", range(4))
def test_users_and_upkeep_at_once(root: Path, run: int) -> None:
    _everything_at_once(root, rounds=100, maintenance=15)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", range(20))
def test_users_and_upkeep_at_once_at_length(root: Path, run: int) -> None:
    _everything_at_once(root, rounds=300, maintenance=40)


@pytest.mark.parametrize("size", [100, 3 * CHUNK])
def test_pushes_in_the_middle_of_a_scrub(store: FileStorage, size: int) -> None:
    """Shards written during a scrub must not count as rotten."""
    pushed = {"first": (push(store, content(0, CHUNK), "first"), content(0, CHUNK))}

    def progress(done: int, total: int) -> None:
        name = f"{len(pushed)}"
        pushed[name] = push(store, content(len(pushed), size), name), content(len(pushed), size)

    assert store.scrub(progress=progress).rotten == 0
    assert len(pushed) > 6
    check_all(store, pushed)
    assert store.scrub().clean


def test_repairs_in_the_middle_of_a_collect(store: FileStorage) -> None:
    pushed = push_many(store, [5000] * 5)
    store.delete(push(store, content(9, CHUNK), "doomed").file_id, user_id=USER)

    def progress(done: int, total: int) -> None:
        if done % 60 == 0:
            assert store.repair().complete
            assert store.scrub().clean

    store.collect(grace_s=0, progress=progress)
    check_all(store, pushed)
    assert store.scrub().clean


def test_closing_amid_it_all(root: Path) -> None:
    """Interrupted calls raise; everything that was acknowledged is stored."""
    store = open_store(root)
    acknowledged: list[tuple[Version, bytes]] = []
    begun = threading.Semaphore(0)

    def pusher(seed: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(10_000):
                data = content(seed, 10 + number * 5000 % (3 * CHUNK))
                acknowledged.append((push(store, data, f"{seed} {number}"), data))
                begun.release()

        return run

    def closer() -> None:
        for _ in range(20):
            begun.acquire()
        store.close()

    errors = at_once(*(pusher(seed) for seed in range(4)), closer)
    assert len(errors) == 4
    assert all(isinstance(error, StorageError) for error in errors), errors
    assert {type(error) for error in errors} == {StoreClosed}
    with open_store(root) as again:
        for version, data in acknowledged:
            assert get(again, version) == data
        assert again.scrub().clean
