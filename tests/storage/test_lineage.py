"""Catalogs and volumes restored from old copies are noticed, reported, and brought up to date without loss."""

from __future__ import annotations

import errno
import shutil
import tarfile
from pathlib import Path
from typing import Any

import lmdb
import pytest

from storage import (
    CatalogBehind,
    DataLossError,
    FileNotFound,
    FileStorage,
    FormatError,
    InvalidArgument,
    StorageError,
    StoreFull,
    Version,
)
from storage.catalog import LmdbCatalog
from storage.fleet.volumes import VolumeOptions
from storage.keys import ID_BYTES, Kind, ShardKey
from storage.shards import LocalVolume, Shard
from storage.shards.identity import read_identity
from tests.same_disk import as_the_same_disk
from tests.storage.faulty_disk import FaultyDisk
from tests.storage.helpers import (
    CHUNK,
    USER,
    check_all,
    content,
    digest,
    flip,
    get,
    lose,
    lose_catalog,
    open_store,
    push,
    push_many,
    records,
    volume_dir,
)

Pushed = dict[str, tuple[Version, bytes]]
OLD_STORES = Path(__file__).parent / "old_stores"
DATA = content(1, 3 * CHUNK + 7)


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


@pytest.fixture
def backup(scratch: Path) -> Path:
    """The directory for the catalog's copy."""
    return scratch / "backup"


def _restore(backup: Path, root: Path, *, same_disk: bool = False) -> None:
    lose_catalog(root)
    _copy(backup, root / "catalog")
    if same_disk:
        as_the_same_disk(root / "catalog")


# -- an older catalog ------------------------------------------------------------------------------------


def _backed_up(root: Path, backup: Path) -> tuple[Version, Version, Version]:
    """Make a store whose catalog is copied before it goes on: (kept, to be deleted, to get another version)."""
    with open_store(root) as store:
        files = push(store, DATA, "kept"), push(store, b"gone", "gone"), push(store, b"one", "chain")
    _copy(root / "catalog", backup)
    return files


def test_what_was_stored_since_the_backup_comes_back(root: Path, backup: Path) -> None:
    kept, gone, first = _backed_up(root, backup)
    with open_store(root) as store:
        new = push(store, content(2, 2 * CHUNK), "new")
        second = push(store, b"two", "chain")
        store.delete(gone.file_id, user_id=USER)
        before = store.stats()
    _restore(backup, root)
    with open_store(root) as store:
        assert store.stats().behind
        assert get(store, kept) == DATA  # reads still work
        with pytest.raises(CatalogBehind, match="run rebuild"):
            push(store, b"three", "chain")
        with pytest.raises(CatalogBehind):
            store.delete(kept.file_id, user_id=USER)
        with pytest.raises(CatalogBehind):
            store.upload(filename="x", user_id=USER)
        with pytest.raises(CatalogBehind):
            store.collect(grace_s=0)
        assert store.repair().complete
        assert store.scrub().clean
    with open_store(root) as store:
        assert store.behind  # refused writes do not change that
        report = store.rebuild()
        assert (report.skipped, store.behind) == ([], False)
        _check_merged(store, (kept, new, second, first, gone))
        after = store.stats()
        assert (after.files, after.versions, after.logical_bytes) == (before.files, 4, before.logical_bytes)
        store.collect(grace_s=0)
        third = push(store, b"three", "chain")
    with open_store(root) as store:
        assert not store.behind
        _check_merged(store, (kept, new, second, first, gone))
        assert [one.version_id for one in store.history(third.file_id, user_id=USER)][1:] == [
            second.version_id,
            first.version_id,
        ]
        with pytest.raises(InvalidArgument, match="is up to date"):
            store.rebuild()
    lose_catalog(root)
    with open_store(root) as store:
        store.rebuild()
        _check_merged(store, (kept, new, second, first, gone))


def _check_merged(store: FileStorage, files: tuple[Version, Version, Version, Version, Version]) -> None:
    kept, new, second, first, gone = files
    assert get(store, kept) == DATA
    assert get(store, new) == content(2, 2 * CHUNK)
    assert (get(store, second), get(store, first)) == (b"two", b"one")
    assert store.find("gone", user_id=USER) is None
    with pytest.raises(FileNotFound):
        store.stat(gone.file_id, user_id=USER)


