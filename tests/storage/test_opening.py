"""Opening: matching volumes are accepted, others refused, and everything derivable is made again."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage, FormatError, InvalidArgument, StoreLocked, StoreUnavailable, Version
from storage.shards.filesystem import LocalFileSystem
from tests.storage.helpers import (
    CHUNK,
    USER,
    check_all,
    flip,
    lose,
    lose_catalog,
    open_store,
    push,
    push_many,
    python_environment,
    segments,
    volume_dir,
)

SIZES = (0, 10, 3000, CHUNK + 1, 3 * CHUNK)
Pushed = dict[str, tuple[Version, bytes]]


@pytest.fixture
def pushed(root: Path) -> Pushed:
    """A closed 3-of-5 store with some files."""
    with open_store(root, k=3, n=5, segment_bytes_max=64 * 1024) as store:
        return push_many(store, SIZES)


def _whole(root: Path, pushed: Pushed) -> None:
    """Check that the store opens, has everything, and is in order."""
    with open_store(root, create=False) as store:
        assert not store.needs_rebuild
        check_all(store, pushed)
        assert store.scrub().clean
        assert [volume.state for volume in store.stats().volumes] == ["ok"] * 5


# -- a store and its settings -------------------------------------------------------------------------


def test_an_existing_store_keeps_its_settings(root: Path, pushed: Pushed) -> None:
    with FileStorage.open(root, profile=ErasureProfile(1, 2), chunk_size=1 << 20) as store:
        assert (store.profile, store.chunk_size) == (ErasureProfile(3, 5), CHUNK)
        assert store.volume_paths == [volume_dir(root, slot) for slot in range(5)]
        assert store.path == root
        check_all(store, pushed)


def test_no_store_there(scratch: Path) -> None:
    (scratch / "empty").mkdir()
    for path in (scratch / "absent", scratch / "empty"):
        with pytest.raises(InvalidArgument, match="no store"):
            FileStorage.open(path, create=False)
    assert not (scratch / "absent").exists()


@pytest.mark.parametrize("chunk_size", [0, -1, CHUNK - 1, (16 << 20) + 1])
def test_a_chunk_size_out_of_bounds(scratch: Path, chunk_size: int) -> None:
    with pytest.raises(InvalidArgument, match="chunk size"):
        FileStorage.open(scratch / "store", chunk_size=chunk_size)


def test_volumes_given_by_hand(scratch: Path) -> None:
    disks = [scratch / f"disk-{slot}" / "shards" for slot in range(4)]
    with open_store(scratch / "store", k=2, n=3, volumes=disks) as store:
        pushed = push_many(store, SIZES)
    assert all(segments(disk) for disk in disks)
    with open_store(scratch / "store") as store:  # the settings are remembered
        assert store.volume_paths == disks
        check_all(store, pushed)
    moved = [disk.rename(disk.parent / "moved") for disk in disks]
    with open_store(scratch / "store", volumes=moved) as store:
        check_all(store, pushed)
        assert store.scrub().clean
    with open_store(scratch / "store") as store:
        assert store.volume_paths == moved


def test_bad_lists_of_volumes(scratch: Path, root: Path, pushed: Pushed) -> None:
    with pytest.raises(InvalidArgument, match="name them all"):
        open_store(root, volumes=[volume_dir(root, slot) for slot in range(4)])
    with pytest.raises(InvalidArgument, match="two volumes"):
        open_store(scratch / "new", volumes=[scratch / "a", scratch / "a"])
    with pytest.raises(InvalidArgument, match="1 to 256"):
        open_store(scratch / "new", volumes=[])
    with pytest.raises(InvalidArgument, match="1 to 256"):
        open_store(scratch / "new", volumes=[scratch / str(slot) for slot in range(257)])
    _whole(root, pushed)


def test_a_store_can_be_moved(scratch: Path, root: Path, pushed: Pushed) -> None:
    root.rename(scratch / "moved")
    _whole(scratch / "moved", pushed)
    lose_catalog(scratch / "moved")
    with open_store(scratch / "moved") as store:
        store.rebuild()
        check_all(store, pushed)


# -- who has it open ----------------------------------------------------------------------------------

_OPEN = """
import sys
from storage import FileStorage, StoreLocked
try:
    FileStorage.open(sys.argv[1])
except StoreLocked as error:
    sys.exit(str(error))
