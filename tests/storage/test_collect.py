"""Collect frees everything that nobody needs, at any time, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import FileStorage, Version
from storage.keys import ShardKey
from tests.storage.helpers import (
    CHUNK,
    USER,
    check_all,
    content,
    digest,
    file_shards,
    get,
    open_store,
    push,
    push_many,
    segments,
    volume_dir,
)

DATA = content(1, 4 * CHUNK + 5)
IDS = [digest(DATA[i : i + CHUNK]) for i in range(0, len(DATA), CHUNK)]


def _dying(store: FileStorage) -> None:
    """Push and delete a file, so that its chunks are on the volumes and nobody needs them."""
    store.delete(push(store, DATA, "dying").file_id, user_id=USER)


def test_space_comes_back(root: Path) -> None:
    with open_store(root, segment_bytes_max=100_000) as store:
        kept = push_many(store, [5000] * 5)
        before = store.stats().stored_bytes
        pushed = [push(store, content(seed, 3 * CHUNK), f"doomed {seed}") for seed in range(50, 60)]
        for version in pushed:
            store.delete(version.file_id, user_id=USER)
        report = store.collect(grace_s=0)
        assert report.objects_removed == 10 * (3 + 1)
        assert report.shards_removed == 6 * report.objects_removed
        assert report.bytes_freed > 10 * 3 * CHUNK * 6 / 4
        assert report.segments_compacted > 0
        assert store.stats().stored_bytes < before * 2 + 10 * 6 * 200
        check_all(store, kept)
        assert store.scrub().clean
        again = store.collect(grace_s=0)
        assert (again.objects_removed, again.shards_removed) == (0, 0)


def test_old_versions_are_kept(store: FileStorage) -> None:
    versions = [push(store, content(seed, 2 * CHUNK)) for seed in range(4)]
    assert store.collect(grace_s=0).objects_removed == 0
    for seed, version in enumerate(versions):
        assert get(store, version) == content(seed, 2 * CHUNK)


def test_chunks_that_others_have_are_kept(store: FileStorage) -> None:
    mine, theirs = push(store, DATA, user="ada"), push(store, DATA, user="bob")
    store.delete(mine.file_id, user_id="ada")
    store.collect(grace_s=0)
    assert get(store, theirs) == DATA
    assert store.scrub().clean


def test_a_leaf_that_others_have_is_kept(root: Path) -> None:
    """Files share manifest nodes like chunks."""
    data = b"".join(number.to_bytes(4, "big") * (CHUNK // 4) for number in range(1030))
    with open_store(root, k=1, n=2) as store:
        first, second = push(store, data, "first"), push(store, data, "second")
        third = push(store, data[:-CHUNK], "third")
        store.delete(first.file_id, user_id=USER)
        store.delete(third.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert get(store, second) == data
        assert store.scrub().clean


# -- beside pushes in flight ----------------------------------------------------------------------------------


def test_an_upload_that_counts_on_dying_chunks(store: FileStorage) -> None:
    _dying(store)
    upload = store.upload(filename="f", user_id=USER)
    upload.write(DATA)
    for _ in range(2):
        store.collect(grace_s=0)
    version = upload.commit()
    store.collect(grace_s=0)
    assert get(store, version) == DATA
    assert store.scrub().clean


def test_an_upload_that_reuses_dying_chunks(store: FileStorage) -> None:
    _dying(store)
    upload = store.upload(filename="f", user_id=USER)
    upload.reuse(IDS[:3])
    store.collect(grace_s=0)
    version = upload.commit()
    store.collect(grace_s=0)
    assert get(store, version) == DATA[: 3 * CHUNK]
    assert store.missing_chunks(IDS[:3], user_id=USER) == [False] * 3


def test_chunks_of_an_upload_that_is_not_finished(store: FileStorage) -> None:
    upload = store.upload(filename="f", user_id=USER)
    upload.write(DATA)
    store.collect(grace_s=0)
    assert get(store, upload.commit()) == DATA


def _push_the_dying(store: FileStorage) -> Version:
    return push(store, DATA, "again")


def _push_small(store: FileStorage) -> Version:
    return push(store, b"small", "small")


def _revise_to_the_dying(store: FileStorage) -> Version:
    found = store.find("kept", user_id=USER)
    assert found is not None
    return store.revise(found.file_id, store.diff(found.file_id, DATA, user_id=USER), user_id=USER)


ACTIONS: list[tuple[Callable[[FileStorage], Version], bytes]] = [
    (_push_the_dying, DATA),
    (_push_small, b"small"),
    (_revise_to_the_dying, DATA),
]


@pytest.fixture
def each_bucket_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweep each bucket by itself, as in a store with millions of shards."""
    monkeypatch.setattr("storage.maintenance.collect._SWEEP_KEYS", 0)


