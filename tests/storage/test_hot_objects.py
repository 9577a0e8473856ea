"""Small objects that were read lately are kept in memory, but what is a file's content is asked of the catalog."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import FileNotFound, FileStorage, Version
from storage.errors import DataLossError, ShardsUnavailable
from storage.fleet.volumes import VolumeOptions
from storage.keys import Kind, StripeKey, stripe_key
from storage.opening import opened_parts
from storage.runtime import Runtime
from storage.stripes.hot_objects import OBJECT_BYTES_MAX, HotObjects
from tests.storage.helpers import USER, content, digest, get, push, rot_shards, segments

HOT_BYTES = 1 << 20


def store_with_memory(path: Path, *, hot_bytes: int = 0, pushed_bytes: int = 0) -> FileStorage:
    """A new store that keeps small objects in memory, as a pool's store does."""
    with opened_parts(
        path, profile=None, volumes=None, chunk_size=1 << 16, create=True, options=VolumeOptions(), runtime=Runtime()
    ) as parts:
        return FileStorage.over(
            parts.root,
            parts.settings,
            parts.catalog,
            parts.volumes,
            parts.lock,
            hot_bytes=hot_bytes,
            pushed_bytes=pushed_bytes,
        )


@pytest.fixture
def hot_store(scratch: Path) -> Iterator[FileStorage]:
    """A store that keeps what was read."""
    with store_with_memory(scratch / "store", hot_bytes=HOT_BYTES) as store:
        yield store


def lose_all_shards(store: FileStorage) -> None:
    """Cut off everything but the first block of each segment, behind the store's back."""
    for volume in store.volume_paths:
        for segment in segments(volume):
            with segment.open("r+b") as file:
                file.truncate(128)


def test_what_was_read_is_read_again_without_the_volumes(hot_store: FileStorage) -> None:
    read, unread = push(hot_store, content(1, 4096), "read"), push(hot_store, content(2, 4096), "unread")
    assert get(hot_store, read) == content(1, 4096)
    lose_all_shards(hot_store)
    assert get(hot_store, read) == content(1, 4096)
    with hot_store.open_file(read.file_id, user_id=USER) as reader:
        reader.seek(1000)
        assert reader.read(100) == content(1, 4096)[1000:1100]
    (outcome,) = hot_store.get_many([read.file_id], user_id=USER)
    assert outcome.data == content(1, 4096)
    with pytest.raises((DataLossError, ShardsUnavailable)):
        get(hot_store, unread)


def test_a_store_keeps_nothing_by_default(store: FileStorage) -> None:
    version = push(store, content(1, 4096))
    assert get(store, version) == content(1, 4096)
    lose_all_shards(store)
    with pytest.raises((DataLossError, ShardsUnavailable)):
        get(store, version)


def test_large_objects_are_not_kept(hot_store: FileStorage) -> None:
    version = push(hot_store, content(1, OBJECT_BYTES_MAX + 1), "two chunks")
    large = hot_store.push(content(2, 1 << 17), filename="large", user_id=USER, chunk_size=1 << 17)
    assert get(hot_store, version) == content(1, OBJECT_BYTES_MAX + 1)
    assert get(hot_store, large) == content(2, 1 << 17)
    lose_all_shards(hot_store)
    assert get(hot_store, version) == content(1, OBJECT_BYTES_MAX + 1)
    with pytest.raises((DataLossError, ShardsUnavailable)):
        get(hot_store, large)


def test_a_new_version_is_seen_at_once(hot_store: FileStorage) -> None:
    first = push(hot_store, content(1, 4096))
    assert get(hot_store, first) == content(1, 4096)
    second = push(hot_store, content(2, 4096))
    assert second.file_id == first.file_id
    assert hot_store.get(first.file_id, user_id=USER) == content(2, 4096)
    assert get(hot_store, first) == content(1, 4096)


def test_what_a_user_may_not_read_is_not_read_from_memory(hot_store: FileStorage) -> None:
    version = push(hot_store, content(1, 4096))
    get(hot_store, version)
    with pytest.raises(FileNotFound):
        hot_store.get(version.file_id, user_id="another")
    hot_store.delete(version.file_id, user_id=USER)
    with pytest.raises(FileNotFound):
        get(hot_store, version)