"""


def test_one_process_at_a_time(store: FileStorage) -> None:
    command = [sys.executable, "-c", _OPEN, str(store.path)]
    child = subprocess.run(command, env=python_environment(), capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 1
    assert "is in use by process" in child.stderr
    version = push(store, b"still ours")
    assert store.get(version.file_id, user_id=USER) == b"still ours"


def test_one_opening_at_a_time(root: Path) -> None:
    with open_store(root), pytest.raises(StoreLocked):
        open_store(root)
    open_store(root).close()


def test_the_lock_of_a_dead_process_does_not_hold(root: Path) -> None:
    code = "import os, sys; from storage import FileStorage; FileStorage.open(sys.argv[1]); os._exit(0)"
    subprocess.run([sys.executable, "-c", code, str(root)], env=python_environment(), timeout=60, check=True)
    open_store(root).close()


def test_a_failed_opening_lets_go_of_the_lock(root: Path, pushed: Pushed) -> None:
    catalog = root / "catalog" / "data.mdb"
    kept = catalog.read_bytes()
    catalog.write_bytes(b"garbage" * 2000)
    with pytest.raises(FormatError):
        open_store(root)
    catalog.write_bytes(kept)
    _whole(root, pushed)


# -- volumes that do not belong -----------------------------------------------------------------------


def test_a_volume_of_another_store(scratch: Path, root: Path, pushed: Pushed) -> None:
    with open_store(scratch / "other", k=3, n=5) as other:
        push(other, b"other")
    volume_dir(root, 2).rename(scratch / "aside")
    shutil.copytree(volume_dir(scratch / "other", 2), volume_dir(root, 2))
    with pytest.raises(FormatError, match="another store"):
        open_store(root)
    shutil.rmtree(volume_dir(root, 2))
    (scratch / "aside").rename(volume_dir(root, 2))
    _whole(root, pushed)


def test_swapped_volumes(scratch: Path, root: Path, pushed: Pushed) -> None:
    def swap() -> None:
        volume_dir(root, 1).rename(scratch / "aside")
        volume_dir(root, 3).rename(volume_dir(root, 1))
        (scratch / "aside").rename(volume_dir(root, 3))

    swap()
    with pytest.raises(FormatError, match="back in order"):
        open_store(root)
    swap()
    _whole(root, pushed)


def test_a_volume_of_a_newer_format(root: Path, pushed: Pushed) -> None:
    file = volume_dir(root, 0) / "VOLUME"
    kept = file.read_bytes()
    file.write_text(json.dumps(json.loads(kept) | {"format": 2}))
    with pytest.raises(FormatError, match="upgrade"):
        open_store(root)
    file.write_bytes(kept)
    _whole(root, pushed)


def test_a_lost_volume_is_made_anew(root: Path, pushed: Pushed) -> None:
    lose(root, 1, 4)
    with open_store(root) as store:
        assert [volume.state for volume in store.stats().volumes] == ["ok", "incomplete", "ok", "ok", "incomplete"]
        assert store.stats().losses_survivable == 0
        check_all(store, pushed)
    with open_store(root) as store:  # the note persists
        assert store.stats().volumes[1].state == "incomplete"
        assert store.repair().complete
        assert store.stats().losses_survivable == 2
    _whole(root, pushed)


# -- what is derivable --------------------------------------------------------------------------------


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def _zeros_behind_the_first_pages(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:8192] + bytes(len(raw) - 8192))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, _garbage, _zeros_behind_the_first_pages, _empty])
def test_a_damaged_index_is_made_again(root: Path, pushed: Pushed, damage: Callable[[Path], object]) -> None:
    for slot in (0, 2):
        damage(volume_dir(root, slot) / "index" / "data.mdb")
    with open_store(root) as store:
        check_all(store, pushed)
        store.scrub()
        store.repair()
    _whole(root, pushed)


def test_all_indexes_lost(root: Path, pushed: Pushed) -> None:
    for slot in range(5):
        shutil.rmtree(volume_dir(root, slot) / "index")
    _whole(root, pushed)


def test_index_entries_that_point_elsewhere(root: Path, pushed: Pushed) -> None:
    """With rot in values, lookups lead to other records, which reads and scrub must notice."""
    with open_store(root) as store:
        ids = [chunk for version, _ in pushed.values() for chunk in store.chunk_ids(version.file_id, user_id=USER)]
    file = volume_dir(root, 0) / "index" / "data.mdb"
    raw = bytearray(file.read_bytes())
    hit = 0
    for chunk_id in ids:
        at = raw.find(chunk_id)
        while at >= 0:
            raw[at + 36 + 4] ^= 0x20  # 36 bytes of key, then segment and offset
            hit += 1
            at = raw.find(chunk_id, at + 1)
    assert hit >= len(ids)
    file.write_bytes(raw)
    with open_store(root) as store:
        check_all(store, pushed)
        store.wait_for_healing()
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
        check_all(store, pushed)


@pytest.mark.parametrize("text", [None, b"", b"{}", b"not json", b"\xff\xfe", b"[" * 100_000])
def test_a_lost_or_damaged_volume_file_is_made_up_for(root: Path, pushed: Pushed, text: bytes | None) -> None:
    for slot in range(5):
        file = volume_dir(root, slot) / "VOLUME"
        identity = json.loads(file.read_bytes())
        file.unlink() if text is None else file.write_bytes(text)
        _whole(root, pushed)
        assert json.loads(file.read_bytes()) == identity


def test_a_volume_that_nothing_tells_of_is_refused(root: Path, pushed: Pushed) -> None:
    """Neither VOLUME nor any segment identifies it, so it must not be overwritten."""
    (volume_dir(root, 0) / "VOLUME").unlink()
    for segment in segments(volume_dir(root, 0)):
        flip(segment, 70)
    with pytest.raises(FormatError, match="move the directory away"):
        open_store(root)
    volume_dir(root, 0).rename(root / "aside")
    with open_store(root) as store:
        assert store.repair().complete
    _whole(root, pushed)


def test_rot_in_segment_headers(root: Path, pushed: Pushed) -> None:
    for segment in segments(volume_dir(root, 0)):
        flip(segment, 5)
        flip(segment, 100)
    _whole(root, pushed)
    shutil.rmtree(volume_dir(root, 0) / "index")
    _whole(root, pushed)


@pytest.mark.parametrize("cut", [1, 97, 1000, 70_000])
def test_a_segment_cut_short(root: Path, pushed: Pushed, cut: int) -> None:
    last = segments(volume_dir(root, 2))[-1]
    with last.open("r+b") as stream:
        stream.truncate(max(0, last.stat().st_size - cut))
    with open_store(root) as store:
        check_all(store, pushed)
        more = push_many(store, [5000] * 3)
        store.collect()
        assert store.repair().complete
        assert store.scrub().clean
        check_all(store, pushed | {f"more {name}": file for name, file in more.items() if name not in pushed})


def test_a_segment_removed(root: Path, pushed: Pushed) -> None:
    segments(volume_dir(root, 3))[0].unlink()
    with open_store(root) as store:
        check_all(store, pushed)
        store.collect()
        assert store.repair().complete
    _whole(root, pushed)


def test_files_that_do_not_belong(root: Path, pushed: Pushed) -> None:
    for name in ("README", "lost+found.seg", "x.seg", "VOLUME.new"):
        (volume_dir(root, 1) / name).write_bytes(b"whatever")
    (root / "volumes" / "notes").mkdir()
    _whole(root, pushed)
    lose_catalog(root)
    (root / "STORE").unlink()
    with open_store(root) as store:
        store.rebuild()
        check_all(store, pushed)


def test_an_opening_cut_short_before_anything_was_stored(root: Path) -> None:
    """Volumes were made but not the catalog: the store opens as a new one."""
    open_store(root, k=3, n=5).close()
    lose_catalog(root)
    with open_store(root, k=3, n=5) as store:
        assert not store.needs_rebuild
        pushed = push_many(store, SIZES)
    _whole(root, pushed)


# -- a store that is known, and whose parts are not there -----------------------------------------------


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("mount_points", [False, True])
def test_a_known_store_is_not_begun_anew_beside_volumes_that_are_mounted_late(
    scratch: Path, named: bool, mount_points: bool
) -> None:
    root, disks = scratch / "store", [scratch / f"disk-{slot}" for slot in range(5)]
    with open_store(root, k=3, n=5, volumes=disks) as store:
        pushed = push_many(store, SIZES)
    lose_catalog(root)
    for disk in disks:
        disk.rename(scratch / f"unmounted {disk.name}")
        if mount_points:
            disk.mkdir()
    for create in (True, False, True):
        with pytest.raises(StoreUnavailable, match=r"no volume in .*disk-0, .*disk-4 to rebuild it from: mount"):
            open_store(root, volumes=disks if named else None, create=create)
    for disk in disks:
        assert not mount_points or list(disk.iterdir()) == []
        shutil.rmtree(disk, ignore_errors=True)
        (scratch / f"unmounted {disk.name}").rename(disk)
    with open_store(root, volumes=disks if named else None) as store:
        assert store.needs_rebuild
        store.rebuild()
        check_all(store, pushed)


def test_a_known_store_can_be_given_up(root: Path, pushed: Pushed) -> None:
    lose_catalog(root)
    lose(root, *range(5))
    with pytest.raises(StoreUnavailable, match=r"to begin a new store in place of this one, remove .*STORE"):
        open_store(root)
    (root / "STORE").unlink()
    with open_store(root) as store:
        check_all(store, push_many(store, SIZES))
        assert len(store.list_files(user_id=USER)) == len(SIZES)


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_store_is_not_begun_anew_beside_what_cannot_be_looked_into(
    root: Path, pushed: Pushed, number: int, remembered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_catalog(root)
    if not remembered:
        (root / "STORE").unlink()

    def refuse(_filesystem: LocalFileSystem, path: Path) -> list[str]:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "names", refuse)
        with pytest.raises(StoreUnavailable, match="cannot be read now"):
            open_store(root)
    with open_store(root) as store:
        store.rebuild()
        check_all(store, pushed)


def test_the_file_that_remembers_a_store_is_made_again(
    root: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_filesystem: LocalFileSystem, path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    disks = [scratch / f"disk-{slot}" for slot in range(6)]
    open_store(root, volumes=disks).close()
    (root / "STORE").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "write_whole", refuse)
        open_store(root).close()
    assert not (root / "STORE").exists()
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    lose_catalog(root)
    with open_store(root) as store:
        assert store.needs_rebuild
        store.rebuild()
        check_all(store, pushed)
