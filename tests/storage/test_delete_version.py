"""Single versions are deleted: the others stay, and what was deleted does not come back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import ConflictError, FileNotFound, FileStorage, ManifestDiff, Patch, Version, VersionNotFound
from storage.errors import CatalogBehind, InvalidArgument
from storage.keys import Kind, kind_of
from storage.maintenance.live import LiveRun, live_runs
from storage.write.quotas import Quota
from tests.storage.helpers import CHUNK, USER, content, digest, file_shards, flip, lose, lose_catalog, records

KEY = bytes(range(32))


class Chain:
    """A store with one file of some versions, each with two chunks of its own and one shared with all."""

    def __init__(self, root: Path, key: bytes | None, count: int = 4) -> None:
        self.root, self.key = root, key
        self.open()
        self.data = [content(99, CHUNK) + content(at, 2 * CHUNK) for at in range(count)]
        self.versions = [self.push(data, note=f"number {at}") for at, data in enumerate(self.data)]
        self.file_id = self.versions[0].file_id

    def open(self) -> None:
        self.store = FileStorage.open(self.root, chunk_size=CHUNK, key=self.key)

    def push(self, data: bytes, note: str = "") -> Version:
        return self.store.push(data, filename="file", user_id=USER, note=note)

    def delete(self, at: int) -> Version | None:
        return self.store.delete_version(self.file_id, self.versions[at].version_id, user_id=USER)

    def check(self, *left: int) -> None:
        """Check that exactly these versions are there, as they were."""
        history = self.store.history(self.file_id, user_id=USER)
        assert history == [self.versions[at] for at in reversed(left)]
        for at, version in enumerate(self.versions):
            if at in left:
                assert self.store.get(self.file_id, user_id=USER, version_id=version.version_id) == self.data[at]
            else:
                with pytest.raises(VersionNotFound, match="has no version"):
                    self.store.stat(self.file_id, user_id=USER, version_id=version.version_id)
        assert self.store.get(self.file_id, user_id=USER) == self.data[left[-1]]
        assert self.store.find("file", user_id=USER) == self.versions[left[-1]]
        heads = self.store.list_files(user_id=USER)
        assert self.store.stats().logical_bytes == sum(head.size for head in heads)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path / "store", None)
    yield made
    made.store.close()


@pytest.fixture(params=[None, KEY], ids=["plain", "sealed"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Chain]:
    made = Chain(tmp_path / "store", request.param)
    yield made
    made.store.close()


def test_any_version_can_be_deleted(either: Chain) -> None:
    assert either.delete(1) == either.versions[3]
    either.check(0, 2, 3)
    assert either.delete(3) == either.versions[2]  # the newest
    either.check(0, 2)
    with pytest.raises(VersionNotFound):
        either.delete(3)
    assert either.delete(0) == either.versions[2]  # the first
    either.check(2)
    assert either.delete(2) is None  # the only one
    with pytest.raises(FileNotFound):
        either.store.stat(either.file_id, user_id=USER)
    assert either.store.find("file", user_id=USER) is None


def test_only_the_owner_deletes_versions(chain: Chain) -> None:
    for bad in ("", "zz", "00" * 32, chain.versions[0].version_id.upper()[:-1]):
        with pytest.raises(VersionNotFound):
            chain.store.delete_version(chain.file_id, bad, user_id=USER)
    with pytest.raises(FileNotFound):
        chain.store.delete_version(chain.file_id, chain.versions[0].version_id, user_id="eve")
    chain.check(0, 1, 2, 3)


def test_pages_of_the_history_go_on_after_a_version_that_was_deleted_meanwhile(chain: Chain) -> None:
    chain.delete(2)
    chain.delete(1)
    before = chain.versions[2].version_id
    assert chain.store.history(chain.file_id, user_id=USER, before=before) == [chain.versions[0]]
    page = chain.store.list_versions(user_id=USER, after="file", before=before, limit=5)
    assert page.versions == [chain.versions[0]]


def test_changes_made_against_a_deleted_version_are_conflicts(chain: Chain) -> None:
    base, new = chain.versions[3].version_id, content(5, CHUNK)
    chain.delete(3)
    diff = ManifestDiff(base, CHUNK, CHUNK, (Patch(0, digest(new), new),))
    with pytest.raises(ConflictError) as caught:
        chain.store.revise(chain.file_id, diff, user_id=USER)
    assert caught.value.head == chain.versions[2].version_id
    with pytest.raises(ConflictError):
        chain.store.push(new, filename="file", user_id=USER, if_head=base)
    with pytest.raises(VersionNotFound):
        chain.store.synchronize(chain.file_id, have_version_id=base, user_id=USER)
    again = chain.store.push(chain.data[3], filename="file", user_id=USER, if_head=chain.versions[2].version_id)
    assert (again.parent_id, again.version_id == base) == (chain.versions[2].version_id, False)


def test_a_collect_frees_what_no_other_version_needs(either: Chain) -> None:
    before = file_shards(either.store)
    either.delete(1)
    either.delete(3)
    either.store.collect(grace_s=0)
    assert before - file_shards(either.store) == 6 * (2 + 2 * 2 - 2)  # records and chunks, less two tombstones
    either.check(0, 2)
    assert either.store.stats().versions == 2
    assert either.store.scrub().clean


@pytest.mark.parametrize("collected", [False, True])
def test_a_rebuild_does_not_bring_it_back(either: Chain, collected: bool) -> None:
    either.delete(3)
    either.delete(1)
    if collected:
        either.store.collect(grace_s=0)
    either.store.close()
    lose_catalog(either.root)
    either.open()
    report = either.store.rebuild()
    assert (report.files, report.versions, report.skipped) == (1, 2, [])
    either.check(0, 2)
    assert either.push(either.data[3]).parent_id == either.versions[2].version_id


def test_a_catalog_from_before_learns_of_it(either: Chain, tmp_path: Path) -> None:
    either.store.close()
    shutil.copytree(either.root / "catalog", tmp_path / "old")
    either.open()
    either.delete(3)
    either.store.close()
    lose_catalog(either.root)
    shutil.copytree(tmp_path / "old", either.root / "catalog")
    either.open()
    assert either.store.behind
    with pytest.raises(CatalogBehind):
        either.delete(1)
    either.store.rebuild()
    either.check(0, 1, 2)


def test_the_newest_version_stays_if_the_one_before_it_was_not_found(chain: Chain) -> None:
    """Else the whole file would be deleted, also what volumes have that were away during the rebuild."""
    damaged = bytes.fromhex(chain.versions[2].version_id)
    chain.store.close()
    for volume in sorted(chain.root.glob("volumes/*")):
        for record in records(volume):
            if record.key[:32] == damaged and record.key[32] == Kind.VERSION:
                flip(record.segment, record.stop - 1)
    lose_catalog(chain.root)
    chain.open()
    chain.store.rebuild()
    assert [one.version_id for one in chain.store.history(chain.file_id, user_id=USER)] == [
        chain.versions[3].version_id
    ]
    with pytest.raises(CatalogBehind, match="rebuild with all volumes first"):
        chain.delete(3)
    assert chain.store.get(chain.file_id, user_id=USER) == chain.data[3]


def test_volumes_are_not_taken_for_old_copies_afterwards(chain: Chain) -> None:
    chain.delete(3)  # the version that was committed last
    chain.store.collect(grace_s=0)
    chain.store.close()
    chain.open()
    assert {volume.state for volume in chain.store.stats().volumes} == {"ok"}


def test_an_open_reader_goes_on(chain: Chain) -> None:
    version_id = chain.versions[1].version_id
    with chain.store.open_file(chain.file_id, user_id=USER, version_id=version_id) as reader:
        assert reader.read(10) == chain.data[1][:10]
        chain.delete(1)
        chain.store.collect(grace_s=0)
        assert reader.read() == chain.data[1][10:]
    chain.store.collect(grace_s=0)
    chain.check(0, 2, 3)


def test_the_next_version_keeps_what_it_shared_with_a_deleted_one(chain: Chain) -> None:
    data = chain.data[3] + content(7, CHUNK)
    longer = chain.push(data)
    chain.delete(3)
    chain.store.collect(grace_s=0)
    assert chain.store.get(chain.file_id, user_id=USER) == data
    assert chain.store.history(chain.file_id, user_id=USER, limit=1) == [longer]
    assert chain.store.scrub().clean


def deleting_under_way(chain: Chain, collecting: bool, walk: Callable[[Callable[..., None]], object]) -> None:
    """Delete the middle one of three versions that share chunks while a walk is at their file, for several files.

    Ids are random, and so is the order in which a walk sees the versions: that of some file is the dangerous one.
    """
    chain.store.delete(chain.file_id, user_id=USER)
    chain.store.collect(grace_s=0)
    kept: list[tuple[Version, bytes]] = []
    middle: list[Version] = []
    for number in range(12):
        shared = content(1000 + number, CHUNK)
        for at, data in enumerate((b"first", shared, shared + b"third")):
            version = chain.store.push(data, filename=f"file {number}", user_id=USER)
            if at == 1:
                middle.append(version)
            else:
                kept.append((version, data))
    middle.sort(key=lambda version: version.file_id)  # as the walk goes
    seen: list[int] = []

    def step(*_: object) -> None:
        seen.append(1)
        number, at = divmod(len(seen), 3)
        if number < len(middle) and at == 1 + number % 2:
            version = middle[number]
            chain.store.delete_version(version.file_id, version.version_id, user_id=USER)
            if collecting:
                chain.store.collect(grace_s=0)

    walk(step)
    assert len(seen) >= 3 * len(middle)
    chain.store.collect(grace_s=0)
    for version, data in kept:
        assert chain.store.get(version.file_id, user_id=USER, version_id=version.version_id) == data
    assert chain.store.scrub().clean


def test_a_collect_keeps_what_is_shared_with_a_version_that_is_deleted_under_it(chain: Chain) -> None:
    deleting_under_way(chain, False, lambda step: chain.store.collect(grace_s=0, progress=step))


def test_a_repair_restores_what_is_shared_with_a_version_that_is_deleted_and_collected_under_it(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(step: Callable[..., None]) -> None:
        def stepping(*arguments: Any) -> Iterator[LiveRun]:
            for number, run in enumerate(live_runs(*arguments)):
                if number and kind_of(run.stripes[0]) == Kind.VERSION:
                    step()
                yield run
            step()

        chain.store.close()
        lose(chain.root, 2)
        chain.open()
        with monkeypatch.context() as patched:
            patched.setattr("storage.maintenance.repair.live_runs", stepping)
            assert chain.store.repair().complete

    deleting_under_way(chain, True, walk)


def test_its_bytes_count_until_a_collect(chain: Chain) -> None:
    def taken() -> int:
        return sum(one.bytes for one in chain.store.upkeep.usages())

    def alone(count: int) -> int:
        return 6 * CHUNK // 4 * (1 + 2 * count)

    all_four = taken()
    assert alone(4) < all_four < alone(4) + 6 * 4 * 600
    chain.delete(1)
    chain.delete(3)
    assert taken() == all_four
    chain.store.upkeep.policy.quota_of = lambda _user: Quota(bytes=all_four + CHUNK)
    assert not chain.store.upkeep.is_collect_worthwhile()
    with pytest.raises(Exception, match="may take"):
        chain.push(content(50, 3 * CHUNK))
    assert chain.store.upkeep.is_collect_worthwhile()
    chain.store.collect(grace_s=0)
    assert alone(2) < taken() < alone(2) + 6 * 2 * 600
    chain.push(content(50, 3 * CHUNK))
    chain.store.delete(chain.file_id, user_id=USER)
    assert taken() == 0


def test_a_version_is_deleted_only_if_the_head_is_the_one_given(chain: Chain) -> None:
    def delete(at: int, head: str) -> None:
        chain.store.delete_version(chain.file_id, chain.versions[at].version_id, user_id=USER, if_head=head)

    former, newest = chain.versions[2].version_id, chain.versions[3].version_id
    for at in (0, 2, 3):
        with pytest.raises(ConflictError, match="the head of"):
            delete(at, former)
    with pytest.raises(InvalidArgument):
        delete(0, "no id")
    chain.check(0, 1, 2, 3)
    delete(1, newest)
    delete(3, newest)
    chain.check(0, 2)
    for at in (0, 2):
        delete(at, former)
    with pytest.raises(FileNotFound):
        chain.store.stat(chain.file_id, user_id=USER)
