"""A full volume is handled like an offline one: writes avoid it, reads use it, and a repair completes it later."""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import ErasureProfile, FileStorage, InsufficientWorkers, StoreFull, Version
from storage.fleet.volumes import VolumeOptions
from storage.limits import MIB
from storage.runtime import Runtime
from storage.shards.filesystem import Space
from tests.storage.faulty_disk import FaultyDisk
from tests.storage.helpers import (
    CHUNK,
    PutForward,
    check_all,
    content,
    copy_store,
    diff_of,
    digest,
    get,
    lose,
    open_store,
    push,
    push_many,
    volume_dir,
)

WRITING = ("create", "write", "write_whole")
SIZES = (10, CHUNK, 3 * CHUNK)
Pushed = dict[str, tuple[Version, bytes]]


class SmallDisk(FaultyDisk):
    """A disk whose volumes may have no space, as reported by the file system or found by writes."""

    def __init__(self) -> None:
        super().__init__()
        self.free: dict[str, int] = {}
        self.shared: int | None = None  # bytes that all volumes share

    def space(self, path: Path) -> Space:
        """See :class:`storage.shards.filesystem.FileSystem`."""
        self.check("space", path)
        if self.shared is not None:
            used = sum(each.stat().st_size for each in path.parent.glob("*/*.seg"))
            return Space(100 * MIB, self.shared - used)
        return Space(100 * MIB, self.free.get(path.name, 4 * MIB + CHUNK))  # 4 MiB of it are reserved


@pytest.fixture
def disk() -> SmallDisk:
    return SmallDisk()


Fill = Callable[[SmallDisk, int], None]


def by_space(disk: SmallDisk, slot: int) -> None:
    """The volume's file system reports no space."""
    disk.free[str(slot)] = 4 * MIB


def by_quota(disk: SmallDisk, slot: int) -> None:
    """Writes find no space, although the file system reports some."""
    disk.fail(errno.EDQUOT, *WRITING, only=str(slot))


def by_read_only(disk: SmallDisk, slot: int) -> None:
    """The volume has become read-only."""
    disk.fail(errno.EROFS, *WRITING, "open_writable", "truncate", "remove", only=str(slot))


def by_memory(disk: SmallDisk, slot: int) -> None:
    """The machine has too little memory."""
    disk.fail(errno.ENOMEM, *WRITING, only=str(slot))


filled = pytest.mark.parametrize("fill", [by_space, by_quota])
unwritable = pytest.mark.parametrize("fill", [by_space, by_quota, by_read_only])


def open_on(root: Path, disk: SmallDisk, k: int = 2, n: int = 4, runtime: Runtime | None = None) -> FileStorage:
    """Open a store whose volumes begin a segment for every chunk or two."""
    options = VolumeOptions(filesystem=disk, segment_bytes_max=CHUNK)
    return open_store(root, k=k, n=n, volume_options=options, runtime=runtime)


def well(disk: SmallDisk) -> None:
    disk.heal()
    disk.free.clear()


def states(store: FileStorage) -> list[str]:
    return [volume.state for volume in store.stats().volumes]


def look_again(store: FileStorage) -> None:
    """Check now what is otherwise checked once a second."""
    store._volumes.check_present(at_once=True)


def mended(store: FileStorage, pushed: Pushed) -> None:
    """Check that a repair makes what was not written, so that the store counts as complete."""
    look_again(store)
    assert store.repair().complete
    assert states(store) == ["ok"] * 4
    assert store.scrub().clean
    assert store.stats().losses_survivable == 2
    check_all(store, pushed)