@pytest.mark.parametrize("change", ["push", "delete"])
def test_a_single_change_after_the_backup_is_enough(root: Path, backup: Path, change: str) -> None:
    kept, gone, _ = _backed_up(root, backup)
    with open_store(root) as store:
        if change == "push":
            push(store, b"new", "new")
        else:
            store.delete(gone.file_id, user_id=USER)
    _restore(backup, root)
    with open_store(root) as store:
        assert store.behind
        store.rebuild()
        assert (store.find("new", user_id=USER) is not None) == (change == "push")
        assert (store.find("gone", user_id=USER) is None) == (change == "delete")
        assert get(store, kept) == DATA


def test_a_backup_of_a_store_in_use(root: Path, backup: Path) -> None:
    with open_store(root) as store:
        push(store, b"before", "before")
        _copy(root / "catalog", backup)
        pushed = push_many(store, [10, CHUNK, 3 * CHUNK])
    _restore(backup, root)
    with open_store(root) as store:
        assert store.behind
        store.rebuild()
        check_all(store, pushed)
        assert store.find("before", user_id=USER) is not None


def test_a_crash_between_volumes_and_catalog_is_no_older_catalog(root: Path, backup: Path) -> None:
    """A batch that the catalog did not commit was not acknowledged to anyone."""
    with open_store(root) as store:
        push(store, b"before", "before")
        _copy(root / "catalog", backup)
        lost = push(store, b"cut off", "cut off")
    _restore(backup, root, same_disk=True)
    with open_store(root) as store:
        assert not store.behind
        assert push(store, b"next", "next").sequence > lost.sequence
        store.collect(grace_s=0)
        assert [one.filename for one in store.list_files(user_id=USER)] == ["before", "next"]


def test_an_orphan_that_was_collected_does_not_hide_it(root: Path, backup: Path, scratch: Path) -> None:
    """The newest record of every volume is then a removed one."""
    _backed_up(root, backup)
    with open_store(root) as store:
        push(store, b"new", "new")
        _copy(root / "catalog", scratch / "before the crash")
        push(store, b"cut off", "cut off")
    _restore(scratch / "before the crash", root, same_disk=True)
    with open_store(root) as store:
        assert not store.behind
        store.collect(grace_s=0)
    _restore(backup, root)
    with open_store(root) as store:
        assert store.behind
        store.rebuild()
        assert store.find("new", user_id=USER) is not None


@pytest.mark.parametrize("change", ["push", "delete"])
@pytest.mark.parametrize("damage", ["rot", "bad sector", "changed before it was written"])
def test_a_newest_record_that_cannot_be_read_does_not_hide_it(
    root: Path, backup: Path, damage: str, change: str
) -> None:
    """Earlier records also show it."""
    _, gone, _ = _backed_up(root, backup)
    with open_store(root) as store:
        push(store, b"new", "new")
        push(store, b"second", "second")
        if change == "push":
            push(store, b"last", "last")
        else:
            store.delete(gone.file_id, user_id=USER)
    _restore(backup, root)
    disk = FaultyDisk()
    for slot in range(6):
        record = [r for r in records(volume_dir(root, slot)) if r.key[ID_BYTES] in (Kind.VERSION, Kind.TOMBSTONE)][-1]
        if damage == "changed before it was written":
            _change(volume_dir(root, slot), record.key)
        elif damage == "rot":
            flip(record.segment, record.stop - 1)
        else:
            disk.spoil(record.segment, record.stop - 1, record.stop)
    with FileStorage.open(root, volume_options=VolumeOptions(filesystem=disk)) as store:
        assert store.behind


def _change(path: Path, key: ShardKey) -> None:
    """Replace the object under a key on a volume, with a matching digest."""
    identity = read_identity(path)
    assert identity is not None
    volume = LocalVolume(path, identity)
    shard = volume.read(key)
    assert shard is not None
    payload = bytearray(shard.payload)
    payload[-1] ^= 1
    volume.append([Shard(key, shard.object_length, digest(bytes(payload)), bytes(payload))])
    volume.close()


