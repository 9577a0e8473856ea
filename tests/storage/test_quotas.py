"""Quotas: what counts, when a write is refused, and what gives space back."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, InvalidArgument, ManifestDiff, Patch, QuotaExceeded
from storage.catalog import user_key
from storage.write import quotas
from storage.write.quotas import NO_QUOTA, Quota
from tests.storage.helpers import CHUNK, digest, lose_catalog

USER = "ann"
RECORDS = 4096  # more than the records of a version take


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as opened:
        yield opened


def limit(store: FileStorage, **quota: int) -> None:
    store.upkeep.policy.quota_of = lambda user: Quota(**quota) if user == USER else NO_QUOTA


def taken(store: FileStorage, user: str = USER) -> int:
    found = [one.bytes for one in store.upkeep.usages() if one.user_id == user]
    return found[0] if found else 0


def shards(size: int) -> int:
    return 3 * size // 2


def push(store: FileStorage, name: str, data: bytes) -> str:
    return store.push(data, filename=name, user_id=USER).file_id


def revise(store: FileStorage, name: str, data: bytes) -> str:
    base = store.find(name, user_id=USER) or store.push(b"", filename=name, user_id=USER, chunk_size=CHUNK)
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    patches = tuple(Patch(index, digest(piece), piece) for index, piece in enumerate(pieces))
    return store.revise(base.file_id, ManifestDiff(base.version_id, len(data), CHUNK, patches), user_id=USER).file_id


def upload(store: FileStorage, name: str, data: bytes) -> str:
    with store.upload(filename=name, user_id=USER) as going:
        going.write(data)
        return going.commit(len(data)).file_id


def many(store: FileStorage, name: str, data: bytes) -> str:
    (outcome,) = store.push_many([(name, data)], user_id=USER)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.version is not None
    return outcome.version.file_id


WAYS: dict[str, Callable[[FileStorage, str, bytes], str]] = {
    "push": push,
    "revise": revise,
    "upload": upload,
    "many": many,
}


@pytest.mark.parametrize("size", [5000, 3 * CHUNK + 10])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_too_much_is_refused_and_what_fits_is_not(store: FileStorage, way: str, size: int) -> None:
    limit(store, bytes=shards(size) + 2 * RECORDS)
    file_id = WAYS[way](store, "a", os.urandom(size))
    assert shards(size) <= taken(store) <= shards(size) + 2 * RECORDS
    before = store.stats().versions
    with pytest.raises(QuotaExceeded, match=r"ann.* may take .*; delete files, or ask"):
        WAYS[way](store, "b", os.urandom(size + 2 * RECORDS))
    assert store.stats().versions <= before + (way == "revise")  # the empty file that it would have revised
    store.push(os.urandom(size), filename="b", user_id="other")
    store.delete(file_id, user_id=USER)
    assert taken(store) <= RECORDS
    WAYS[way](store, "c", os.urandom(size))


def test_each_version_counts_with_what_it_changes(store: FileStorage) -> None:
    data = bytearray(os.urandom(4 * CHUNK))
    file_id = push(store, "a", bytes(data))
    first = taken(store)
    data[:10] = bytes(10)
    assert push(store, "a", bytes(data)) == file_id
    assert shards(CHUNK) <= taken(store) - first <= shards(CHUNK) + RECORDS
    assert push(store, "a", bytes(data)) == file_id  # unchanged
    assert taken(store) - first <= shards(CHUNK) + RECORDS
    store.delete(file_id, user_id=USER)
    assert taken(store) == 0


def test_equal_chunks_count_each_so_that_no_file_is_larger_than_its_quota(store: FileStorage) -> None:
    limit(store, bytes=shards(20 * CHUNK))
    piece = os.urandom(CHUNK)
    file_id = push(store, "a", piece)
    base = store.stat(file_id, user_id=USER)
    diff = ManifestDiff(base.version_id, 100 * CHUNK, CHUNK, tuple(Patch(at, digest(piece)) for at in range(1, 100)))
    with pytest.raises(QuotaExceeded):
        store.revise(file_id, diff, user_id=USER)
    with store.upload(filename="b", user_id=USER) as going:
        going.reuse([digest(piece)] * 100)
        with pytest.raises(QuotaExceeded):
            going.commit()


def test_content_that_is_stored_again_with_another_key_counts_again(tmp_path: Path) -> None:
    """Otherwise, whoever changes keys stores any amount."""
    profile, data = ErasureProfile(2, 3), os.urandom(5 * CHUNK)
    with FileStorage.open(tmp_path / "store", profile=profile, chunk_size=CHUNK, key=bytes(32)) as store:
        push(store, "a", data)
        once = taken(store)
        store.rotate_key(user_id=USER)
        file_id = push(store, "a", data)
        assert 2 * once <= taken(store) <= 2 * once + RECORDS
        limit(store, bytes=3 * once - RECORDS)
        store.rotate_key(user_id=USER)
        with pytest.raises(QuotaExceeded):
            push(store, "a", data)
        first = store.history(file_id, user_id=USER)[1]
        store.delete_version(file_id, first.version_id, user_id=USER)
        store.collect(grace_s=0)
        assert once <= taken(store) <= once + RECORDS
        push(store, "a", data)
        store.delete(file_id, user_id=USER)
        assert taken(store) == 0


def test_a_number_of_files(store: FileStorage) -> None:
    limit(store, files=2)
    first = push(store, "a", b"1")
    push(store, "b", b"2")
    push(store, "a", b"3")
    with pytest.raises(QuotaExceeded, match="has 2 files, and may have 2"):
        push(store, "c", b"4")
    outcomes = list(store.push_many([("b", b"5"), ("c", b"6")], user_id=USER))
    assert {one.filename: type(one.error) for one in outcomes} == {"b": type(None), "c": QuotaExceeded}
    store.delete(first, user_id=USER)
    push(store, "c", b"4")


def test_uploads_under_way_count(store: FileStorage) -> None:
    limit(store, bytes=shards(10 * CHUNK))
    with store.upload(filename="a", user_id=USER) as going:
        going.write(os.urandom(8 * CHUNK))
        going.claim()
        with pytest.raises(QuotaExceeded):
            upload(store, "b", os.urandom(8 * CHUNK))
        going.abort(keep_chunks=False)
    upload(store, "b", os.urandom(8 * CHUNK))


def test_interrupted_uploads_count_until_they_are_resumed_or_collected(store: FileStorage) -> None:
    limit(store, bytes=shards(10 * CHUNK))
    data = os.urandom(8 * CHUNK)

    def interrupt(name: str) -> None:
        going = store.upload(filename=name, user_id=USER)
        going.write(data)
        going.claim()
        going.abort(keep_chunks=True)

    interrupt("a")
    with pytest.raises(QuotaExceeded):
        upload(store, "b", os.urandom(8 * CHUNK))
    store.collect(grace_s=0)
    upload(store, "b", os.urandom(CHUNK))
    store.delete(upload(store, "b", os.urandom(CHUNK)), user_id=USER)
    interrupt("a")
    with store.upload(filename="a", user_id=USER) as resumed:
        resumed.reuse([digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)])
        resumed.commit(len(data))
    assert store.upkeep.uncommitted(USER) == 0
    upload(store, "b", os.urandom(CHUNK))


def _interrupt(store: FileStorage, name: str, data: bytes) -> None:
    going = store.upload(filename=name, user_id=USER)
    going.write(data)
    going.claim()
    going.abort(keep_chunks=True)


def test_who_interrupts_pushes_and_makes_others_of_the_same_name_takes_twice_the_quota_at_most(
    store: FileStorage,
) -> None:
    limit(store, bytes=shards(10 * CHUNK))
    stored = 0

    def again() -> None:
        nonlocal stored
        with store.upload(filename="a", user_id=USER) as going:
            going.write(os.urandom(8 * CHUNK))
            going.claim()
            going.abort(keep_chunks=True)
        upload(store, "a", os.urandom(100))
        stored += shards(8 * CHUNK)

    def go_on() -> None:
        for _ in range(5):
            again()

    with pytest.raises(QuotaExceeded, match="until the next collect"):
        go_on()
    assert stored <= 2 * shards(10 * CHUNK)
    store.collect()
    again()


def test_interrupted_uploads_count_after_the_store_was_opened_again(tmp_path: Path) -> None:
    data = os.urandom(8 * CHUNK)
    with FileStorage.open(tmp_path / "s", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        _interrupt(store, "a", data)
        before = store.upkeep.uncommitted(USER)
    assert before == shards(8 * CHUNK)
    for _ in range(2):  # the records are written again when the store is closed
        with FileStorage.open(tmp_path / "s") as store:
            limit(store, bytes=shards(10 * CHUNK))
            assert (store.upkeep.uncommitted(USER), store.upkeep.uncommitted("other")) == (before, 0)
            with pytest.raises(QuotaExceeded):
                upload(store, "b", os.urandom(8 * CHUNK))
    with FileStorage.open(tmp_path / "s") as store:
        with store.upload(filename="a", user_id=USER) as resumed:
            resumed.reuse([digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)])
            resumed.commit(len(data))
        assert store.upkeep.uncommitted(USER) == 0
    with FileStorage.open(tmp_path / "s") as store:
        assert store.upkeep.uncommitted(USER) == 0
        _interrupt(store, "c", os.urandom(CHUNK))
    with FileStorage.open(tmp_path / "s") as store:
        assert store.upkeep.uncommitted(USER) == shards(CHUNK)
        store.collect(grace_s=0)
        assert store.upkeep.uncommitted(USER) == 0


def test_uploads_that_were_cut_off_count_with_what_they_had_claimed(tmp_path: Path) -> None:
    with FileStorage.open(tmp_path / "s", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        going = store.upload(filename="a", user_id=USER)
        for _ in range(2):
            going.write(os.urandom(4 * CHUNK))
            going.claim()
        shutil.copytree(tmp_path / "s", tmp_path / "killed", copy_function=shutil.copyfile)
        going.abort(keep_chunks=False)
    with FileStorage.open(tmp_path / "killed") as store:
        assert store.upkeep.uncommitted(USER) == shards(8 * CHUNK)


def test_what_failed_uploads_left_counts_if_it_is_more_than_the_quota(store: FileStorage) -> None:
    limit(store, bytes=shards(10 * CHUNK))

    def fail() -> None:
        with store.upload(filename="a", user_id=USER) as going:
            going.write(os.urandom(9 * CHUNK))
            going.claim()
            going.abort(keep_chunks=False)

    fail()
    upload(store, "b", b"small")
    fail()  # a mistake does not count
    with pytest.raises(QuotaExceeded, match="of it by deleted files and failed pushes, until the next collect"):
        fail()
    assert store.stats().stored_bytes <= 3 * shards(10 * CHUNK) + RECORDS
    store.collect()
    upload(store, "b", os.urandom(9 * CHUNK))


@pytest.mark.parametrize("size", [CHUNK // 2, 9 * CHUNK])
@pytest.mark.parametrize("way", WAYS)
def test_who_stores_and_deletes_takes_twice_the_quota_at_most(store: FileStorage, way: str, size: int) -> None:
    limit(store, bytes=shards(size) + RECORDS)
    stored = 0

    def go_on() -> None:
        nonlocal stored
        for _ in range(20):
            file_id = WAYS[way](store, "a", os.urandom(size))
            stored += 1
            store.delete(file_id, user_id=USER)

    assert not store.upkeep.is_collect_worthwhile()
    with pytest.raises(QuotaExceeded, match="of it by deleted files and failed pushes, until the next collect"):
        go_on()
    assert stored >= 2  # whoever replaces all files once is not refused
    assert store.stats().stored_bytes <= 3 * (shards(size) + 2 * RECORDS)
    assert store.upkeep.is_collect_worthwhile()
    push(store, "others", os.urandom(100))
    store.collect()
    assert not store.upkeep.is_collect_worthwhile()
    with pytest.raises(QuotaExceeded):
        go_on()


def test_much_that_could_be_freed_makes_a_collect_worthwhile(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_LEFT_MIN", shards(2 * CHUNK))
    push(store, "kept", os.urandom(35 * CHUNK))
    for name in ("a", "b", "c", "d"):
        assert not store.upkeep.is_collect_worthwhile()
        store.delete(push(store, name, os.urandom(CHUNK)), user_id=USER)
    assert store.upkeep.is_collect_worthwhile()  # more than a tenth
    assert not store.upkeep.is_collect_pressing()
    store.delete(store.find("kept", user_id=USER).file_id, user_id=USER)  # type: ignore[union-attr]
    assert store.upkeep.is_collect_pressing()
    store.collect()
    assert not store.upkeep.is_collect_worthwhile()
    assert not store.upkeep.is_collect_pressing()


def test_a_file_of_equal_chunks_does_not_make_collects_rare(
    store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_LEFT_MIN", shards(2 * CHUNK))
    piece = os.urandom(CHUNK)
    base = store.stat(push(store, "wide", piece), user_id=USER)
    patches = tuple(Patch(at, digest(piece)) for at in range(1, 5000))
    store.revise(base.file_id, ManifestDiff(base.version_id, 5000 * CHUNK, CHUNK, patches), user_id=USER)
    for name in ("a", "b", "c"):
        store.delete(push(store, name, os.urandom(CHUNK)), user_id=USER)
    assert store.upkeep.is_collect_worthwhile()


def test_chunks_of_a_revision_by_stream_are_not_left(store: FileStorage) -> None:
    limit(store, bytes=shards(20 * CHUNK))
    for _ in range(5):
        with store.upload(filename="a", user_id=USER) as staging:
            staging.write(os.urandom(9 * CHUNK))
            staging.claim()
            staging.abort(keep_chunks=False, used=True)
    with store.upload(filename="a", user_id=USER) as going:
        going.write(os.urandom(9 * CHUNK))


def test_parallel_pushes_do_not_exceed_it_together(store: FileStorage) -> None:
    allowed = shards(40 * 3000)
    limit(store, bytes=allowed)
    refused: list[Exception] = []

    def go(number: int) -> None:
        for at in range(10):
            try:
                push(store, f"{number}-{at}", os.urandom(3000))
            except QuotaExceeded as error:
                refused.append(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    assert taken(store) <= allowed
    assert store.stats().files == 80 - len(refused)


def test_what_is_taken_is_known_after_opening_and_a_rebuild(tmp_path: Path) -> None:
    with FileStorage.open(tmp_path / "s", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        push(store, "a", os.urandom(2 * CHUNK))
        before = taken(store)
    with FileStorage.open(tmp_path / "s") as store:
        assert taken(store) == before
    lose_catalog(tmp_path / "s")
    with FileStorage.open(tmp_path / "s") as store:
        store.rebuild()
        assert abs(taken(store) - before) <= RECORDS


def test_former_versions_count_after_a_rebuild(tmp_path: Path) -> None:
    data = bytearray(os.urandom(3 * CHUNK))
    with FileStorage.open(tmp_path / "s", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        for at in range(5):
            data[at] ^= 1
            file_id = push(store, "a", bytes(data))
        middle = store.history(file_id, user_id=USER)[2]
        store.delete_version(file_id, middle.version_id, user_id=USER)
        store.collect(grace_s=0)
        before = taken(store)
        assert before > shards(5 * CHUNK)
    lose_catalog(tmp_path / "s")
    with FileStorage.open(tmp_path / "s") as store:
        store.rebuild()
        assert taken(store) == before


def test_what_was_encrypted_later_counts_the_same_after_a_rebuild(tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK)
    with FileStorage.open(tmp_path / "s", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store:
        push(store, "a", data)
    with FileStorage.open(tmp_path / "s", key=bytes(32)) as store:
        push(store, "a", data)
        push(store, "a", data[:CHUNK] + bytes(CHUNK))
        before = taken(store)
        assert shards(4 * CHUNK) <= before <= shards(4 * CHUNK) + 3 * RECORDS
    lose_catalog(tmp_path / "s")
    with FileStorage.open(tmp_path / "s", key=bytes(32)) as store:
        store.rebuild()
        assert taken(store) == before


def test_files_of_an_older_release_count_with_their_size(store: FileStorage) -> None:
    file_id = push(store, "a", os.urandom(2 * CHUNK))
    catalog = store._parts.catalog
    entry = catalog.file(bytes.fromhex(file_id))
    assert entry is not None
    older = type(entry)(entry.user_id, entry.filename, entry.head, entry.size)
    key = catalog.names(user_key(USER.encode()), b"", None, 1)[0][0]
    catalog.transact(lambda txn: txn.set_file(bytes.fromhex(file_id), older, key))
    assert taken(store) == 2 * CHUNK
    store.delete(file_id, user_id=USER)
    assert taken(store) == 0


def test_profiles_that_are_not_allowed_are_refused(store: FileStorage) -> None:
    store.upkeep.policy.allows = lambda profile: profile == ErasureProfile(1, 2)
    store.upkeep.policy.allowed = "1-of-2"
    for profile in (None, ErasureProfile(2, 3), ErasureProfile(1, 2)):
        store.push(b"x", filename="a", user_id=USER, profile=profile)
    with pytest.raises(
        InvalidArgument, match="1-of-3 is not allowed here; choose none, or one of those that are: 1-of-2"
    ):
        store.push(b"x", filename="a", user_id=USER, profile=ErasureProfile(1, 3))
