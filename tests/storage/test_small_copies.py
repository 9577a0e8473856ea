"""Small files are kept as whole copies, and nobody notices except by the profile of their versions."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, InvalidArgument, Version
from storage.errors import InsufficientWorkers
from storage.limits import SMALL_COPIES_BYTES_MAX
from tests.storage.helpers import (
    CHUNK,
    USER,
    content,
    diff_of,
    digest,
    get,
    lose,
    lose_catalog,
    push,
    records,
    rot_shards,
    volume_dir,
)

LIMIT = 4096
CODED, COPIED = ErasureProfile(4, 6), ErasureProfile(1, 3)

Write = Callable[[FileStorage, bytes, str], Version]


def opened(root: Path, limit: int = LIMIT, profile: ErasureProfile = CODED) -> FileStorage:
    return FileStorage.open(root, profile=profile, chunk_size=CHUNK, small_copies_bytes=limit)


def shards_of(store: FileStorage, chunk: bytes) -> list[bytes]:
    """The k, n and slot of all shards of a chunk, in order."""
    keys = [record.key for volume in store.volume_paths for record in records(volume)]
    return sorted(key[33:] for key in keys if key[:32] == digest(chunk))


def pushed_by_path(store: FileStorage, data: bytes, name: str) -> Version:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return store.push(Path(file.name), filename=name, user_id=USER)


def pushed_in_pieces(store: FileStorage, data: bytes, name: str) -> Version:
    with store.upload(filename=name, user_id=USER) as upload:
        for at in range(0, len(data), 1000):
            upload.write(data[at : at + 1000])
        return upload.commit()


def pushed_with_others(store: FileStorage, data: bytes, name: str) -> Version:
    files = [("before", b"before"), (name, data), ("after", b"after")]
    return [outcome.result() for outcome in store.push_many(files, user_id=USER)][1]


WAYS: dict[str, Write] = {
    "bytes": push,
    "file object": lambda store, data, name: store.push(io.BytesIO(data), filename=name, user_id=USER),
    "path": pushed_by_path,
    "with its SHA-256": lambda store, data, name: store.push(
        data, filename=name, user_id=USER, sha256=hashlib.sha256(data).hexdigest()
    ),
    "in pieces": pushed_in_pieces,
    "with others": pushed_with_others,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, CHUNK, CHUNK + 1])
def test_only_small_files_are_copies(root: Path, way: str, size: int) -> None:
    data = content(1, size)
    with opened(root) as store:
        version = WAYS[way](store, data, "f")
        assert version.profile == (COPIED if 0 < size <= LIMIT else CODED)
        assert get(store, version) == data
        assert store.stat(version.file_id, user_id=USER).profile == version.profile


def test_copies_are_whole(root: Path) -> None:
    with opened(root) as store:
        push(store, content(1, 100))
        assert shards_of(store, content(1, 100)) == [bytes([0, 2, slot]) for slot in range(3)]


def test_a_chosen_profile_is_kept(root: Path) -> None:
    with opened(root) as store:
        for profile in (CODED, ErasureProfile(2, 3), COPIED):
            version = store.push(b"small", filename="f", user_id=USER, profile=profile)
            assert version.profile == profile
            assert not version.unchanged
            (outcome,) = store.push_many([("g", b"small")], user_id=USER, profile=profile)
            assert outcome.result().profile == profile


def test_without_the_option_there_are_no_copies(root: Path) -> None:
    with FileStorage.open(root) as store:
        assert push(store, b"small").profile == CODED


@pytest.mark.parametrize("limit", [-1, SMALL_COPIES_BYTES_MAX + 1])
def test_the_limit_has_bounds(root: Path, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="small_copies_bytes"):
        opened(root, limit)


@pytest.mark.parametrize("profile", [ErasureProfile(1, 3), ErasureProfile(3, 3), ErasureProfile(2, 4)])
def test_as_many_losses_are_survived(root: Path, profile: ErasureProfile) -> None:
    with opened(root, profile=profile) as store:
        version = push(store, content(1, 3000))
        assert version.profile == ErasureProfile(1, profile.n - profile.k + 1)
        assert store.stats().losses_survivable == profile.n - profile.k
    lose(root, *range(profile.n - profile.k))
    with opened(root, profile=profile) as store:
        assert get(store, version) == content(1, 3000)
        assert store.stats().losses_survivable == 0


def test_writes_are_refused_as_for_shards(root: Path) -> None:
    with opened(root) as store:
        push(store, content(1, 100), "before")
    take_away(root, 0)
    with opened(root) as store:
        version = push(store, content(2, 100), "f")
        assert store.stats().losses_survivable == 1
    take_away(root, 1)
    with opened(root) as store:
        for size in (100, LIMIT + 1):
            with pytest.raises(InsufficientWorkers):
                push(store, content(3, size), "g")
        assert get(store, version) == content(2, 100)


def take_away(root: Path, slot: int) -> None:
    """Have something else than a volume in its place."""
    lose(root, slot)
    volume_dir(root, slot).write_bytes(b"")


# Equal content


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("before", "after"), [(0, LIMIT), (LIMIT, 0), (LIMIT, 100), (100, LIMIT)])
def test_equal_content_is_unchanged_with_another_limit(root: Path, way: str, before: int, after: int) -> None:
    data = content(1, 3000)
    with opened(root, before) as store:
        first = push(store, data, "f")
    with opened(root, after) as store:
        again = WAYS[way](store, data, "f")
        assert again == first
        assert again.unchanged
        store.collect(grace_s=0)
        assert get(store, first) == data
        assert len(store.history(first.file_id, user_id=USER)) == 1
        (profile,) = {tuple(shard[:2]) for shard in shards_of(store, data)}
        assert ErasureProfile(profile[0] + 1, profile[1] + 1) == first.profile
        noted = store.push(data, filename="f", user_id=USER, note="new")
        assert (noted.unchanged, noted.parent_id) == (False, first.version_id)


def test_equal_content_of_another_chosen_profile_is_new(root: Path) -> None:
    with opened(root) as store:
        store.push(b"small", filename="f", user_id=USER, profile=ErasureProfile(3, 5))
        assert not push(store, b"small", "f").unchanged


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("limits", [(0, LIMIT), (LIMIT, 0)])
def test_equal_content_mends_the_head(root: Path, way: str, limits: tuple[int, int]) -> None:
    data = content(1, 3000)
    with opened(root, limits[0]) as store:
        head = push(store, data, "f")
    k, n = head.profile.k, head.profile.n
    rot_shards(root, digest(data), k, n, range(n - k + 1))
    with opened(root, limits[1]) as store:
        store.scrub()
        again = WAYS[way](store, data, "f")
        assert again == head
        assert again.unchanged
        assert get(store, head) == data
        report = store.repair()
        assert (report.shards_rebuilt, report.lost_count) == (0, 0)


def test_the_order_of_many_files_is_kept(root: Path) -> None:
    with opened(root, 0) as store:
        push(store, b"one", "f")
    with opened(root) as store:
        outcomes = list(store.push_many([("f", b"one"), ("f", b"two"), ("f", b"one")], user_id=USER))
        assert [outcome.result().unchanged for outcome in outcomes] == [True, False, False]
        assert get(store, outcomes[-1].result()) == b"one"


# Chunks named without their bytes


@pytest.mark.parametrize("size", [3000, CHUNK])
def test_copies_are_reused(root: Path, size: int) -> None:
    data = content(1, size)
    with opened(root, CHUNK) as store:
        push(store, data, "f")
        for profile in (None, CODED, COPIED):
            assert store.missing_chunks([digest(data), digest(b"?")], user_id=USER, profile=profile) == [False, True]
        assert store.missing_chunks([digest(data)], user_id=USER, profile=ErasureProfile(2, 3)) == [True]
        assert store.missing_chunks([digest(data)], user_id="eve") == [True]
        with store.upload(filename="g", user_id=USER, sha256=hashlib.sha256(data).hexdigest()) as upload:
            upload.reuse([digest(data)])
            version = upload.commit(size)
        assert (version.profile, get(store, version)) == (COPIED, data)
        with store.upload(filename="g", user_id="eve") as upload, pytest.raises(InvalidArgument, match="send its"):
            upload.reuse([digest(data)])


def test_copies_become_chunks_of_a_larger_file(root: Path) -> None:
    whole, other, rest = content(1, CHUNK), content(2, CHUNK), content(3, 500)
    with opened(root, CHUNK) as store:
        for name, data in (("whole", whole), ("other", other), ("rest", rest)):
            push(store, data, name)
        store.push(content(4, CHUNK), filename="coded", user_id=USER, profile=CODED)
        chunks = [whole, content(4, CHUNK), other, whole, content(5, CHUNK)]
        with store.upload(filename="f", user_id=USER) as upload:
            upload.reuse([digest(chunk) for chunk in chunks[:4]])
            upload.write(chunks[4])
            upload.reuse([digest(rest)])
            with pytest.raises(InvalidArgument):
                upload.reuse([digest(whole)])
            with pytest.raises(InvalidArgument):
                upload.write(b"x")
            version = upload.commit()
        assert (version.profile, get(store, version)) == (CODED, b"".join([*chunks, rest]))
        for name in ("whole", "other", "rest"):
            found = store.find(name, user_id=USER)
            assert found is not None
            store.delete(found.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert get(store, version) == b"".join([*chunks, rest])
        assert (store.repair().shards_rebuilt, store.repair().lost_count) == (0, 0)


# Revisions


@pytest.mark.parametrize(
    ("before", "after", "profile"),
    [
        (100, 0, COPIED),
        (100, LIMIT, COPIED),
        (100, LIMIT + 1, CODED),
        (LIMIT, 3 * CHUNK + 5, CODED),
        (LIMIT + 1, 100, CODED),
        (0, 100, CODED),
    ],
)
@pytest.mark.parametrize("is_prefix", [True, False])
def test_a_revision_changes_the_profile_if_need_be(
    root: Path, before: int, after: int, profile: ErasureProfile, is_prefix: bool
) -> None:
    new = content(1 if is_prefix else 2, after)
    with opened(root) as store:
        base = push(store, content(1, before))
        diff = store.diff(base.file_id, new, user_id=USER)
        version = store.revise(base.file_id, diff, user_id=USER, sha256=hashlib.sha256(new).hexdigest())
        assert (version.profile, version.parent_id) == (profile, base.version_id)
        assert (get(store, version), get(store, base)) == (new, content(1, before))
        assert store.repair().shards_rebuilt == 0
        again = push(store, new)
        assert again.unchanged


def test_a_chunk_that_stays_is_stored_again_with_the_new_profile(root: Path) -> None:
    first, second = content(1, CHUNK), content(2, CHUNK)
    with opened(root, CHUNK) as store:
        base, other = push(store, first, "f"), push(store, second, "other")
        named = [(1, digest(second), None), (2, digest(first), None), (3, digest(b"end"), b"end")]
        new = first + second + first + b"end"
        version = store.revise(
            base.file_id,
            diff_of(base, len(new), named),
            user_id=USER,
            sha256=hashlib.sha256(new).hexdigest(),
        )
        assert (version.profile, get(store, version)) == (CODED, new)
        store.delete(other.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert (get(store, version), get(store, base)) == (new, first)
        with pytest.raises(InvalidArgument, match="not among this user's"):
            store.revise(version.file_id, diff_of(version, 1, [(0, digest(b"?"), None)]), user_id=USER)


def test_others_chunks_cannot_be_named(root: Path) -> None:
    with opened(root, CHUNK) as store:
        push(store, content(1, CHUNK), "f", "eve")
        base = push(store, content(2, CHUNK), "f")
        diff = diff_of(base, 2 * CHUNK, [(1, digest(content(1, CHUNK)), None)])
        with pytest.raises(InvalidArgument, match="not among this user's"):
            store.revise(base.file_id, diff, user_id=USER)


def test_a_chosen_profile_of_a_larger_file_survives_revisions(root: Path) -> None:
    with opened(root) as store:
        base = store.push(content(1, CHUNK + 1), filename="f", user_id=USER, profile=COPIED)
        diff = store.diff(base.file_id, content(1, 3 * CHUNK), user_id=USER)
        assert store.revise(base.file_id, diff, user_id=USER).profile == COPIED


def test_a_lower_limit_does_not_make_a_revision_of_what_is_the_same(root: Path) -> None:
    with opened(root) as store:
        base = push(store, content(1, LIMIT))
    for limit in (100, 0):
        with opened(root, limit) as store:
            diff = store.diff(base.file_id, content(1, LIMIT), user_id=USER)
            assert store.revise(base.file_id, diff, user_id=USER).unchanged


# The whole life of a store


def test_a_mixed_store_is_rebuilt(root: Path) -> None:
    with opened(root) as store:
        pushed = {
            "small": push(store, content(1, 100), "small"),
            "large": push(store, content(2, 2 * CHUNK), "large"),
        }
        base = push(store, content(3, 100), "grown")
        diff = store.diff(base.file_id, content(3, LIMIT + 1), user_id=USER)
        pushed["grown"] = store.revise(base.file_id, diff, user_id=USER)
    lose_catalog(root)
    lose(root, 0, 3)
    with opened(root) as store:
        store.rebuild()
        store.repair()
        assert {tuple(one)[:2] for one in ((each.k, each.n) for each in store.profiles())} == {(1, 3), (4, 6), (1, 6)}
        assert {name: store.find(name, user_id=USER) for name in pushed} == pushed
        assert get(store, base) == content(3, 100)
        assert get(store, pushed["large"]) == content(2, 2 * CHUNK)
        assert push(store, content(1, 100), "small").unchanged
        assert store.stats().losses_survivable == 2


SIZES = st.sampled_from([0, 1, 100, 101, LIMIT, LIMIT + 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
CONTENTS = st.builds(content, st.integers(0, 1), SIZES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(list(WAYS)), CONTENTS),
        st.tuples(st.just("push with"), st.sampled_from([CODED, COPIED, ErasureProfile(2, 3)]), CONTENTS),
        st.tuples(st.just("revise"), st.none(), CONTENTS),
        st.tuples(st.just("reopen with"), st.sampled_from([0, 100, LIMIT, CHUNK]), st.none()),
        st.tuples(st.just("collect"), st.none(), st.none()),
    ),
    min_size=2,
    max_size=8,
)


class _Life:
    """A file in a store, and what is known of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.limit = LIMIT
        self.store = opened(root)
        self.versions: list[tuple[Version, bytes]] = []

    def step(self, what: str, how: object, data: bytes | None) -> None:
        if what == "reopen with":
            assert isinstance(how, int)
            self.store.close()
            self.limit, self.store = how, opened(self.root, how)
        elif what == "collect":
            self.store.collect(grace_s=0)
        elif what == "revise":
            self._revise(data or b"")
        elif isinstance(how, ErasureProfile):
            self._done(self.store.push(data or b"", filename="f", user_id=USER, profile=how), data or b"", how)
        else:
            self._push(str(how), data or b"")

    def _push(self, way: str, data: bytes) -> None:
        version = WAYS[way](self.store, data, "f")
        wanted = COPIED if 0 < len(data) <= self.limit else CODED
        if self.versions:
            head, known = self.versions[-1]
            interchangeable = len(data) <= CHUNK and {head.profile, wanted} <= {CODED, COPIED}
            same = known == data and (head.profile == wanted or interchangeable)
            assert version.unchanged == same
            wanted = head.profile if same else wanted
        self._done(version, data, wanted)

    def _revise(self, data: bytes) -> None:
        if not self.versions:
            return
        head, known = self.versions[-1]
        diff = self.store.diff(head.file_id, data, user_id=USER)
        digested = hashlib.sha256(data).hexdigest()
        version = self.store.revise(head.file_id, diff, user_id=USER, sha256=digested)
        assert version.unchanged == (known == data)
        outgrown = head.profile == COPIED and len(known) <= CHUNK and 0 < self.limit < len(data)
        self._done(version, data, CODED if outgrown and known != data else head.profile)

    def _done(self, version: Version, data: bytes, profile: ErasureProfile) -> None:
        assert version.profile == profile
        if not version.unchanged:
            self.versions.append((version, data))
        assert version == self.versions[-1][0]

    def check(self) -> None:
        for version, data in self.versions:
            assert get(self.store, version) == data
            chunks = [digest(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
            assert not any(self.store.missing_chunks(chunks, user_id=USER, profile=version.profile))
        report = self.store.repair()
        assert (report.shards_rebuilt, report.lost_count) == (0, 0)


@settings(max_examples=40, deadline=None)
@example([("reopen with", CHUNK, None), ("push", "file object", bytes(CHUNK))])  # the source does not tell its end
@given(STEPS)
def test_any_life_of_a_file(steps: list[tuple[str, object, bytes | None]]) -> None:
    _live(steps)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@settings(max_examples=3000, deadline=None)
@given(STEPS)
def test_many_lives_of_files(steps: list[tuple[str, object, bytes | None]]) -> None:
    _live(steps)


def _live(steps: list[tuple[str, object, bytes | None]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        life = _Life(Path(directory) / "store")
        with_store = life.store
        try:
            for what, how, data in steps:
                life.step(what, how, data)
                with_store = life.store
            life.check()
        finally:
            with_store.close()
