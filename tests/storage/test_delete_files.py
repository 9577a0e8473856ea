"""Deleting many files at once: all of them or none, with one flush of the volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import FileNotFound, FileStorage
from storage.fleet.volumes import VolumeSet
from tests.storage.helpers import USER, lose_catalog, open_store, push


def test_all_are_gone_and_a_rebuild_does_not_bring_them_back(root: Path) -> None:
    with open_store(root) as store:
        doomed = [push(store, b"%d" % number, f"f{number}").file_id for number in range(30)]
        kept = push(store, b"kept", "kept")
        store.delete_files(doomed, user_id=USER)
        counts = store.counts()
        assert (counts.files, counts.logical_bytes) == (1, 4)
        assert [version.filename for version in store.list_files(user_id=USER)] == ["kept"]
        assert store.collect(grace_s=0).objects_removed > 0
        assert store.scrub().clean
    lose_catalog(root)
    with open_store(root) as store:
        assert store.rebuild().files == 1
        assert store.get(kept.file_id, user_id=USER) == b"kept"


def test_one_that_is_not_there_keeps_the_others(store: FileStorage) -> None:
    mine = [push(store, b"x", f"f{number}").file_id for number in range(3)]
    theirs = push(store, b"x", "file", user="eve").file_id
    for wrong in ("0" * 32, "no id", theirs):
        with pytest.raises(FileNotFound, match=wrong[:20]):
            store.delete_files([mine[0], wrong, mine[1]], user_id=USER)
    assert store.counts().files == 4
    store.delete_files([mine[0], mine[0], mine[2]], user_id=USER)
    store.delete_files([], user_id=USER)
    assert [version.filename for version in store.list_files(user_id=USER)] == ["f1"]


def test_they_take_one_flush(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = [push(store, b"%d" % number, f"f{number}").file_id for number in range(50)]
    flushes = 0
    sync = VolumeSet.sync

    def counting(self: VolumeSet) -> None:
        nonlocal flushes
        flushes += 1
        sync(self)

    monkeypatch.setattr(VolumeSet, "sync", counting)
    store.delete_files(doomed, user_id=USER)
    assert flushes == 1
