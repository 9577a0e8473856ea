"""A rebuild while volumes are out of reach waits for what they may hold, and loses nothing."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import CatalogBehind, FileNotFound, FileStorage, RebuildReport, Version
from storage.fleet.volumes import VolumeOptions
from tests.storage.faulty_disk import FaultyDisk
from tests.storage.helpers import CHUNK, USER, content, get, lose, lose_catalog, open_store, push, volume_dir

AWAY = (0, 1, 2)  # of six: one more than 4-of-6 chunks can lose


def _files(number: int) -> dict[str, bytes]:
    return {"chain": content(10 + number, 2 * CHUNK), f"new {number}": content(20 + number, 3 * CHUNK + 5)}


def _push_all(store: FileStorage, files: dict[str, bytes]) -> dict[str, Version]:
    return {name: push(store, data, name) for name, data in files.items()}


class Rolled:
    """A store whose catalog was restored from a copy. Two files are older than the copy and were changed later."""

    def __init__(self, root: Path, backup: Path) -> None:
        self.root = root
        with open_store(root) as store:
            self.first = push(store, content(1, CHUNK), "chain")
            self.gone = push(store, b"gone", "gone")
        shutil.copytree(root / "catalog", backup)
        with open_store(root) as store:
            self.contents = _files(1)
            self.versions = _push_all(store, self.contents)
            store.delete(self.gone.file_id, user_id=USER)
        lose_catalog(root)
        shutil.copytree(backup, root / "catalog")

    def take_away(self, *slots: int) -> None:
        """Unmount these volumes' disks."""
        for slot in slots:
            volume_dir(self.root, slot).rename(self.root / f"away-{slot}")

    def bring_back(self, *slots: int) -> None:
        """Mount them again."""
        for slot in slots:
            shutil.rmtree(volume_dir(self.root, slot), ignore_errors=True)
            (self.root / f"away-{slot}").rename(volume_dir(self.root, slot))

    def check(self, store: FileStorage) -> None:
        """Check that all acknowledged files exist, and deleted ones do not."""
        for name, data in self.contents.items():
            assert store.find(name, user_id=USER) == self.versions[name]
            assert get(store, self.versions[name]) == data
        assert get(store, self.first) == content(1, CHUNK)
        assert [one.version_id for one in store.history(self.first.file_id, user_id=USER)] == [
            self.versions["chain"].version_id,
            self.first.version_id,
        ]
        with pytest.raises(FileNotFound):
            store.stat(self.gone.file_id, user_id=USER)


@pytest.fixture
def rolled(root: Path, scratch: Path) -> Rolled:
    return Rolled(root, scratch / "backup")


def _check_unfinished(store: FileStorage, report: RebuildReport, *names: str) -> None:
    """Check that a report names undecided things, their volumes and the remedy, and that writing and freeing fail."""
    told = "\n".join(report.undecided)
    for name in names:
        assert name in told
    assert store.behind
    assert store.stats().behind
    assert "rebuild" in store.stats().unfinished
    refused: list[Callable[[], object]] = [
        lambda: store.collect(grace_s=0),
        lambda: push(store, b"x", "x"),
    ]
    for refuse in refused:
        with pytest.raises(CatalogBehind, match=r"not finished.*run rebuild again"):
            refuse()


def test_what_volumes_that_are_away_may_hold_is_kept_and_taken_in_when_they_are_back(rolled: Rolled) -> None:
    rolled.take_away(*AWAY)
    with open_store(rolled.root) as store:
        report = store.rebuild()
        _check_unfinished(store, report, "'new 1'", "'chain'", *(str(volume_dir(rolled.root, slot)) for slot in AWAY))
        assert store.find("chain", user_id=USER) == rolled.first  # what the older catalog knows is kept
    rolled.bring_back(*AWAY)
    with open_store(rolled.root) as store:
        _check_unfinished(store, report)  # the note is kept in the catalog
        again = store.rebuild()
        assert (again.undecided, again.skipped, store.behind, store.stats().unfinished) == ([], [], False, "")
        store.collect(grace_s=0)
        rolled.check(store)
    with open_store(rolled.root) as store:
        assert store.repair().complete
        assert store.scrub().clean
        rolled.check(store)


def test_volumes_that_come_back_while_the_store_is_open_finish_it(rolled: Rolled) -> None:
    rolled.take_away(*AWAY)
    with open_store(rolled.root) as store:
        assert store.rebuild().undecided
        assert store.rebuild().undecided  # still, as nothing has changed
        rolled.bring_back(*AWAY)
        store.repair()
        assert store.behind
        assert store.rebuild().undecided == []
        store.collect(grace_s=0)
        rolled.check(store)


def test_a_single_volume_that_is_away_may_hold_what_nobody_else_does(rolled: Rolled) -> None:
    """Everything known can be read and is entered; still, nothing is freed before all volumes were asked."""
    disk = FaultyDisk()
    disk.fail(errno.EIO, "names", only="3")
    with open_store(rolled.root, volume_options=VolumeOptions(filesystem=disk)) as store:
        report = store.rebuild()
        _check_unfinished(store, report, str(volume_dir(rolled.root, 3)))
        rolled.check(store)
        disk.heal()
        store.repair()
        assert store.rebuild().undecided == []
        store.collect(grace_s=0)
        rolled.check(store)


def test_a_volume_that_is_lost_is_given_up_by_a_repair(rolled: Rolled) -> None:
    lose(rolled.root, *AWAY)
    with open_store(rolled.root) as store:
        assert store.rebuild().undecided
        store.repair()  # begins them anew
        report = store.rebuild()
        assert report.undecided == []
        assert not store.behind
        assert any("'new 1'" in text for text in report.skipped)  # what was lost with the volumes is reported
        store.collect(grace_s=0)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_volumes_that_cannot_be_read_for_a_moment_are_no_empty_ones(rolled: Rolled, number: int) -> None:
    disk = FaultyDisk()
    with open_store(rolled.root, volume_options=VolumeOptions(filesystem=disk)) as store:
        disk.fail(number, "open", "read")
        report = store.rebuild()
        _check_unfinished(store, report)
        disk.heal()
        store.repair()
        assert store.rebuild().undecided == []
        store.collect(grace_s=0)
        rolled.check(store)


def test_a_catalog_that_is_lost_is_made_again_as_far_as_volumes_are_there(root: Path) -> None:
    contents = _files(1)
    disk = FaultyDisk()
    with open_store(root) as store:
        versions = _push_all(store, contents)
    lose_catalog(root)
    disk.fail(errno.EIO, "names", only="4")
    with open_store(root, volume_options=VolumeOptions(filesystem=disk)) as store:
        report = store.rebuild()
        _check_unfinished(store, report, str(volume_dir(root, 4)))
        for name, data in contents.items():
            assert get(store, versions[name]) == data
    with open_store(root) as store:
        assert store.behind
        assert store.rebuild().undecided == []
        store.collect(grace_s=0)
        for name, data in contents.items():
            assert get(store, versions[name]) == data