@pytest.mark.usefixtures("each_bucket_by_itself")
@pytest.mark.parametrize("step", [1, 2, 3, 4, 50, 130, 255, 258])
@pytest.mark.parametrize(("action", "data"), ACTIONS)
def test_whatever_happens_in_the_middle_of_a_collect(
    store: FileStorage, step: int, action: Callable[[FileStorage], Version], data: bytes
) -> None:
    """The progress callback runs things between marking and sweeping, and between any two buckets."""
    push(store, b"kept", "kept")
    push(store, b"small", "was here")
    store.delete(push(store, b"small", "dying too", "bob").file_id, user_id="bob")
    _dying(store)
    done: list[Version] = []

    def progress(steps: int, total: int) -> None:
        if steps >= step and not done:
            done.append(action(store))

    store.collect(grace_s=0, progress=progress)
    assert get(store, done[0]) == data
    store.collect(grace_s=0)
    assert get(store, done[0]) == data
    assert store.scrub().clean
    ids = store.chunk_ids(done[0].file_id, user_id=USER)
    assert store.missing_chunks(ids, user_id=USER) == [False] * len(ids)


@pytest.mark.usefixtures("each_bucket_by_itself")
@pytest.mark.parametrize("step", [1, 3, 100, 257])
def test_a_file_deleted_in_the_middle_of_a_collect(store: FileStorage, step: int) -> None:
    push(store, b"a")
    doomed, kept = push(store, DATA, "doomed"), push(store, content(3, CHUNK), "kept")
    done: list[bool] = []

    def progress(steps: int, total: int) -> None:
        if steps >= step and not done:
            done.append(True)
            store.delete(doomed.file_id, user_id=USER)

    store.collect(grace_s=0, progress=progress)
    store.collect(grace_s=0)
    assert get(store, kept) == content(3, CHUNK)
    assert store.scrub().clean
    assert file_shards(store) == 6 * (1 + 1 + 1 + 1 + 1)  # two chunks, two versions, a tombstone


@pytest.mark.parametrize("keys", [0, 1, 4, 1_000_000])
def test_however_much_is_swept_at_once_the_same_is_freed(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch, keys: int
) -> None:
    monkeypatch.setattr("storage.maintenance.collect._SWEEP_KEYS", keys)
    for number in range(20):
        kept, doomed = (push(store, content(2 * number + at, 100), f"{number} {at}") for at in range(2))
        store.delete(doomed.file_id, user_id=USER)
    report = store.collect(grace_s=0)
    assert report.stores_missed == 0
    assert report.objects_removed == 20 * 2  # a chunk and a version of each deleted file
    assert get(store, kept) == content(38, 100)
    assert store.scrub().clean