@unwritable
def test_pushes_go_on_without_a_volume_that_takes_no_writes(root: Path, disk: SmallDisk, fill: Fill) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, SIZES)
        fill(disk, 1)
        for number in range(3):
            data = content(70 + number, (number + 1) * CHUNK + 10)
            pushed[f"new{number}"] = push(store, data, f"new{number}"), data
        check_all(store, pushed)
        stats = store.stats()
        assert [volume.state for volume in stats.volumes] == ["ok", "incomplete", "ok", "ok"]
        assert [volume.takes_no_writes for volume in stats.volumes] == [False, True, False, False]
        assert str(volume_dir(root, 1)) in stats.volumes[1].cause
        assert stats.losses_survivable == 1
        report = store.repair()
        assert not report.complete
        assert [str(volume_dir(root, 1)) in why for why in report.unwritable] == [True]
        assert store.stats().losses_survivable == 1
        well(disk)
        if fill is not by_read_only:  # a read-only volume is tried again after a pause
            data = content(80, 10)
            pushed["after"] = push(store, data, "after"), data
            mended(store, pushed)
    if fill is not by_read_only:
        lose(root, 0, 2)
        with open_store(root) as store:
            check_all(store, pushed)


@filled
def test_a_volume_that_was_full_takes_part_again_by_itself(root: Path, disk: SmallDisk, fill: Fill) -> None:
    with open_on(root, disk) as store:
        fill(disk, 1)
        first = push(store, content(1, CHUNK), "first")
        well(disk)
        before = store.stats().volumes[1].shards
        second = push(store, content(2, CHUNK), "second")
        assert store.stats().volumes[1].shards > before
        mended(store, {"first": (first, content(1, CHUNK)), "second": (second, content(2, CHUNK))})


@filled
@pytest.mark.parametrize("size", [CHUNK - 1, 2 * CHUNK], ids=["small", "large"])
def test_room_is_seen_though_nothing_is_written(root: Path, disk: SmallDisk, fill: Fill, size: int) -> None:
    """Also if all volumes were full, when the reported free space is no indication."""
    clocks = PutForward()
    with open_on(root, disk, runtime=clocks) as store:
        push(store, content(1, size), "first")
        for slot in range(4):
            fill(disk, slot)
        if fill is by_quota:
            disk.only = ""
        with pytest.raises(StoreFull):
            push(store, content(2, CHUNK), "second")
        look_again(store)
        assert states(store) == ["full"] * 4
        well(disk)
        look_again(store)
        clocks.ahead_s += 10.0
        look_again(store)
        assert states(store) == ["ok"] * 4
        assert not any(volume.cause for volume in store.stats().volumes)
        second = push(store, content(2, CHUNK), "second")
    with open_on(root, disk) as store:
        assert get(store, second) == content(2, CHUNK)
        assert store.scrub().clean


@filled
def test_it_is_said_once(root: Path, disk: SmallDisk, fill: Fill, caplog: pytest.LogCaptureFixture) -> None:
    with open_on(root, disk) as store:
        push(store, content(1, CHUNK), "first")
        fill(disk, 1)
        with caplog.at_level(logging.WARNING, logger="storage"):  # a benchmark may have changed it
            for number in range(5):
                push(store, content(10 + number, 2 * CHUNK), f"new{number}")
                look_again(store)
        assert [str(volume_dir(root, 1)) in record.getMessage() for record in caplog.records] == [True]
        assert [damage.kind for damage in store.stats().recent_damage] == ["full"]


@filled
@pytest.mark.parametrize("size", [CHUNK - 1, 5 * CHUNK], ids=["small", "large"])
def test_more_full_volumes_than_can_be_borne(root: Path, disk: SmallDisk, fill: Fill, size: int) -> None:
    """The push is refused, with the directories and how to free space in its text, and leaves nothing behind."""
    with open_on(root, disk, 3, 4) as store:
        pushed = push_many(store, SIZES)
        fill(disk, 1)
        for _ in range(2):
            with pytest.raises(StoreFull, match="delete files and run collect, or add room to") as raised:
                push(store, content(5, size), "new")
            named = str(raised.value).partition("add room to ")[2]
            assert named == f"{volume_dir(root, 1)}, then try again"
        assert store.find("new", user_id="ada") is None
        assert "incomplete" not in states(store)
        assert store.stats().losses_survivable == 1
        check_all(store, pushed)
        well(disk)
        look_again(store)
        used = sum(volume.bytes_live for volume in store.stats().volumes)
        store.collect(grace_s=0)
        assert sum(volume.bytes_live for volume in store.stats().volumes) <= used
        pushed["new"] = push(store, content(5, size), "new"), content(5, size)
        check_all(store, pushed)
        assert store.scrub().clean


