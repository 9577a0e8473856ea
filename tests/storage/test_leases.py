"""Chunks of an upload under way stay in the store, whatever collects, clocks and restarts do."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from storage import ErasureProfile, FileStorage, Upload
from storage.errors import IncompletePush, InvalidArgument
from storage.write.registry import KeptUploads
from tests.storage.helpers import CHUNK, USER, content, copy_store, digest, get, open_store, push
from tests.storage.test_clocks import YEAR_S, Clocks

DATA = content(1, 4 * CHUNK)
IDS = [digest(DATA[i : i + CHUNK]) for i in range(0, len(DATA), CHUNK)]
DAY_S = 86_400


def open_at(root: Path, clocks: Clocks) -> FileStorage:
    return FileStorage.open(root, profile=ErasureProfile(2, 3), chunk_size=CHUNK, runtime=clocks)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def timed(root: Path, clocks: Clocks) -> Iterator[FileStorage]:
    """A store whose clocks are controlled by the test."""
    with open_at(root, clocks) as store:
        yield store


def begin(store: FileStorage, data: bytes = DATA, *, name: str = "f") -> Upload:
    """Begin an upload whose chunks are claimed in the catalog and not pinned any more."""
    upload = store.upload(filename=name, user_id=USER)
    upload.write(data)
    upload.claim()
    return upload


def shards(store: FileStorage) -> int:
    return sum(volume.shards for volume in store.stats().volumes)


def missing(store: FileStorage) -> list[bool]:
    return store.missing_chunks(IDS, user_id=USER)


# -- while it goes on ------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [25 * 3600, -100 * YEAR_S])
def test_no_collect_and_no_clock_takes_chunks_of_an_upload_that_goes_on(
    timed: FileStorage, clocks: Clocks, jump_s: float
) -> None:
    upload = begin(timed)
    clocks.wall_s += jump_s
    clocks.elapsed_s += 30 * DAY_S  # a slow connection
    for grace_s in (0, DAY_S):
        assert timed.collect(grace_s=grace_s).objects_removed == 0
    assert get(timed, upload.commit()) == DATA
    timed.collect(grace_s=0)
    assert timed.get(timed.list_files(user_id=USER)[0].file_id, user_id=USER) == DATA


@pytest.mark.parametrize("step", [1, 100, 257])
@pytest.mark.parametrize("begun", ["before", "meanwhile"])
def test_an_upload_that_is_committed_in_the_middle_of_a_collect(store: FileStorage, step: int, begun: str) -> None:
    """The collect has determined live chunks before the version existed, and the claims are not pinned."""
    push(store, b"another", "another")
    uploads = [begin(store)] if begun == "before" else []
    done: list[int] = []

    def progress(steps: int, total: int) -> None:
        if steps >= step and not done:
            done.append(steps)
            upload = uploads[0] if uploads else begin(store)
            upload.commit()

    store.collect(grace_s=0, progress=progress)
    version = store.find("f", user_id=USER)
    assert version is not None
    assert get(store, version) == DATA
    assert missing(store) == [False] * 4
    assert store.scrub().clean


def test_one_upload_given_up_takes_nothing_from_another_of_the_same_content(store: FileStorage) -> None:
    first, second, third = (begin(store, name=name) for name in "abc")
    third.abort(keep_chunks=True)
    second.abort(keep_chunks=False)
    store.collect(grace_s=0)
    assert get(store, first.commit()) == DATA
    assert store.scrub().clean


def test_chunks_that_are_reused_stay_though_the_file_they_are_of_is_deleted(store: FileStorage) -> None:
    former = push(store, DATA, "former")
    upload = store.upload(filename="f", user_id=USER)
    upload.reuse(IDS)
    upload.claim()
    store.delete(former.file_id, user_id=USER)
    for _ in range(2):
        store.collect(grace_s=0)
    assert get(store, upload.commit()) == DATA
    assert store.scrub().clean


def test_an_upload_given_up_leaves_nothing(store: FileStorage) -> None:
    upload = begin(store)
    upload.abort(keep_chunks=False)
    store.collect()
    assert missing(store) == [True] * 4
    assert shards(store) == 0


# -- interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-25 * 3600, 100 * YEAR_S])
def test_the_grace_of_an_interrupted_upload_is_time_that_the_store_was_open(
    root: Path, clocks: Clocks, jump_s: float
) -> None:
    with open_at(root, clocks) as store:
        begin(store).abort(keep_chunks=True)
        clocks.wall_s += jump_s
        store.collect()
        assert missing(store) == [False] * 4
        clocks.elapsed_s += DAY_S / 2
    with open_at(root, clocks) as store:
        store.collect()
        assert missing(store) == [False] * 4
        clocks.elapsed_s += DAY_S / 2
        store.collect()
        assert missing(store) == [True] * 4
        assert shards(store) == 0


def test_an_interrupted_upload_lapses_at_once_where_no_grace_is_given(timed: FileStorage) -> None:
    begin(timed).abort(keep_chunks=True)
    timed.collect(grace_s=0)
    assert shards(timed) == 0


def test_what_is_left_in_a_store_that_is_open_for_moments_only_lapses_some_time(root: Path, clocks: Clocks) -> None:
    with open_at(root, clocks) as store:
        begin(store).abort(keep_chunks=True)
    left: list[int] = []
    for _ in range(30):
        with open_at(root, clocks) as store:
            store.collect()
            left.append(shards(store))
            clocks.elapsed_s += 3600.0
        if not left[-1]:
            break
    assert 5 < len(left) < 29


def test_a_lapsed_upload_does_not_come_back_with_another_of_its_number(root: Path, clocks: Clocks) -> None:
    with open_at(root, clocks) as store:
        begin(store).abort(keep_chunks=False)
    with open_at(root, clocks) as store:
        live = begin(store, content(2, CHUNK), name="other")
        store.collect(grace_s=0)
        assert missing(store) == [True] * 4
        assert get(store, live.commit()) == content(2, CHUNK)


# -- the process ends ------------------------------------------------------------------------------


@pytest.mark.parametrize("resume_s", [0.0, 300.0])
def test_an_upload_that_the_end_of_the_process_cut_off(root: Path, clocks: Clocks, resume_s: float) -> None:
    """By default its chunks are kept for a day; without grace they are freed, unless a remote sender may come back."""
    with open_at(root, clocks) as store:
        begin(store)
        copy = copy_store(root, root.parent / "copy")
    with open_at(copy, clocks) as store:
        store.collect()
        assert missing(store) == [False] * 4
    with open_at(copy, clocks) as store:
        store.upkeep.keep_interrupted(resume_s)
        clocks.elapsed_s += 299
        store.collect(grace_s=0)
        assert missing(store) == [not resume_s] * 4
        if resume_s:
            with store.upload(filename="f", user_id=USER) as upload:
                upload.reuse(IDS)
                clocks.elapsed_s += 1
                store.collect(grace_s=0)
                assert get(store, upload.commit()) == DATA


def _of_the_format_before(root: Path, lease_ms: int) -> None:
    """Convert the claims of uploads to their former format, with wall clock times and without the store's time."""
    with lmdb.open(str(root / "catalog"), max_dbs=16) as environment:
        holdings, uploads = environment.open_db(b"holdings"), environment.open_db(b"uploads")
        with environment.begin(write=True) as txn:
            txn.delete(b"time")
            txn.drop(uploads)
            for key, value in list(txn.cursor(holdings)):
                txn.put(key, (lease_ms if value else 0).to_bytes(8, "little", signed=True), db=holdings)