def test_volumes_that_are_away_do_not_hide_it(root: Path, backup: Path, scratch: Path) -> None:
    """Any one volume is enough to show it."""
    _backed_up(root, backup)
    with open_store(root) as store:
        push(store, b"new", "new")
    _restore(backup, root)
    for slot in range(5):
        volume_dir(root, slot).rename(scratch / f"away{slot}")
    with open_store(root) as store:
        assert store.behind


def test_an_index_made_again_tells_as_well(root: Path, backup: Path) -> None:
    _backed_up(root, backup)
    with open_store(root) as store:
        push(store, b"new", "new")
    _restore(backup, root)
    for slot in range(6):
        shutil.rmtree(volume_dir(root, slot) / "index")
    with open_store(root) as store:
        assert store.behind


def test_what_was_deleted_and_collected_since_stays_deleted(root: Path, backup: Path) -> None:
    kept, gone, chain = _backed_up(root, backup)
    with open_store(root) as store:
        store.delete(gone.file_id, user_id=USER)
        store.delete(chain.file_id, user_id=USER)
        store.collect(grace_s=0)
    _restore(backup, root)
    with open_store(root) as store:
        assert store.behind
        store.rebuild()
        assert [one.filename for one in store.list_files(user_id=USER)] == ["kept"]
        assert get(store, kept) == DATA
        assert store.repair().complete
        assert store.scrub().clean


# -- older volumes ---------------------------------------------------------------------------------------


def _states(store: FileStorage) -> list[str]:
    return [volume.state for volume in store.stats().volumes]


def _set_back(root: Path, copies: Path, *slots: int) -> None:
    for slot in slots:
        lose(root, slot)
        _copy(copies / str(slot), volume_dir(root, slot))


@pytest.fixture
def aged(root: Path, scratch: Path) -> tuple[Path, Pushed]:
    """Make a store that went on after its volumes were copied: (copies, everything that was pushed)."""
    with open_store(root) as store:
        push(store, b"first", "first")
    copies = _copy(root / "volumes", scratch / "copies")
    with open_store(root) as store:
        return copies, push_many(store, [100, CHUNK, 5 * CHUNK])


@pytest.mark.parametrize("slots", [(0,), (0, 1), (2, 5)])
def test_older_volumes_wait_for_repair(root: Path, aged: tuple[Path, Pushed], slots: tuple[int, ...]) -> None:
    copies, pushed = aged
    _set_back(root, copies, *slots)
    with open_store(root) as store:
        assert [slot for slot, state in enumerate(_states(store)) if state == "incomplete"] == list(slots)
        assert store.stats().losses_survivable == 2 - len(slots)
        assert {damage.volume for damage in store.stats().recent_damage if damage.kind == "stale"} == set(slots)
        assert not store.behind
        check_all(store, pushed)
    with open_store(root) as store:
        assert _states(store).count("incomplete") == len(slots)
        assert store.repair().complete
        assert _states(store) == ["ok"] * 6
    lose(root, *[slot for slot in range(6) if slot not in slots][:2])
    with open_store(root) as store:
        check_all(store, pushed)


def test_a_volume_that_could_not_take_its_mark_is_no_older_one(root: Path) -> None:
    disk = FaultyDisk()
    with FileStorage.open(root, volume_options=VolumeOptions(filesystem=disk)) as store:
        disk.fail(errno.EMFILE, "create", only=volume_dir(root, 2).name, times=1)
        pushed = push_many(store, [100, CHUNK])
        disk.heal()
    for _ in range(2):
        with open_store(root) as store:
            assert _states(store) == ["ok"] * 6
            check_all(store, pushed)
            push(store, b"more", "more")


def test_a_copy_made_in_the_middle_of_a_repair(root: Path, scratch: Path) -> None:
    """The copy has the version committed last, but lacks what the repair made later."""
    with open_store(root) as store:
        pushed = push_many(store, [100, CHUNK, 5 * CHUNK])
    lose(root, 0)
    with open_store(root) as store:
        more = push(store, b"while it waits", "more")
    _copy(volume_dir(root, 0), scratch / "copies" / "0")
    with open_store(root) as store:
        assert store.repair().complete
    _set_back(root, scratch / "copies", 0)
    with open_store(root) as store:
        assert _states(store)[0] == "incomplete"
        assert store.repair().complete
    lose(root, 1, 2)
    with open_store(root) as store:
        check_all(store, pushed)
        assert get(store, more) == b"while it waits"