@pytest.mark.parametrize("step", range(2, 11, 2))
def test_volumes_that_share_a_full_disk_take_all_of_a_push_or_nothing(root: Path, disk: SmallDisk, step: int) -> None:
    """Wherever the space ends within a push, the store is full, and nothing is stored less safely."""
    with open_on(root, disk) as store:
        push(store, content(1, CHUNK), "first")
    used = sum(segment.stat().st_size for segment in root.glob("volumes/*/*.seg"))
    disk.shared = 4 * MIB + used + step * (CHUNK // 4)
    with open_on(root, disk) as store:
        with pytest.raises(StoreFull, match="4 of 4 volumes"):
            push_many(store, [CHUNK - 1] * 5)
        assert "incomplete" not in states(store)
        assert store.scrub().missing == 0
        assert store.stats().losses_survivable == 2


def test_full_and_offline_volumes_count_together(root: Path, disk: SmallDisk) -> None:
    with open_on(root, disk) as store:
        push(store, content(1, CHUNK), "first")
        volume_dir(root, 2).rename(root / "away")
        look_again(store)
        push(store, content(2, CHUNK), "second")
        by_space(disk, 1)
        with pytest.raises(StoreFull, match="and bring the others back, then try again"):
            push(store, content(3, CHUNK), "third")
        well(disk)
        push(store, content(3, CHUNK), "third")


def test_volumes_that_are_full_one_after_another(root: Path, disk: SmallDisk) -> None:
    """Each push tolerates one full volume; how many losses all files survive depends on all incomplete volumes."""
    with open_on(root, disk) as store:
        first = push(store, content(1, CHUNK), "first")
        by_space(disk, 1)
        second = push(store, content(2, CHUNK), "second")
        well(disk)
        by_space(disk, 2)
        third = push(store, content(3, CHUNK), "third")
        assert store.stats().losses_survivable == 0
        well(disk)
        pushed = {"1": (first, content(1, CHUNK)), "2": (second, content(2, CHUNK)), "3": (third, content(3, CHUNK))}
        mended(store, pushed)


@unwritable
def test_a_volume_that_becomes_full_during_a_large_push(root: Path, disk: SmallDisk, fill: Fill) -> None:
    data = content(1, 9 * CHUNK + 100)
    with open_on(root, disk) as store:
        push(store, content(9, CHUNK), "before")
        upload = store.upload(filename="large", user_id="ada")
        upload.write(data[: 4 * CHUNK])
        fill(disk, 1)
        upload.write(data[4 * CHUNK :])
        version = upload.commit()
        assert get(store, version) == data
        assert states(store)[1] == "incomplete"
        assert store.stats().losses_survivable == 1
        copied = copy_store(root, root.with_name("copied"))
    lose(copied, 0)
    with open_store(copied) as store:
        assert get(store, version) == data


@filled
def test_an_upload_that_cannot_be_committed_fails_early(root: Path, disk: SmallDisk, fill: Fill) -> None:
    with open_on(root, disk, 3, 4) as store:
        upload = store.upload(filename="large", user_id="ada")
        fill(disk, 1)
        with pytest.raises(StoreFull, match=re.escape(str(volume_dir(root, 1)))):
            upload.write(b"".join(content(number, CHUNK) for number in range(100)))
        assert store.stats().stored_bytes < 50 * CHUNK
        upload.abort(keep_chunks=False)
        assert "incomplete" not in states(store)


def crashed(root: Path, name: str) -> Path:
    """Copy the store as a process that is killed now would leave it."""
    return copy_store(root, root.with_name(name))


@pytest.mark.parametrize("fill", [by_space, by_quota, by_read_only, by_memory])
def test_a_crash_does_not_hide_what_a_volume_lacks(root: Path, disk: SmallDisk, fill: Fill) -> None:
    """Also if the volume has taken later pushes, so that it has the newest version."""
    with open_on(root, disk) as store:
        push(store, content(1, CHUNK), "first")
        fill(disk, 1)
        version = push(store, content(2, 3 * CHUNK), "second")
        well(disk)
        if fill is not by_read_only:
            push(store, content(3, 10), "third")
        copied = crashed(root, "crashed")
    with open_store(copied) as store:
        assert states(store)[1] == "incomplete"
        assert store.stats().losses_survivable == 1
        assert store.repair().complete
        assert store.stats().losses_survivable == 2
        again = crashed(copied, "again")
    lose(again, 0, 2)
    with open_store(again) as store:
        assert get(store, version) == content(2, 3 * CHUNK)


@filled
def test_deleting_and_collecting_go_on(root: Path, disk: SmallDisk, fill: Fill) -> None:
    """They also work on the full volume, which then takes new data again."""
    with open_on(root, disk) as store:
        pushed = push_many(store, SIZES)
        fill(disk, 1)
        data = content(4, 2 * CHUNK)
        new = push(store, data, "new")
        used = store.stats().volumes[1].bytes_used
        for version, _ in pushed.values():
            store.delete(version.file_id, user_id="ada")
        if fill is by_quota:
            disk.heal()  # a quota has room as soon as something is deleted
        store.collect(grace_s=0)
        assert store.stats().volumes[1].bytes_used < used
        assert get(store, new) == data
        well(disk)
        kept = {"new": (new, data)}
        mended(store, kept)
    lose(root, 0, 2)
    with open_store(root) as store:
        check_all(store, kept)


@pytest.mark.parametrize("slots", [(1,), (0, 1, 2, 3)], ids=["one", "all"])
def test_files_can_be_deleted_however_many_volumes_are_full(
    root: Path, disk: SmallDisk, slots: tuple[int, ...]
) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, SIZES)
        disk.fail(errno.ENOSPC, *WRITING, only=str(slots[0]) if len(slots) == 1 else "")
        store.delete(pushed["f0"][0].file_id, user_id="ada")
        if len(slots) > 1:
            assert states(store) != ["incomplete"] * 4, "what no volume has is still in the catalog"
        disk.heal()
        del pushed["f0"]
    (root / "catalog").rename(root / "gone")
    with open_on(root, disk) as store:
        if len(slots) == 1:
            store.rebuild()
            assert {file.filename for file in store.list_files(user_id="ada")} == set(pushed)


