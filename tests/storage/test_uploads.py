"""Uploads in pieces, interrupted and resumed; deduplication; no information about other users' chunks."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, InvalidArgument, StoreClosed, Version
from tests.storage.helpers import (
    CHUNK,
    USER,
    check_all,
    content,
    digest,
    file_shards,
    get,
    lose,
    open_store,
    push,
    push_many,
    rot_shards,
)

DATA = content(1, 5 * CHUNK + 99)
CHUNKS = [DATA[i : i + CHUNK] for i in range(0, len(DATA), CHUNK)]
IDS = [digest(chunk) for chunk in CHUNKS]


def _used(store: FileStorage) -> int:
    return store.stats().stored_bytes


# -- piece by piece ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(module_scratch: Path) -> FileStorage:
    """A store shared by many examples."""
    return open_store(module_scratch / "store", k=2, n=3)


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=8), into=st.lists(st.booleans(), min_size=9, max_size=9))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_and_any_way_in(kept: FileStorage, cuts: list[int], into: list[bool]) -> None:
    """Bytes are passed to write() or read into free_space(), in pieces of any length."""
    borders = [0, *sorted(cuts), len(DATA)]
    with kept.upload(filename="f", user_id=str(cuts)) as upload:
        for start, stop, direct in zip(borders, borders[1:], into, strict=False):
            piece = memoryview(DATA)[start:stop]
            while direct and len(piece):
                space = upload.free_space()
                count = min(len(space), len(piece), 50_000)
                space[:count] = piece[:count]
                upload.filled(count)
                piece = piece[count:]
            upload.write(piece)
        assert upload.size == len(DATA)
        version = upload.commit(size=len(DATA))
    assert get(kept, version) == DATA
    assert kept.chunk_ids(version.file_id, user_id=str(cuts)) == IDS


def test_an_upload_that_is_left_is_aborted(store: FileStorage) -> None:
    with store.upload(filename="f", user_id=USER) as upload:
        upload.write(DATA)
    assert store.list_files(user_id=USER) == []
    for use in (lambda: upload.write(b"x"), upload.commit, lambda: upload.reuse(IDS[:1])):
        with pytest.raises(InvalidArgument):
            use()


def test_a_committed_upload_cannot_go_on(store: FileStorage) -> None:
    with store.upload(filename="f", user_id=USER) as upload:
        upload.write(b"x")
        version = upload.commit()
        with pytest.raises(InvalidArgument, match="ended"):
            upload.write(b"y")
    assert get(store, version) == b"x"


@pytest.mark.parametrize("announced", [0, len(DATA) - 1, len(DATA) + 1])
def test_an_announced_size_is_checked(store: FileStorage, announced: int) -> None:
    upload = store.upload(filename="f", user_id=USER)
    upload.write(DATA)
    with pytest.raises(InvalidArgument, match="announced"):
        upload.commit(size=announced)
    assert store.find("f", user_id=USER) is None


def test_a_sha256_over_written_and_reused_chunks(store: FileStorage) -> None:
    push(store, DATA, "first")
    right = hashlib.sha256(CHUNKS[0] + b"z" * CHUNK + CHUNKS[1]).hexdigest()
    for sha256 in (right, "0" * 64):
        upload = store.upload(filename="f", user_id=USER, sha256=sha256)
        upload.reuse(IDS[:1])
        upload.write(b"z" * CHUNK)
        upload.reuse(IDS[1:2])
        if sha256 == right:
            assert upload.commit().sha256 == right
        else:
            with pytest.raises(InvalidArgument, match="SHA-256"):
                upload.commit()


def test_closing_the_store_during_an_upload(root: Path) -> None:
    with open_store(root) as store:
        upload = store.upload(filename="f", user_id=USER)
        upload.write(DATA)
    with pytest.raises(StoreClosed):
        upload.commit()
    with open_store(root) as store:
        assert store.list_files(user_id=USER) == []


# -- interrupted and resumed -------------------------------------------------------------------------


def _interrupted(store: FileStorage, count: int) -> None:
    with store.upload(filename="f", user_id=USER) as upload:
        upload.write(b"".join(CHUNKS[:count]))


@pytest.mark.parametrize("collected", [False, True])
def test_a_resumed_push_sends_only_what_is_missing(store: FileStorage, collected: bool) -> None:
    _interrupted(store, 3)
    if collected:
        store.collect()  # honours leases
    missing = store.missing_chunks(IDS, user_id=USER)
    assert missing == [False] * 3 + [True] * 3
    with store.upload(filename="f", user_id=USER) as upload:
        for chunk, chunk_id, send in zip(CHUNKS, IDS, missing, strict=True):
            if send:
                upload.write(chunk)
            else:
                upload.reuse([chunk_id])
        version = upload.commit(size=len(DATA))
    assert get(store, version) == DATA


def test_a_push_can_be_resumed_across_openings(root: Path) -> None:
    with open_store(root) as store:
        _interrupted(store, 3)
    with open_store(root) as store:
        store.collect()
        with store.upload(filename="f", user_id=USER) as upload:
            upload.reuse(IDS[:3])
            upload.write(b"".join(CHUNKS[3:]))
            version = upload.commit()
        assert get(store, version) == DATA
        assert store.scrub().clean


def test_leases_end(store: FileStorage) -> None:
    _interrupted(store, 3)
    store.collect(grace_s=0)
    assert store.missing_chunks(IDS, user_id=USER) == [True] * 6
    assert file_shards(store) == 0


def test_an_upload_that_keeps_nothing(store: FileStorage) -> None:
    upload = store.upload(filename="f", user_id=USER)
    upload.write(DATA)
    upload.abort(keep_chunks=False)
    upload.abort()
    assert store.missing_chunks(IDS, user_id=USER) == [True] * 6
    assert store.collect().shards_removed == 5 * 6  # the last chunk was still in the buffer


def test_thousands_of_chunks_are_leased_on_the_way(root: Path) -> None:
    """An upload longer than a manifest leaf enters its leaf and claims into the catalog before it ends."""
    same = content(3, CHUNK)
    with open_store(root, k=1, n=1) as store:
        upload = store.upload(filename="f", user_id=USER)
        upload.write(same)
        for _ in range(1100):
            upload.reuse([digest(same)]) if store.missing_chunks([digest(same)], user_id=USER) == [False] else (
                upload.write(same)
            )
        version = upload.commit()
        assert version.chunk_count == 1101
        assert get(store, version) == same * 1101
        assert store.scrub().clean
        store.delete(version.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert file_shards(store) == 1  # the tombstone


@pytest.mark.parametrize("keep", [False, True])
def test_a_long_upload_that_ends_without_a_version(root: Path, keep: bool) -> None:
    with open_store(root, k=1, n=1) as store:
        upload = store.upload(filename="f", user_id=USER)
        for _ in range(1030):
            upload.write(CHUNKS[0])
        upload.write(CHUNKS[1])
        upload.abort(keep_chunks=keep)
        store.collect()
        assert store.missing_chunks(IDS[:2], user_id=USER) == [not keep, not keep]
        store.collect(grace_s=0)
        assert file_shards(store) == 0


def test_a_push_that_fails_takes_no_claims_of_a_live_file_along(root: Path) -> None:
    with open_store(root, k=1, n=1) as store:
        push(store, CHUNKS[0], "live")
        upload = store.upload(filename="f", user_id=USER)
        for _ in range(2100):
            upload.write(CHUNKS[0])
        upload.abort(keep_chunks=False)
        store.collect(grace_s=0)
        assert store.missing_chunks(IDS[:1], user_id=USER) == [False]


# -- reuse ---------------------------------------------------------------------------------------------


def test_reuse_in_any_order(store: FileStorage) -> None:
    push(store, DATA, "first")
    order = [3, 0, 0, 4, 5]
    with store.upload(filename="f", user_id=USER) as upload:
        upload.reuse([IDS[index] for index in order])
        version = upload.commit()
    assert get(store, version) == b"".join(CHUNKS[index] for index in order)


def test_reuse_only_at_chunk_borders(store: FileStorage) -> None:
    push(store, DATA, "first")
    upload = store.upload(filename="f", user_id=USER)
    upload.write(b"x")
    with pytest.raises(InvalidArgument, match="multiples"):
        upload.reuse(IDS[:1])


@pytest.mark.parametrize("then", ["write", "reuse", "filled"])
def test_nothing_follows_a_short_chunk(store: FileStorage, then: str) -> None:
    push(store, DATA, "first")
    upload = store.upload(filename="f", user_id=USER)
    upload.reuse(IDS[5:])
    with pytest.raises(InvalidArgument, match="only be the last"):
        _go_on(upload, then)()


def _go_on(upload: object, then: str) -> Callable[[], None]:
    from storage import Upload

    assert isinstance(upload, Upload)
    if then == "write":
        return lambda: upload.write(b"x")
    if then == "reuse":
        return lambda: upload.reuse(IDS[:1])
    upload.free_space()[:1] = b"x"
    return lambda: upload.filled(1)


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), bytes(32)])
def test_reuse_of_what_is_no_chunk(store: FileStorage, bad: bytes) -> None:
    push(store, DATA, "first")
    upload = store.upload(filename="f", user_id=USER)
    upload.reuse(IDS[:1])
    with pytest.raises(InvalidArgument):
        upload.reuse([bad])
    upload.write(CHUNKS[1])  # the upload itself is fine
    assert get(store, upload.commit()) == CHUNKS[0] + CHUNKS[1]


def test_reuse_of_a_chunk_of_larger_size_or_another_code(store: FileStorage) -> None:
    big = content(9, 2 * CHUNK)
    store.push(big, filename="big", user_id=USER, chunk_size=2 * CHUNK)
    with pytest.raises(InvalidArgument, match="not available to this user"):
        store.upload(filename="f", user_id=USER).reuse([digest(big)])
    push(store, DATA, "first")
    with pytest.raises(InvalidArgument, match="not available to this user"):
        store.upload(filename="f", user_id=USER, profile=ErasureProfile(2, 3)).reuse(IDS[:1])


# -- what is stored twice ------------------------------------------------------------------------------


def _growth(store: FileStorage, action: Callable[[], object]) -> int:
    before = _used(store)
    action()
    return _used(store) - before


def test_the_same_content_is_stored_once(store: FileStorage) -> None:
    """Within a file, across files and across users, only version objects are added."""
    chunk = content(2, CHUNK)
    push(store, chunk, "once")
    assert _growth(store, lambda: push(store, chunk * 8)) < 6000
    assert _growth(store, lambda: push(store, DATA, "a")) > len(DATA)
    for name, user in (("a", USER), ("b", USER), ("a", "bob")):
        assert _growth(store, lambda name=name, user=user: push(store, DATA, name, user)) < 6000  # type: ignore[misc]
    assert _growth(store, lambda: push(store, DATA + b"more", "a")) < 2 * 6000


def test_equal_content_makes_no_version(store: FileStorage) -> None:
    first = push(store, DATA)
    assert push(store, DATA) == first
    noted = store.push(DATA, filename="file", user_id=USER, note="again")
    assert (noted.parent_id, noted.note) == (first.version_id, "again")  # unless there is a new note
    assert push(store, DATA) == noted
    assert store.history(first.file_id, user_id=USER) == [noted, first]


@pytest.mark.parametrize("size", [1000, len(DATA)])
def test_content_pushed_again_is_there_again(root: Path, size: int) -> None:
    """More shards were lost than can be restored, and the owner pushes the file again."""
    data = DATA[:size]
    with open_store(root) as store:
        version = push(store, data)
    lose(root, 0, 1, 2)
    with open_store(root) as store:
        store.repair()  # begins the volumes again, as their disks are lost, not just unmounted
        assert push(store, data) == version
        assert get(store, version) == data


def test_content_pushed_again_after_rot_was_found(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, DATA)
    rot_shards(root, IDS[2], 4, 6, range(3))
    with open_store(root) as store:
        assert store.scrub().rotten == 3
        assert push(store, DATA) == version
        assert get(store, version) == DATA
        assert store.scrub().clean


@pytest.mark.parametrize("chunk_size", [CHUNK, CHUNK + 1, 100_003, 1 << 20])
def test_profiles_and_chunk_sizes_side_by_side(store: FileStorage, chunk_size: int) -> None:
    """Files have their own profiles. k need not divide the chunk size, and n may exceed the number of volumes."""
    pushed: dict[str, tuple[Version, bytes]] = {}
    for k, n in ((1, 1), (1, 6), (3, 5), (4, 6), (5, 7), (7, 13), (6, 6)):
        data = content(k, 3 * chunk_size + k)
        profile = ErasureProfile(k, n)
        version = store.push(data, filename=f"{k}-{n}", user_id=USER, profile=profile, chunk_size=chunk_size)
        assert (version.profile, version.chunk_size) == (profile, chunk_size)
        pushed[version.filename] = version, data
    check_all(store, pushed)
    assert store.scrub().clean


def test_another_code_makes_a_version(store: FileStorage) -> None:
    first = push(store, DATA)
    second = store.push(DATA, filename="file", user_id=USER, profile=ErasureProfile(2, 3))
    assert second.parent_id == first.version_id
    assert get(store, first) == get(store, second) == DATA


# -- what others have ----------------------------------------------------------------------------------


def test_others_chunks_do_not_show(store: FileStorage) -> None:
    push(store, DATA, user="ada")
    unknown = bytes(32)
    assert store.missing_chunks([*IDS, unknown], user_id="bob") == [True] * 7
    texts = set()
    for chunk_id in (IDS[0], unknown):
        with pytest.raises(InvalidArgument) as caught:
            store.upload(filename="f", user_id="bob").reuse([chunk_id])
        texts.add(str(caught.value).replace(chunk_id.hex(), "ID"))
    assert len(texts) == 1


def test_a_claim_lasts_as_long_as_a_file_of_ones_own(store: FileStorage) -> None:
    push(store, DATA, user="ada")
    his = push(store, DATA, user="bob")
    assert store.missing_chunks(IDS, user_id="bob") == [False] * 6
    store.delete(his.file_id, user_id="bob")
    store.collect(grace_s=0)
    assert store.missing_chunks(IDS, user_id="bob") == [True] * 6
    assert store.missing_chunks(IDS, user_id="ada") == [False] * 6


def test_damaged_chunks_are_missing(root: Path) -> None:
    with open_store(root) as store:
        push(store, DATA)
    rot_shards(root, IDS[2], 4, 6, [5])
    with open_store(root) as store:
        assert store.missing_chunks(IDS, user_id=USER) == [False] * 6  # the damage has not been noticed yet
        store.scrub()
        assert store.missing_chunks(IDS, user_id=USER) == [False, False, True, False, False, False]
        store.repair()
        assert store.missing_chunks(IDS, user_id=USER) == [False] * 6


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33)])
def test_ids_of_the_wrong_length(store: FileStorage, bad: bytes) -> None:
    with pytest.raises(InvalidArgument, match="32 bytes"):
        store.missing_chunks([bytes(32), bad], user_id=USER)


def test_a_hundred_files_of_random_sizes(root: Path) -> None:
    rng = random.Random(5)
    with open_store(root, segment_bytes_max=100_000) as store:
        pushed = push_many(store, [rng.randrange(3 * CHUNK) for _ in range(100)])
        check_all(store, pushed)
    with open_store(root) as store:
        check_all(store, pushed)
        assert store.stats().files == 100
        assert store.scrub().clean