def test_a_deleted_file_leaves_memory_at_once(hot_store: FileStorage) -> None:
    kept = push(hot_store, content(0, 4096), "kept")
    assert get(hot_store, kept) == content(0, 4096)
    before = hot_store.hot_objects().bytes_used
    for delete in (delete_file, delete_files, delete_many, delete_newest_version):
        older = push(hot_store, content(1, 4096), "two versions")
        newest = push(hot_store, content(2, OBJECT_BYTES_MAX + 100), "two versions")
        assert get(hot_store, older) == content(1, 4096)
        assert get(hot_store, newest) == content(2, OBJECT_BYTES_MAX + 100)
        assert hot_store.hot_objects().bytes_used > before + OBJECT_BYTES_MAX
        delete(hot_store, newest)
        assert hot_store.hot_objects().bytes_used == before
    assert get(hot_store, older) == content(1, 4096)


def delete_file(store: FileStorage, version: Version) -> None:
    store.delete(version.file_id, user_id=USER)


def delete_files(store: FileStorage, version: Version) -> None:
    store.delete_files([version.file_id], user_id=USER)


def delete_many(store: FileStorage, version: Version) -> None:
    assert [outcome.error for outcome in store.delete_many([version.file_id], user_id=USER)] == [None]


def delete_newest_version(store: FileStorage, version: Version) -> None:
    store.delete_version(version.file_id, version.version_id, user_id=USER)


def test_a_collect_drops_what_it_removes(hot_store: FileStorage) -> None:
    deleted, kept = push(hot_store, content(1, 4096), "deleted"), push(hot_store, content(2, 4096), "kept")
    get(hot_store, deleted)
    get(hot_store, kept)
    hot = hot_store._parts.stripes.hot
    both = hot.size
    hot_store.delete(deleted.file_id, user_id=USER)
    assert hot_store.collect(grace_s=0).objects_removed
    assert hot.size == both // 2
    assert get(hot_store, kept) == content(2, 4096)


def test_a_scrub_finds_rot_that_reads_do_not_see(hot_store: FileStorage) -> None:
    version = push(hot_store, content(1, 4096))
    assert get(hot_store, version) == content(1, 4096)
    (chunk_id,) = hot_store.chunk_ids(version.file_id, user_id=USER)
    rot_shards(hot_store.path, chunk_id, 4, 6, (0, 5))
    assert get(hot_store, version) == content(1, 4096)
    assert hot_store.scrub().rotten == 2
    assert hot_store.repair().shards_rebuilt == 2


def stripe(seed: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, digest(b"%d" % seed), 4, 6)


Reads = st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200)


@given(Reads, st.integers(0, 20_000))
def test_memory_is_bounded_and_contents_are_right(reads: list[tuple[int, bool]], bytes_max: int) -> None:
    hot = HotObjects(bytes_max)
    for seed, forgets in reads:
        data = content(seed, 1 + seed * 97 % 3000)
        target = memoryview(bytearray(len(data)))
        wanted = [(stripe(seed), target)]
        left = hot.fill(wanted)
        if left:
            target[:] = data
            hot.keep(left)
        assert target == data
        assert hot.size <= bytes_max
        if forgets:
            hot.forget([stripe(seed)])
            assert hot.fill(wanted) == wanted


def test_what_was_not_read_for_longest_makes_room() -> None:
    hot = HotObjects(20_000)

    def is_kept(seed: int) -> bool:
        return not hot.fill([(stripe(seed), memoryview(bytearray(4096)))])

    for seed in range(4):
        hot.keep([(stripe(seed), memoryview(content(seed, 4096)))])
    assert is_kept(0)
    hot.keep([(stripe(4), memoryview(content(4, 4096)))])
    assert [is_kept(seed) for seed in range(5)] == [True, False, True, True, True]


def test_a_read_of_another_length_is_left_to_the_stores() -> None:
    hot = HotObjects(20_000)
    hot.keep([(stripe(1), memoryview(content(1, 100)))])
    wanted = [(stripe(1), memoryview(bytearray(99)))]
    assert hot.fill(wanted) == wanted


def test_threads_share_it() -> None:
    hot = HotObjects(100_000)
    wrong: list[int] = []

    def use(number: int) -> Callable[[], None]:
        def run() -> None:
            rng = random.Random(number)
            for _ in range(2000):
                seed = rng.randrange(40)
                data = content(seed, 4000)
                target = memoryview(bytearray(4000))
                left = hot.fill([(stripe(seed), target)])
                if left:
                    target[:] = data
                    hot.keep(left)
                if target != data or hot.size > 100_000:
                    wrong.append(seed)
                if rng.random() < 0.05:
                    hot.forget([stripe(seed)])

        return run

    threads = [threading.Thread(target=use(number)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