@pytest.mark.parametrize("full", [1, 3])
def test_chunks_are_reused_and_pushes_resumed(root: Path, disk: SmallDisk, full: int) -> None:
    """Content on enough volumes need not be sent; missing shards are made, or count as missing if they cannot be."""
    chunks = [content(20 + number, CHUNK) for number in range(3)]
    names = [digest(chunk) for chunk in chunks]
    with open_on(root, disk) as store:
        by_space(disk, full)
        first = store.upload(filename="large", user_id="ada")
        for chunk in chunks:
            first.write(chunk)
        first.abort(keep_chunks=True)
        assert store.missing_chunks(names, user_id="ada") == [False] * 3
        assert store.missing_chunks(names, user_id="bob") == [True] * 3
        second = store.upload(filename="large", user_id="ada")
        second.reuse(names)
        version = second.commit()
        assert states(store)[full] == "incomplete"
        assert store.stats().losses_survivable == 1
        well(disk)
        third = store.upload(filename="again", user_id="ada")
        third.reuse(names)
        again = third.commit()
        pushed = {"large": (version, b"".join(chunks)), "again": (again, b"".join(chunks))}
        mended(store, pushed)


def test_a_staged_chunk_that_a_full_volume_lacks_can_be_named_by_a_revision(root: Path, disk: SmallDisk) -> None:
    data, new = content(1, 3 * CHUNK), content(2, CHUNK)
    with open_on(root, disk) as store:
        base = push(store, data, "file")
        by_space(disk, 1)
        staged = store.upload(filename="file", user_id="ada")
        staged.write(new)
        staged.claim()
        well(disk)
        by_space(disk, 1)
        with suppress(StoreFull):
            push(store, content(3, 10), "other")  # the store notices it again
        diff = diff_of(base, len(data), [(1, digest(new), None)])
        revised = store.revise(base.file_id, diff, user_id="ada")
        staged.abort(keep_chunks=False)
        assert get(store, revised) == data[:CHUNK] + new + data[2 * CHUNK :]
        assert states(store)[1] == "incomplete"
        well(disk)
        mended(store, {"file": (revised, data[:CHUNK] + new + data[2 * CHUNK :])})