def test_a_volume_of_few_shards_is_asked_once_for_what_it_has(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_many(store, [10] * 5)
    _, volume = store._volumes.online()[0]
    asked: list[bytes] = []
    keys = volume.keys

    def counted(start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        asked.append(start)
        yield from keys(start, stop)

    monkeypatch.setattr(volume, "keys", counted)
    store.collect()
    assert len(asked) == 1


def test_a_volume_that_is_slow_to_remove_holds_up_only_pushes_of_what_it_removes(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying, other = content(1, 3 * CHUNK), content(2, 3 * CHUNK)
    store.delete(push(store, dying, "dying").file_id, user_id=USER)
    removing, go_on = threading.Event(), threading.Event()
    _, volume = store._volumes.online()[0]
    remove = volume.remove

    def slowly(keys: Iterable[ShardKey]) -> int:
        removing.set()
        assert go_on.wait(30)
        return int(remove(keys))

    monkeypatch.setattr(volume, "remove", slowly)
    with ThreadPoolExecutor(3) as threads:
        collecting = threads.submit(store.collect, grace_s=0)
        assert removing.wait(30)
        try:
            version = threads.submit(push, store, other, "other").result(10)
            again = threads.submit(push, store, dying, "again")
        finally:
            go_on.set()
        assert get(store, version) == other
        assert get(store, again.result(30)) == dying
        assert collecting.result(30).shards_removed > 0
    assert store.scrub().clean


def test_progress(store: FileStorage) -> None:
    push_many(store, [10] * 5)
    told: list[tuple[int, int]] = []
    store.collect(progress=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]
    assert len({total for _, total in told}) == 1


def test_a_collect_that_is_cut_short_leaves_no_files(root: Path, store: FileStorage) -> None:
    _dying(store)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.collect(progress=stop)
    assert not list((root / "scratch").glob("*"))
    store.collect(grace_s=0)
    assert file_shards(store) == 6


def test_a_volume_that_is_away_is_swept_when_it_is_back(root: Path) -> None:
    """Until then its shards stay known, so that the same content pushed again is completed, not stored twice."""
    with open_store(root) as store:
        _dying(store)
    volume_dir(root, 2).rename(root / "away")
    volume_dir(root, 2).touch()  # so that the volume cannot be made again
    with open_store(root) as store:
        report = store.collect(grace_s=0)
        assert (report.objects_removed, report.stores_missed) == (6, 1)
        assert store.upkeep.stores_away() == [f"2 at {volume_dir(root, 2)}"]
        assert not store.upkeep.is_collect_owed()
    volume_dir(root, 2).unlink()
    (root / "away").rename(volume_dir(root, 2))
    with open_store(root) as store:
        assert store.upkeep.is_collect_owed()
        assert store.missing_chunks(IDS, user_id=USER) == [True] * len(IDS)
        assert store.collect(grace_s=0).stores_missed == 0
        assert not store.upkeep.is_collect_owed()
        assert file_shards(store) == 6  # the tombstone


# -- segments --------------------------------------------------------------------------------------------------


def test_numbers_of_segments_are_not_used_again(root: Path) -> None:
    """A stale index entry would point into another segment's records."""
    with open_store(root) as store:
        upload = store.upload(filename="f", user_id=USER)
        upload.write(DATA)
        upload.abort(keep_chunks=False)
        store.collect(grace_s=0)
        assert segments(volume_dir(root, 0)) == []
    for data in (b"first", b"second"):
        with open_store(root) as store:
            push(store, data, data.decode())
    assert [path.name for path in segments(volume_dir(root, 0))] == ["00000002.seg"]
    with open_store(root) as store:
        store.collect(grace_s=0)
        for version in store.list_files(user_id=USER):
            assert get(store, version) == version.filename.encode()
        assert store.scrub().clean


def test_many_lives(root: Path) -> None:
    """Repeatedly fill, delete most, collect and reopen. The kept files stay, and used space does not grow."""
    kept: dict[str, tuple[Version, bytes]] = {}
    used: list[int] = []
    for life in range(8):
        with open_store(root, k=2, n=3, segment_bytes_max=150_000) as store:
            check_all(store, kept)
            for number in range(6):
                version = push(store, content(100 * life + number, CHUNK), f"{life} {number}")
                if number == life % 6:
                    kept[version.filename] = version, content(100 * life + number, CHUNK)
                else:
                    store.delete(version.file_id, user_id=USER)
            store.collect(grace_s=0)
            check_all(store, kept)
            used.append(store.stats().stored_bytes)
    with open_store(root) as store:
        check_all(store, kept)
        assert store.scrub().clean
    needed = [(life + 1) * CHUNK * 3 // 2 for life in range(8)]
    assert all(now < 2 * need + 100_000 for now, need in zip(used, needed, strict=True))