def test_the_volumes_of_a_twin(root: Path, scratch: Path) -> None:
    """A copy of the whole store that was used separately has the same ids and keys."""
    with open_store(root) as store:
        push(store, b"common", "common")
    twin = _copy(root, scratch / "twin")
    with open_store(root) as store:
        mine = push(store, DATA, "mine")
    with open_store(twin) as store:
        push(store, content(5, 3 * CHUNK), "theirs")
    _set_back(root, twin / "volumes", 0)
    with open_store(root) as store:
        assert _states(store)[0] == "incomplete"
        assert store.stats().behind  # the twin has commits that this store does not know
        assert store.stats().losses_survivable == 0
        assert get(store, mine) == DATA


def test_a_volume_as_it_was_left_is_no_older_one(root: Path) -> None:
    """Also after deletes and collects of the newest files, after repairs, and after crashes."""
    with open_store(root) as store:
        last = push(store, DATA, "last")
        store.delete(last.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert store.repair().complete
    with open_store(root) as store:
        assert (_states(store), store.behind) == (["ok"] * 6, False)


# -- stores made before there was any of this --------------------------------------------------------------


def test_an_old_store_goes_on(root: Path) -> None:
    _unpack_old(root)
    with open_store(root) as store:
        _check_old(store)
        assert (store.behind, _states(store)) == (False, ["ok"] * 3)
        push(store, b"new", "new")
        push(store, b"third", "a", "ada")
        assert store.scrub().clean
    lose_catalog(root)
    lose(root, 2)
    with open_store(root) as store:
        assert store.rebuild().skipped == []
        assert len(store.history(_find(store, "a", "ada").file_id, user_id="ada")) == 3
        assert get(store, _find(store, "b", "bob")) == bytes(range(256)) * 600


def test_an_old_store_that_lost_its_catalog(root: Path) -> None:
    _unpack_old(root)
    lose_catalog(root)
    with open_store(root) as store:
        assert store.rebuild().skipped == []
        _check_old(store)


def test_an_old_store_on_a_disk_that_takes_no_writes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The additional files of newer versions cannot be made there."""
    _unpack_old(root)
    opening = lmdb.open

    def read_only(path: str, **options: Any) -> lmdb.Environment:
        if not options["readonly"]:
            raise lmdb.Error("Read-only file system")
        return opening(path, **options)

    monkeypatch.setattr(lmdb, "open", read_only)
    with open_store(root) as store:
        _check_old(store)
        assert store.stats().files == 2
        with pytest.raises(StorageError):
            push(store, b"new")


def _unpack_old(root: Path) -> None:
    with tarfile.open(OLD_STORES / "format-1.tar.xz") as archive:
        archive.extractall(root.parent, filter="data")
    assert root.name == "store"


def _check_old(store: FileStorage) -> None:
    head = _find(store, "a", "ada")
    assert head.note == "longer"
    assert [get(store, one) for one in store.history(head.file_id, user_id="ada")] == [b"second " * 20, b"first"]
    assert get(store, _find(store, "b", "bob")) == bytes(range(256)) * 600
    assert store.find("gone", user_id="ada") is None


def _find(store: FileStorage, name: str, user: str) -> Version:
    found = store.find(name, user_id=user)
    assert found is not None
    return found


def test_a_repair_by_an_older_catalog_makes_no_volume_whole(root: Path, backup: Path) -> None:
    """An older catalog does not know everything that belongs on the volume."""
    _backed_up(root, backup)
    with open_store(root) as store:
        new = push(store, content(2, 2 * CHUNK), "new")
    _restore(backup, root)
    lose(root, 2)
    with open_store(root) as store:
        assert store.stats().behind
        assert store.repair().complete
        assert store.stats().volumes[2].state == "incomplete"
        store.rebuild()
        assert store.stats().volumes[2].state == "incomplete"
        assert store.repair().shards_rebuilt > 0
        assert store.stats().volumes[2].state == "ok"
        assert get(store, new) == content(2, 2 * CHUNK)
        assert store.scrub().clean


def test_a_volume_that_comes_back_as_an_older_copy_while_the_store_is_open(root: Path, scratch: Path) -> None:
    with open_store(root) as store:
        push(store, DATA, "before")
    older = _copy(volume_dir(root, 1), scratch / "older")
    with open_store(root) as store:
        push(store, content(3, 2 * CHUNK), "after")
        volume_dir(root, 1).rename(scratch / "away")
        store._volumes.check_present(at_once=True)
        assert store.stats().volumes[1].state == "offline"
        _copy(older, volume_dir(root, 1))
        assert store._volumes.reattach() == [1]
        assert store.stats().volumes[1].state == "incomplete"
        assert [damage.kind for damage in store.stats().recent_damage][-1] == "stale"
        assert store.repair().complete
        assert store.stats().volumes[1].state == "ok"
        assert store.scrub().clean


def test_a_full_disk_keeps_no_store_from_being_opened_and_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files must be accessible in order to delete some; the note that a volume waits for repair is written later."""
    with open_store(root) as store:
        version = push(store, DATA, "kept")
    lose(root, 1)

    def full(*_args: object) -> None:
        raise StoreFull("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("storage.catalog.transaction.RecordTransaction.keep_incomplete", full)
        with open_store(root) as store:
            assert get(store, version) == DATA
    with open_store(root) as store:
        assert store.stats().volumes[1].state == "incomplete"
        assert store.repair().complete


def test_what_goes_wrong_late_in_opening_leaves_nothing_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(root) as store:
        version = push(store, DATA, "kept")
    for late in ("storage.write.lineage.read_known", "storage.write.commit.GroupCommit.catch_up"):
        with monkeypatch.context() as patched:
            patched.setattr(late, _raise_damage)
            with pytest.raises(FormatError, match="damaged"):
                open_store(root)
        with open_store(root) as store:
            assert get(store, version) == DATA


def _raise_damage(*_args: object) -> None:
    raise FormatError("something is damaged")


def test_nothing_is_said_to_survive_while_the_catalog_is_behind(root: Path, backup: Path) -> None:
    """Files in the old catalog may have been deleted and collected; this does not make volumes count as old."""
    kept, gone, first = _backed_up(root, backup)
    with open_store(root) as store:
        for version in (gone, first):
            store.delete(version.file_id, user_id=USER)
        store.collect(grace_s=0)
    _restore(backup, root)
    with open_store(root) as store:
        stats = store.stats()
        assert (stats.behind, stats.losses_survivable) == (True, 0)
        assert not any("older copy" in damage.text for damage in stats.recent_damage)
        with pytest.raises(DataLossError):
            get(store, gone)
        store.rebuild()
        assert store.repair().complete
        stats = store.stats()
        assert (stats.files, stats.losses_survivable) == (1, 2)
        assert get(store, kept) == DATA


def test_whole_volumes_count_for_nothing_while_the_catalog_is_behind(root: Path, backup: Path) -> None:
    """Only a repair finds out whether the files in the old catalog were collected."""
    _backed_up(root, backup)
    with open_store(root) as store:
        push(store, b"new", "new")
    _restore(backup, root)
    with open_store(root) as store:
        assert store.behind
        assert store.stats().losses_survivable == 0
        assert store.survivable(lambda _profile: 2) == 0
        assert store.survivable(lambda _profile: -1) == -1
        assert store.survivable(lambda _profile: 2, verified=True) == 2
        store.rebuild()
        assert store.survivable(lambda _profile: 2) == 2


@pytest.mark.parametrize("document", ["store-secret", "catalog-behind", "volume-marks"])
def test_what_is_kept_to_tell_copies_by_can_be_damaged_and_made_again(root: Path, document: str) -> None:
    """Damage to it does not affect reads, and it is restored from the volumes."""
    with open_store(root) as store:
        version = push(store, DATA, "kept")
    catalog = LmdbCatalog(root / "catalog")
    secret = catalog.document("store-secret")
    catalog.save_document(document, b"\xc1 no such thing")
    catalog.close()
    with open_store(root) as store:
        assert get(store, version) == DATA
        if store.behind:
            with pytest.raises(CatalogBehind, match="run rebuild"):
                push(store, b"more", "more")
            assert store.rebuild().skipped == []
        more = push(store, b"more", "more")
    with open_store(root) as store:
        assert not store.behind
        assert (get(store, version), get(store, more)) == (DATA, b"more")
        assert store.repair().complete
        assert store.scrub().clean
        assert store._catalog.document("store-secret") == secret