def test_the_profile_decides_what_is_bearable(root: Path, disk: SmallDisk) -> None:
    """A push that tolerates fewer losses fails alone."""
    with open_on(root, disk) as store:
        by_quota(disk, 1)
        push(store, content(1, CHUNK), "borne")
        with pytest.raises(StoreFull):
            store.push(content(2, CHUNK), filename="not borne", user_id="ada", profile=ErasureProfile(3, 4))
        push(store, content(3, CHUNK), "borne, too")


def test_commits_that_do_not_bear_it_do_not_fail_the_others_with_them(
    root: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, go = threading.Event(), threading.Event()
    with open_on(root, disk) as store, ThreadPoolExecutor(3) as pool:
        append_and_sync = store._volumes.append_and_sync

        def held_up(*arguments: Any) -> None:
            waiting.set()
            assert go.wait(20)
            monkeypatch.undo()
            append_and_sync(*arguments)

        monkeypatch.setattr(store._volumes, "append_and_sync", held_up)
        ahead = pool.submit(push, store, content(1, 10), "ahead")
        assert waiting.wait(20)
        by_quota(disk, 1)
        profiles = {"borne": ErasureProfile(2, 4), "not borne": ErasureProfile(3, 4)}
        behind = {
            name: pool.submit(store.push, content(2, 10), filename=name, user_id="ada", profile=profile)
            for name, profile in profiles.items()
        }
        until_s = time.monotonic() + 20
        while len(store._context.commits._queue) < 2 and time.monotonic() < until_s:
            time.sleep(0.01)
        go.set()
        assert get(store, ahead.result(20)) == content(1, 10)
        assert get(store, behind["borne"].result(20)) == content(2, 10)
        with pytest.raises(StoreFull):
            behind["not borne"].result(20)


@filled
def test_a_store_with_a_full_volume_is_opened(root: Path, disk: SmallDisk, fill: Fill) -> None:
    """Also if its index, or the volume itself, has to be made again."""
    with open_on(root, disk) as store:
        pushed = push_many(store, SIZES)
    fill(disk, 1)
    with open_on(root, disk) as store:
        check_all(store, pushed)
        pushed["new"] = push(store, content(5, CHUNK), "new"), content(5, CHUNK)
    lose(root, 1)
    with open_on(root, disk) as store:
        check_all(store, pushed)
        pushed["newer"] = push(store, content(6, CHUNK), "newer"), content(6, CHUNK)
        assert store.stats().losses_survivable == 1
        well(disk)
        store.repair()
        mended(store, pushed)


def test_repair_makes_what_others_lack_though_one_is_full(root: Path, disk: SmallDisk) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, SIZES)
        by_space(disk, 1)
        pushed["new"] = push(store, content(5, CHUNK), "new"), content(5, CHUNK)
    lose(root, 2)
    with open_on(root, disk) as store:
        assert not store.repair().complete
        assert states(store) == ["ok", "incomplete", "ok", "ok"]
        assert store.stats().losses_survivable == 1
        check_all(store, pushed)


def test_read_only_volumes_are_no_full_ones(root: Path, disk: SmallDisk) -> None:
    with open_on(root, disk, 3, 4) as store:
        push(store, content(1, CHUNK), "first")
        by_read_only(disk, 1)
        with pytest.raises(InsufficientWorkers, match="Read-only file system"):
            push(store, content(2, CHUNK), "second")
