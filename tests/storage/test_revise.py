"""Diffs from outside are applied completely or refused completely, with a text that says what is wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import (
    ConflictError,
    ErasureProfile,
    FileNotFound,
    FileStorage,
    InvalidArgument,
    ManifestDiff,
    Patch,
    Version,
    VersionNotFound,
)
from storage.limits import DIFF_PATCHES_MAX, FILE_SIZE_MAX
from tests.storage.helpers import CHUNK, USER, content, diff_of, digest, get, open_store, push

LARGE = 4 << 20
OLD = content(1, 3 * CHUNK + 100)
NEW = content(2, CHUNK)
TAIL = content(3, 50)


def _whole(data: bytes) -> tuple[bytes, bytes]:
    return digest(data), data


@pytest.fixture
def base(store: FileStorage) -> Version:
    """A file of three chunks and a few bytes."""
    return push(store, OLD)


# -- right ones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patches", "expected"),
    [
        (len(OLD), [(1, *_whole(NEW))], OLD[:CHUNK] + NEW + OLD[2 * CHUNK :]),
        (len(OLD), [], OLD),
        (2 * CHUNK, [], OLD[: 2 * CHUNK]),
        (CHUNK + 50, [(1, *_whole(TAIL))], OLD[:CHUNK] + TAIL),
        (0, [], b""),
        (4 * CHUNK + 50, [(3, *_whole(NEW)), (4, *_whole(TAIL))], OLD[: 3 * CHUNK] + NEW + TAIL),
        (50, [(0, *_whole(TAIL))], TAIL),
    ],
    ids=["one chunk", "nothing", "cut at a border", "cut within", "to nothing", "longer", "one short chunk"],
)
def test_right_diffs(
    store: FileStorage, base: Version, size: int, patches: list[tuple[int, bytes, bytes]], expected: bytes
) -> None:
    note = "" if expected == OLD else "n"  # a note makes a new version even of the same content
    version = store.revise(base.file_id, diff_of(base, size, patches), user_id=USER, note=note, time_ms=7)
    assert get(store, version) == expected
    assert get(store, base) == OLD
    if expected == OLD:
        assert version == base
    else:
        assert (version.parent_id, version.note, version.time_ms) == (base.version_id, "n", 7)
    assert store.scrub().clean


def test_from_nothing(store: FileStorage) -> None:
    base = push(store, b"")
    version = store.revise(
        base.file_id, diff_of(base, CHUNK + 50, [(0, *_whole(NEW)), (1, *_whole(TAIL))]), user_id=USER
    )
    assert get(store, version) == NEW + TAIL


def test_chunks_without_data(store: FileStorage, base: Version) -> None:
    """Chunks of the file itself, of another file of the user, and one given earlier in the same diff."""
    push(store, NEW, "other")
    fresh = content(5, CHUNK)
    patches = [
        (0, digest(OLD[CHUNK : 2 * CHUNK]), None),
        (1, digest(NEW), None),
        (2, *_whole(fresh)),
        (3, digest(fresh), None),
    ]
    version = store.revise(base.file_id, diff_of(base, 4 * CHUNK, patches), user_id=USER)
    assert get(store, version) == OLD[CHUNK : 2 * CHUNK] + NEW + fresh + fresh


@given(old=st.integers(0, 4 * CHUNK), new=st.integers(0, 4 * CHUNK), same=st.integers(0, 4 * CHUNK), user=st.uuids())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_diff_then_revise_gives_any_content(kept: FileStorage, old: int, new: int, same: int, user: object) -> None:
    before = content(1, old)
    after = before[:same] + content(2, new)
    name = str(user)
    base = push(kept, before, name, name)
    diff = kept.diff(base.file_id, after, user_id=name)
    whole = [i for i in range(0, same - CHUNK + 1, CHUNK) if i + CHUNK <= min(len(before), len(after))]
    assert all(patch.index * CHUNK not in whole for patch in diff.patches)
    version = kept.revise(base.file_id, diff, user_id=name, sha256=hashlib.sha256(after).hexdigest())
    assert get(kept, version) == after
    assert kept.synchronize(base.file_id, have_version_id=base.version_id, user_id=name).patches == (
        () if before == after else diff.patches
    )


@pytest.fixture(scope="module")
def kept(module_scratch: Path) -> Iterator[FileStorage]:
    """A store for many examples; k does not divide the chunk size."""
    with open_store(module_scratch / "store", k=3, n=4) as opened:
        yield opened


def test_a_diff_carries_each_new_chunk_once(store: FileStorage, base: Version) -> None:
    diff = store.diff(base.file_id, NEW * 5, user_id=USER)
    assert diff.wire_bytes == CHUNK
    assert [patch.data is None for patch in diff.patches] == [False, True, True, True, True]


def test_a_diff_against_an_old_version(store: FileStorage, base: Version) -> None:
    push(store, NEW)
    assert store.diff(base.file_id, OLD, user_id=USER, base_version_id=base.version_id).patches == ()
    with pytest.raises(VersionNotFound):
        store.diff(base.file_id, OLD, user_id=USER, base_version_id="00" * 32)


# -- wrong ones ---------------------------------------------------------------------------------------

Change = Callable[[Version], ManifestDiff]
_NEW_ID = digest(NEW)


def _diff(size: int, *patches: Patch) -> Change:
    return lambda base: ManifestDiff(base.version_id, size, CHUNK, patches)


def _chunk_size(chunk_size: int) -> Change:
    return lambda base: ManifestDiff(base.version_id, len(OLD), chunk_size, ())


WRONG: dict[str, Change] = {
    "another chunk size": _chunk_size(2 * CHUNK),
    "chunk size 0": _chunk_size(0),
    "negative chunk size": _chunk_size(-1),
    "negative size": _diff(-1),
    "size beyond the limit": _diff(FILE_SIZE_MAX + 1),
    "size beyond 64 bits": _diff(1 << 70),
    "grows without chunks": _diff(FILE_SIZE_MAX),
    "grows with one chunk too few": _diff(6 * CHUNK, Patch(3, _NEW_ID, NEW), Patch(5, _NEW_ID, NEW)),
    "negative index": _diff(len(OLD), Patch(-1, _NEW_ID, NEW)),
    "index beyond the end": _diff(len(OLD), Patch(4, _NEW_ID, NEW)),
    "huge index": _diff(len(OLD), Patch(1 << 70, _NEW_ID, NEW)),
    "a patch of nothing": _diff(0, Patch(0, _NEW_ID, NEW)),
    "descending indexes": _diff(len(OLD), Patch(2, _NEW_ID, NEW), Patch(1, _NEW_ID, NEW)),
    "the same index twice": _diff(len(OLD), Patch(1, _NEW_ID, NEW), Patch(1, _NEW_ID, NEW)),
    "the last chunk keeps its old length": _diff(len(OLD) + 1),
    "the last chunk is not cut": _diff(CHUNK + 1),
    "the old last chunk stays short": _diff(5 * CHUNK, Patch(4, _NEW_ID, NEW)),
    "data too short": _diff(len(OLD), Patch(1, digest(NEW[1:]), NEW[1:])),
    "data too long": _diff(len(OLD), Patch(1, digest(NEW + b"x"), NEW + b"x")),
    "no data at all": _diff(len(OLD), Patch(1, digest(b""), b"")),
    "the last chunk too long": _diff(len(OLD), Patch(3, _NEW_ID, NEW)),
    "data of another hash": _diff(len(OLD), Patch(1, digest(b"other"), NEW)),
    "an id too short": _diff(len(OLD), Patch(1, _NEW_ID[:31], NEW)),
    "an id too long": _diff(len(OLD), Patch(1, _NEW_ID + b"x", NEW)),
    "no id": _diff(len(OLD), Patch(1, b"", None)),
    "an unknown chunk": _diff(len(OLD), Patch(1, digest(b"unknown"), None)),
    "a chunk of another length": _diff(len(OLD), Patch(1, digest(OLD[3 * CHUNK :]), None)),
    "a whole chunk where a short one belongs": _diff(len(OLD), Patch(3, digest(OLD[:CHUNK]), None)),
    "a chunk given here but of another length": _diff(4 * CHUNK + 10, Patch(3, _NEW_ID, NEW), Patch(4, _NEW_ID, None)),
    "a right patch and a wrong one": _diff(len(OLD), Patch(0, _NEW_ID, NEW), Patch(1, _NEW_ID, NEW[:-1] + b"x")),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_diffs_are_refused_and_leave_nothing(store: FileStorage, base: Version, what: str) -> None:
    before = store.stats()
    with pytest.raises(InvalidArgument):
        store.revise(base.file_id, WRONG[what](base), user_id=USER)
    after = store.stats()
    assert (after.versions, after.stored_bytes) == (before.versions, before.stored_bytes)
    assert store.history(base.file_id, user_id=USER) == [base]
    assert get(store, base) == OLD
    right = diff_of(base, len(OLD), [(1, *_whole(NEW))])
    assert store.revise(base.file_id, right, user_id=USER).parent_id == base.version_id


def test_too_many_patches(store: FileStorage, base: Version) -> None:
    diff = ManifestDiff(base.version_id, FILE_SIZE_MAX, CHUNK, (Patch(0, _NEW_ID, None),) * (DIFF_PATCHES_MAX + 1))
    with pytest.raises(InvalidArgument, match="at most"):
        store.revise(base.file_id, diff, user_id=USER)


def test_chunks_of_another_user_do_not_show(store: FileStorage, base: Version) -> None:
    push(store, NEW, user="bob")
    texts = set()
    for chunk_id in (digest(NEW), digest(b"nobody's")):
        with pytest.raises(InvalidArgument) as caught:
            store.revise(base.file_id, diff_of(base, len(OLD), [(1, chunk_id, None)]), user_id=USER)
        texts.add(str(caught.value).replace(chunk_id.hex(), "ID"))
    assert len(texts) == 1
    own = store.revise(base.file_id, diff_of(base, len(OLD), [(1, *_whole(NEW))]), user_id=USER)
    assert get(store, own)[CHUNK : 2 * CHUNK] == NEW


def test_a_chunk_of_another_code_is_not_the_chunk(store: FileStorage, base: Version) -> None:
    store.push(NEW, filename="other", user_id=USER, profile=ErasureProfile(2, 3))
    with pytest.raises(InvalidArgument, match="not among"):
        store.revise(base.file_id, diff_of(base, len(OLD), [(1, digest(NEW), None)]), user_id=USER)


@pytest.mark.parametrize("right", [True, False])
def test_the_sha256_of_the_result(store: FileStorage, base: Version, right: bool) -> None:
    result = OLD[:CHUNK] + NEW + OLD[2 * CHUNK :]
    diff = diff_of(base, len(OLD), [(1, *_whole(NEW))])
    sha256 = hashlib.sha256(result if right else OLD).hexdigest()
    if right:
        assert store.revise(base.file_id, diff, user_id=USER, sha256=sha256).sha256 == sha256
        return
    used = store.stats().stored_bytes
    with pytest.raises(InvalidArgument, match="nothing was stored"):
        store.revise(base.file_id, diff, user_id=USER, sha256=sha256)
    assert store.stats().stored_bytes == used
    assert store.stat(base.file_id, user_id=USER) == base


# -- conflicts ----------------------------------------------------------------------------------------


def test_the_base_must_be_the_head(store: FileStorage, base: Version) -> None:
    diff = diff_of(base, len(OLD), [(1, *_whole(NEW))])
    second = push(store, NEW)
    used = store.stats().stored_bytes
    with pytest.raises(ConflictError) as caught:
        store.revise(base.file_id, diff, user_id=USER)
    assert (caught.value.head, caught.value.base) == (second.version_id, base.version_id)
    assert store.stats().stored_bytes == used
    with pytest.raises(VersionNotFound):
        store.revise(base.file_id, dataclasses.replace(diff, base_version_id="00" * 32), user_id=USER)
    store.delete(base.file_id, user_id=USER)
    with pytest.raises(FileNotFound):
        store.revise(base.file_id, diff, user_id=USER)


def test_only_the_owner_revises(store: FileStorage, base: Version) -> None:
    with pytest.raises(FileNotFound):
        store.revise(base.file_id, diff_of(base, 0, []), user_id="bob")
    assert get(store, base) == OLD


def test_going_back_to_old_content_is_a_new_version(store: FileStorage, base: Version) -> None:
    second = push(store, NEW)
    third = store.revise(base.file_id, store.diff(base.file_id, OLD, user_id=USER), user_id=USER)
    assert third.parent_id == second.version_id
    assert third.version_id != base.version_id
    assert get(store, third) == OLD


# -- synchronize --------------------------------------------------------------------------------------


def test_synchronize(store: FileStorage, base: Version) -> None:
    equal = store.synchronize(base.file_id, have_version_id=base.version_id, user_id=USER)
    assert (equal.patches, equal.new_size, equal.target_version_id) == ((), len(OLD), base.version_id)
    second = push(store, OLD[:CHUNK] + NEW + OLD[2 * CHUNK :])
    diff = store.synchronize(base.file_id, have_version_id=base.version_id, user_id=USER)
    assert diff.patches == (Patch(1, digest(NEW), NEW),)
    assert (diff.base_version_id, diff.target_version_id) == (base.version_id, second.version_id)
    back = store.synchronize(base.file_id, have_version_id=second.version_id, user_id=USER, data_bytes_max=0)
    assert back.patches == ()


def test_synchronize_across_chunk_sizes_is_refused(store: FileStorage, base: Version) -> None:
    store.push(OLD, filename="file", user_id=USER, chunk_size=2 * CHUNK)
    with pytest.raises(InvalidArgument, match="get it instead"):
        store.synchronize(base.file_id, have_version_id=base.version_id, user_id=USER)
    with pytest.raises(VersionNotFound):
        store.synchronize(base.file_id, have_version_id="00" * 32, user_id=USER)


def test_a_revision_of_a_large_file_costs_what_changed(root: Path) -> None:
    """With 3,000 chunks in three leaves, one chunk, one leaf and one version object are added."""
    with open_store(root, k=1, n=1) as store:
        with store.upload(filename="file", user_id=USER) as upload:
            for number in range(3000):
                upload.write(number.to_bytes(4, "big") * (CHUNK // 4))
            base = upload.commit()
        used = store.stats().stored_bytes
        version = store.revise(base.file_id, diff_of(base, base.size, [(1500, *_whole(NEW))]), user_id=USER)
        assert store.stats().stored_bytes - used < CHUNK + 1024 * 32 + 2000
        with store.open_file(version.file_id, user_id=USER) as reader:
            reader.seek(1500 * CHUNK - 4)
            assert reader.read(CHUNK + 8) == (1499).to_bytes(4, "big") + NEW + (1501).to_bytes(4, "big")
        diff = store.synchronize(base.file_id, have_version_id=base.version_id, user_id=USER)
        assert diff.patches == (Patch(1500, digest(NEW), NEW),)


def test_a_hundred_gibibytes_by_arithmetic(root: Path) -> None:
    """Only the manifest is made, with the same 4 MiB chunk 25,600 times."""
    chunk, size = content(4, LARGE), 100 * (1 << 30)
    with open_store(root, k=1, n=1) as store:
        store.push(chunk, filename="one", user_id=USER, chunk_size=LARGE)
        base = store.push(b"", filename="file", user_id=USER, chunk_size=LARGE)
        chunk_id = digest(chunk)
        patches = tuple(Patch(index, chunk_id) for index in range(size // LARGE))
        version = store.revise(base.file_id, ManifestDiff(base.version_id, size, LARGE, patches), user_id=USER)
        assert (version.size, version.chunk_count) == (size, 25_600)
        with store.open_file(version.file_id, user_id=USER) as reader:
            for place in (0, 50 * (1 << 30) + 5, size - 10):
                reader.seek(place)
                assert reader.read(10) == chunk[place % LARGE : place % LARGE + 10]
        assert store.scrub().clean


def test_a_difference_shows_how_much_it_holds_and_not_what() -> None:
    patches = (Patch(0, bytes(32), bytes(3_000_000)), Patch(1, bytes(32)))
    shown = repr(ManifestDiff("0" * 64, 4_000_000, 1 << 20, patches))
    assert "data=<3,000,000 bytes>" in shown
    assert len(shown) < 500
