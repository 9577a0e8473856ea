"""Small files that were pushed just now are kept in memory, apart from those that are read often."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import ConflictError, FileNotFound, FileStorage
from storage.keys import Kind, StripeKey, stripe_key
from storage.stripes.hot_objects import OBJECT_BYTES_MAX
from storage.stripes.pushed_objects import PushedObjects
from tests.storage.helpers import USER, content, digest, get, push
from tests.storage.test_hot_objects import (
    delete_file,
    delete_files,
    delete_many,
    delete_newest_version,
    lose_all_shards,
    store_with_memory,
)

PUSHED_BYTES = 100_000
FILE_ID = bytes(16)


@pytest.fixture
def store(scratch: Path) -> Iterator[FileStorage]:
    """A store that keeps what was pushed."""
    with store_with_memory(scratch / "store", pushed_bytes=PUSHED_BYTES) as store:
        yield store


def size_of(store: FileStorage) -> int:
    """The bytes of memory for what was pushed."""
    return store.hot_objects().bytes_used


def test_what_was_pushed_is_read_without_the_volumes(store: FileStorage) -> None:
    version = push(store, content(1, 4096), "alone")
    many = [(f"many/{at}", content(at, 1000 + at)) for at in range(5)]
    pushed = [outcome.result() for outcome in store.push_many(many, user_id=USER)]
    lose_all_shards(store)
    assert get(store, version) == content(1, 4096)
    assert [get(store, each) for each in pushed] == [data for _, data in many]
    assert store.hot_objects().hits == 6


def test_content_that_its_owner_may_change_is_not_kept(store: FileStorage) -> None:
    data = bytearray(content(1, 4096))
    version = store.push(data, filename="changed", user_id=USER)
    data[:] = bytes(4096)
    assert get(store, version) == content(1, 4096)


def test_what_a_commit_refuses_is_not_kept(store: FileStorage) -> None:
    version = push(store, content(1, 4096))
    before = size_of(store)
    with pytest.raises(ConflictError):
        store.push(content(2, 4096), filename=version.filename, user_id=USER, if_absent=True)
    assert size_of(store) == before


def test_a_deleted_file_leaves_memory_at_once(store: FileStorage) -> None:
    kept = push(store, content(0, 4096), "kept")
    before = size_of(store)
    assert before > 4096
    for at, delete in enumerate((delete_file, delete_files, delete_many, delete_newest_version)):
        older = push(store, content(10 + at, 4096), "two versions")
        newest = push(store, content(20 + at, 5000), "two versions")
        assert size_of(store) > before + 9096
        delete(store, newest)
        assert size_of(store) == before
    assert get(store, older) == content(13, 4096)
    with pytest.raises(FileNotFound):
        store.delete(newest.file_id, user_id="another")
    assert size_of(store) == before
    assert get(store, kept) == content(0, 4096)


def test_a_collect_drops_what_it_removes(store: FileStorage) -> None:
    removed = push(store, content(1, 4096), "removed")
    push(store, content(2, 4096), "kept")
    both = size_of(store)
    stripes = list(store._parts.stripes.pushed._objects)
    store.delete(removed.file_id, user_id=USER)
    store._parts.stripes.pushed.keep(stripes[0], content(1, 4096), bytes.fromhex(removed.file_id))
    assert store.collect(grace_s=0).objects_removed
    assert size_of(store) == both // 2


def test_files_deleted_while_they_are_pushed_leave_nothing(store: FileStorage) -> None:
    def push_and_delete(number: int) -> None:
        for at in range(10):
            version = push(store, content(100 * number + at, 4096), f"{number}")
            store.delete(version.file_id, user_id=USER)

    threads = [threading.Thread(target=push_and_delete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert size_of(store) == 0


def stripe(seed: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, digest(b"%d" % seed), 4, 6)


Steps = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5), st.sampled_from(["keep", "forget", "file"])))


@given(Steps, st.integers(0, 20_000))
def test_memory_is_bounded_and_contents_are_right(steps: list[tuple[int, int, str]], bytes_max: int) -> None:
    pushed = PushedObjects(bytes_max)
    kept: dict[int, int] = {}  # the file of each object
    for seed, file, step in steps:
        data = content(seed, 1 + seed * 97 % 3000)
        if step == "keep":
            pushed.keep(stripe(seed), data, bytes([file] * 16))
            kept[seed] = file
        elif step == "forget":
            pushed.forget([stripe(seed)])
            kept.pop(seed, None)
        else:
            pushed.forget_files([bytes([file] * 16)])
            kept = {each: of for each, of in kept.items() if of != file}
        assert pushed.size <= bytes_max
        for each in range(31):
            target = memoryview(bytearray(1 + each * 97 % 3000))
            if not pushed.fill([(stripe(each), target)]):
                assert each in kept
                assert target == content(each, len(target))
    for file in range(6):
        pushed.forget_files([bytes([file] * 16)])
    assert pushed.size == 0


def test_what_was_not_used_for_longest_makes_room() -> None:
    pushed = PushedObjects(20_000)

    def is_kept(seed: int) -> bool:
        return not pushed.fill([(stripe(seed), memoryview(bytearray(4096)))])

    for seed in range(4):
        pushed.keep(stripe(seed), content(seed, 4096), FILE_ID)
    assert is_kept(0)
    pushed.keep(stripe(4), content(4, 4096), FILE_ID)
    assert [is_kept(seed) for seed in range(5)] == [True, False, True, True, True]


def test_large_objects_and_reads_of_another_length_are_left_to_the_stores() -> None:
    pushed = PushedObjects(1 << 20)
    pushed.keep(stripe(1), content(1, OBJECT_BYTES_MAX + 1), FILE_ID)
    assert pushed.size == 0
    pushed.keep(stripe(1), content(1, 100), FILE_ID)
    wanted = [(stripe(1), memoryview(bytearray(99)))]
    assert pushed.fill(wanted) == wanted


def test_threads_share_it() -> None:
    pushed = PushedObjects(PUSHED_BYTES)
    wrong: list[int] = []

    def use(number: int) -> Callable[[], None]:
        def run() -> None:
            rng = random.Random(number)
            for _ in range(2000):
                seed = rng.randrange(40)
                data = content(seed, 4000)
                target = memoryview(bytearray(4000))
                if pushed.fill([(stripe(seed), target)]):
                    pushed.keep(stripe(seed), data, bytes([seed % 5] * 16))
                elif target != data:
                    wrong.append(seed)
                if pushed.size > PUSHED_BYTES:
                    wrong.append(seed)
                if rng.random() < 0.05:
                    pushed.forget_files([bytes([seed % 5] * 16)])

        return run

    threads = [threading.Thread(target=use(number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