@pytest.mark.parametrize("lease_ms", [1, 1_764_300_000_000, 4_294_967_296_000])
def test_claims_with_times_are_those_of_interrupted_uploads(root: Path, clocks: Clocks, lease_ms: int) -> None:
    with open_at(root, clocks) as store:
        kept = push(store, content(5, 3 * CHUNK), "kept")
        begin(store)
        copy = copy_store(root, root.parent / "copy")
    _of_the_format_before(copy, lease_ms)
    for _ in range(2):
        with open_at(copy, clocks) as store:
            store.collect()
            assert missing(store) == [False] * 4
            assert get(store, kept) == content(5, 3 * CHUNK)
    with open_at(copy, clocks) as store:
        clocks.elapsed_s += DAY_S
        store.collect()
        assert missing(store) == [True] * 4
        assert get(store, kept) == content(5, 3 * CHUNK)
        assert store.scrub().clean


def test_a_store_that_was_made_when_claims_had_times(scratch: Path, clocks: Clocks) -> None:
    """It has a file of two equal chunks, a deleted file of one chunk, and an interrupted push of two chunks."""
    with tarfile.open(Path(__file__).parent / "data" / "store-with-leases.tar.xz") as archive:
        archive.extractall(scratch, filter="data")
    cut = [digest(word * (CHUNK // 4)) for word in (b"cut1", b"cut2")]
    for grace_s in (DAY_S, 0):
        with FileStorage.open(scratch / "store", runtime=clocks) as store:
            (kept,) = store.list_files(user_id="ada")
            assert get(store, kept) == b"kept" * (CHUNK // 2)
            assert store.collect(grace_s=grace_s).objects_removed == 2  # of the deleted file, later of the push
            assert store.missing_chunks(cut, user_id="ada") == [not grace_s] * 2
            assert get(store, kept) == b"kept" * (CHUNK // 2)
            assert store.scrub().clean


# -- a commit looks ---------------------------------------------------------------------------------


def test_a_commit_of_what_was_collected_nevertheless_is_refused(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = begin(store)
    with monkeypatch.context() as planted:
        planted.setattr(KeptUploads, "keep", lambda kept, uploads: False)
        assert store.collect(grace_s=0).objects_removed == 4
    with pytest.raises(IncompletePush, match="push again"):
        upload.commit()
    assert store.list_files(user_id=USER) == []
    assert get(store, push(store, DATA)) == DATA


def _short_file(upload: Upload, path: Path) -> None:
    path.write_bytes(DATA[:-5])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        upload.write_file(descriptor, len(DATA))
    finally:
        os.close(descriptor)


def _bad_reuse(upload: Upload, path: Path) -> None:
    upload.reuse([*IDS[:1], bytes(32)])


@pytest.mark.parametrize("broken", [_short_file, _bad_reuse])
def test_a_commit_after_something_could_not_be_taken_in(
    store: FileStorage, tmp_path: Path, broken: Callable[[Upload, Path], None]
) -> None:
    """A file must not lack chunks that failed to be stored; bytes that were never accepted do not count."""
    push(store, DATA[:CHUNK], "first")
    upload = store.upload(filename="f", user_id=USER)
    with pytest.raises(InvalidArgument):
        broken(upload, tmp_path / "short")
    if broken is _bad_reuse:
        assert get(store, upload.commit()) == DATA[:CHUNK]
        return
    with pytest.raises(IncompletePush):
        upload.commit()
    assert store.find("f", user_id=USER) is None


def test_claims_are_made_of_whole_chunks(store: FileStorage) -> None:
    upload = store.upload(filename="f", user_id=USER)
    upload.write(DATA[: CHUNK + 1])
    with pytest.raises(InvalidArgument, match="multiples"):
        upload.claim()
    upload.write(DATA[CHUNK + 1 : 2 * CHUNK])
    upload.claim()
    assert missing(store) == [False, False, True, True]


def test_claims_go_on_after_a_hundred_interruptions_of_the_same_push(root: Path) -> None:
    """Shared claims do not accumulate uploads."""
    with open_store(root, k=1, n=1) as store:
        for _ in range(100):
            begin(store).abort(keep_chunks=True)
        assert max(len(holding.uploads) for holding in store._catalog.holdings()) == 2
        store.collect()
        assert missing(store) == [False] * 4
