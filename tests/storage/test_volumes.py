"""Volumes that disappear while the store is open: reads continue, writes continue while safe, repair restores."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import (
    DataLossError,
    FileStorage,
    FormatError,
    InsufficientWorkers,
    InvalidArgument,
    ShardsUnavailable,
    Version,
)
from storage.keys import Kind, shard_key, stripe_key
from storage.reports import RepairState
from storage.shards import LocalVolume, Shard
from storage.shards.identity import VolumeIdentity
from storage.system.flushing import ThreadFlusher
from tests.storage.helpers import (
    CHUNK,
    USER,
    PutForward,
    check_all,
    content,
    digest,
    get,
    lose,
    open_store,
    push,
    push_many,
    records,
    volume_dir,
)

SIZES = (10, 3000, CHUNK + 1, 3 * CHUNK)
Pushed = dict[str, tuple[Version, bytes]]


def _states(store: FileStorage) -> list[str]:
    return [volume.state for volume in store.stats().volumes]


def _notice(store: FileStorage) -> None:
    """Let the store check now whether its directories exist, which it does at most once a second."""
    store._volumes.check_present(at_once=True)


@pytest.fixture
def pushed(store: FileStorage) -> Pushed:
    return push_many(store, SIZES)


def test_a_directory_removed_while_open(root: Path, store: FileStorage, pushed: Pushed) -> None:
    lose(root, 2)
    _notice(store)
    assert _states(store) == ["ok", "ok", "offline", "ok", "ok", "ok"]
    assert store.stats().losses_survivable == 1
    assert store.stats().recent_damage[-1].kind == "offline"
    check_all(store, pushed)
    more = push(store, content(9, 2 * CHUNK), "more")  # 5 of 6 shards: one more loss is survived
    assert get(store, more) == content(9, 2 * CHUNK)
    assert store.scrub().missing > 0
    assert store.repair().complete
    assert _states(store) == ["ok"] * 6
    assert store.scrub().clean
    assert records(volume_dir(root, 2))
    check_all(store, pushed)


@pytest.mark.parametrize("lost", [2, 3])
def test_pushes_are_refused_when_one_more_loss_would_be_too_many(
    root: Path, store: FileStorage, pushed: Pushed, lost: int
) -> None:
    lose(root, *range(lost))
    _notice(store)
    before = store.stats().stored_bytes
    for data in (b"small", content(9, 3 * CHUNK)):
        with pytest.raises(InsufficientWorkers, match="would not survive one more loss"):
            push(store, data, "new")
    version, data = pushed["f2"]
    diff = store.diff(version.file_id, b"x", user_id=USER) if lost == 2 else None
    if diff is not None:
        with pytest.raises(InsufficientWorkers):
            store.revise(version.file_id, diff, user_id=USER)
        check_all(store, pushed)
    assert store.find("new", user_id=USER) is None
    assert store.stats().stored_bytes == before
    if lost == 3:
        # Volumes that were taken away may come back, so they do not count as lost.
        with pytest.raises(ShardsUnavailable, match="volumes/0"):
            get(store, version)
    assert data


def test_refusal_depends_on_the_profile(root: Path, store: FileStorage) -> None:
    from storage import ErasureProfile

    lose(root, 0, 1, 2)
    _notice(store)
    version = store.push(b"x" * CHUNK, filename="f", user_id=USER, profile=ErasureProfile(2, 6))
    assert get(store, version) == b"x" * CHUNK


@pytest.mark.parametrize(
    "work",
    [
        FileStorage.stats,
        FileStorage.scrub,
        FileStorage.collect,
        FileStorage.repair,
        lambda store: push(store, b"small", "new"),
        lambda store: push(store, content(9, 5 * CHUNK), "new"),
        lambda store: push(store, content(9, 5 << 20), "new"),
    ],
    ids=["stats", "scrub", "collect", "repair", "small push", "push", "large push"],
)
def test_whatever_meets_the_removal_first(
    root: Path, store: FileStorage, pushed: Pushed, work: Callable[[FileStorage], object]
) -> None:
    """Before the store has noticed, no call fails."""
    store.stats()  # just looked
    doomed, _ = pushed.pop("f1")
    store.delete(doomed.file_id, user_id=USER)
    lose(root, 4)
    work(store)
    check_all(store, pushed)
    store.repair()
    assert _states(store) == ["ok"] * 6
    assert store.scrub().clean
    check_all(store, pushed)


def test_a_volume_that_comes_back_as_it_was(root: Path, scratch: Path, store: FileStorage, pushed: Pushed) -> None:
    """It lacks what was written meanwhile, and still has what was deleted; both are fixed."""
    volume_dir(root, 1).rename(scratch / "unplugged")
    _notice(store)
    pushed |= {"later": (push(store, content(7, CHUNK), "later"), content(7, CHUNK))}
    doomed, _ = pushed.pop("f0")
    store.delete(doomed.file_id, user_id=USER)
    store.collect(grace_s=0)
    (scratch / "unplugged").rename(volume_dir(root, 1))
    check_all(store, pushed)
    report = store.repair()
    assert report.complete
    assert report.shards_rebuilt > 0
    assert store.scrub().clean
    store.collect(grace_s=0)
    shards = [volume.shards for volume in store.stats().volumes]
    assert len(set(shards)) == 1


def test_somebody_elses_volume_is_not_taken_in(root: Path, scratch: Path, store: FileStorage, pushed: Pushed) -> None:
    lose(root, 1)
    _notice(store)
    with open_store(scratch / "other") as other:
        push(other, b"x")
    shutil.copytree(volume_dir(scratch / "other", 1), volume_dir(root, 1))
    with pytest.raises(FormatError, match="another store"):
        store.repair()
    check_all(store, pushed)
    shutil.rmtree(volume_dir(root, 1))
    assert store.repair().complete
    assert store.scrub().clean


def test_all_volumes_gone(root: Path, store: FileStorage, pushed: Pushed) -> None:
    lose(root, *range(6))
    _notice(store)
    assert _states(store) == ["offline"] * 6
    version, _ = pushed["f0"]
    with pytest.raises(ShardsUnavailable):
        get(store, version)
    with pytest.raises(InsufficientWorkers):
        push(store, b"x", "new")
    assert [listed.filename for listed in store.list_files(user_id=USER)] == list(pushed)


def test_fewer_volumes_than_shards(scratch: Path) -> None:
    """4-of-6 on three volumes with two shards each: one volume may be lost."""
    root, disks = scratch / "store", [scratch / str(slot) for slot in range(3)]
    with open_store(root, volumes=disks) as store:
        pushed = push_many(store, SIZES)
        assert store.stats().losses_survivable == 1
    shutil.rmtree(disks[1])
    with open_store(root, volumes=disks) as store:
        check_all(store, pushed)
        assert store.stats().losses_survivable == 0
        assert store.repair().complete
        assert store.scrub().clean
    shutil.rmtree(disks[2])
    shutil.rmtree(disks[0])
    with open_store(root, volumes=disks) as store:
        version, _ = pushed["f1"]
        with pytest.raises(ShardsUnavailable, match="mount its disk, or run repair to create a new one"):
            get(store, version)  # only the operator knows that these disks are not just unmounted
        assert not store.repair().complete
        with pytest.raises(DataLossError):
            get(store, version)


def test_more_volumes_than_shards(scratch: Path) -> None:
    """2-of-3 on eight volumes: any volume may be lost, and most shards are not on it."""
    root, disks = scratch / "store", [scratch / str(slot) for slot in range(8)]
    with open_store(root, k=2, n=3, volumes=disks) as store:
        pushed = push_many(store, [CHUNK] * 40)
        assert min(volume.shards for volume in store.stats().volumes) > 0
    shutil.rmtree(disks[random.Random(1).randrange(8)])
    with open_store(root, k=2, n=3, volumes=disks) as store:
        check_all(store, pushed)
        assert store.repair().complete
        assert store.scrub().clean


def test_repair_can_be_interrupted_and_repeated(root: Path) -> None:
    with open_store(root) as store:
        pushed = push_many(store, [100] * 300)
    lose(root, 0)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_store(root) as store:
        with pytest.raises(KeyboardInterrupt):
            store.repair(progress=stop)
        assert _states(store)[0] == "incomplete"
        check_all(store, pushed)
        first = store.repair()
        assert first.complete
        assert 0 < first.shards_rebuilt <= 600
        assert store.repair().shards_rebuilt == 0
        assert store.scrub().clean


def test_statistics(root: Path, store: FileStorage, pushed: Pushed) -> None:
    push(store, content(50, 20), "f0")
    stats = store.stats()
    assert (stats.files, stats.versions) == (4, 5)
    assert stats.logical_bytes == sum(SIZES) + 10
    assert stats.stored_bytes == sum(volume.bytes_used for volume in stats.volumes)
    assert stats.accelerator in {"isa-l", "zfec"}
    assert stats.losses_survivable == 2
    assert not stats.needs_rebuild
    for volume in stats.volumes:
        assert volume.bytes_live <= volume.bytes_used
        assert volume.bytes_free > 0
        assert volume.path == volume_dir(root, volume.slot)
        assert volume.segments == 1
    for version, _ in pushed.values():
        store.delete(version.file_id, user_id=USER)
    store.collect(grace_s=0)
    assert (store.stats().files, store.stats().versions, store.stats().logical_bytes) == (0, 0, 0)


def test_only_the_shard_found_bad_is_discarded(scratch: Path) -> None:
    """Between finding a shard bad and discarding it, it may have been removed and written again."""
    identity = VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key="1" * 64)
    volume = LocalVolume(scratch, identity)
    shard = Shard(shard_key(stripe_key(Kind.CHUNK, bytes(32), 1, 1), 0), 1, digest(b"x"), b"x")
    volume.append([shard])
    first = volume.locate(shard.key)
    assert first is not None
    volume.remove([shard.key])
    volume.append([shard])
    assert not volume.discard(shard.key, first)
    second = volume.locate(shard.key)
    assert second is not None
    assert not volume.discard(shard.key, second), "it reads well, and nobody has proved it wrong"
    assert volume.discard(shard.key, second, wrong=True)
    assert volume.locate(shard.key) is None
    volume.close()


@pytest.mark.parametrize("segment_bytes_max", [1000, 1 << 20])
def test_a_shard_that_is_stored_twice_leaves_nothing_behind(scratch: Path, segment_bytes_max: int) -> None:
    """Writers check first whether a shard exists, but do not always ask the volume itself."""
    identity = VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key="1" * 64)
    volume = LocalVolume(scratch, identity, segment_bytes_max=segment_bytes_max)
    shards = [
        Shard(shard_key(stripe_key(Kind.CHUNK, bytes([number]) * 32, 1, 1), 0), 900, digest(bytes(900)), bytes(900))
        for number in range(20)
    ]
    for _ in range(3):
        volume.append(shards)
        volume.flush_index()
    kept, dead = shards[:2], [shard.key for shard in shards[2:]]
    volume.remove(dead)
    for ratio in (0.0, 0.6):
        volume.compact(ratio)
    usage = volume.usage()
    assert usage.bytes_used < 5 * 1000
    assert usage.shards == 2
    for shard in kept:
        found = volume.read(shard.key)
        assert found is not None
        assert bytes(found.payload) == bytes(900)
    volume.close()


@pytest.mark.parametrize("parallel", [1, 4])
def test_flushing_by_threads(scratch: Path, parallel: int) -> None:
    """For kernels that do not support asynchronous flush requests."""
    flusher = ThreadFlusher(parallel)
    files = [(scratch / str(number)).open("wb") for number in range(7)]
    outcomes = flusher.flush([*(file.fileno() for file in files), 10_000])
    assert outcomes[:7] == [None] * 7
    assert isinstance(outcomes[7], OSError)
    flusher.close()
    for file in files:
        file.close()


def test_a_repair_tells_which_files_are_less_safe_meanwhile(root: Path) -> None:
    with open_store(root) as store:
        push_many(store, [100] * 5)
    lose(root, 0)
    with open_store(root) as store:
        push_many(store, [200] * 3)  # whole
        states: list[RepairState] = []
        store.repair(watch=states.append)
    first = next(state for state in states if state.all_examined)
    assert dict(first.endangered) == {1: 5}, "five files survive the loss of one more volume, the others of two"
    assert (first.missing, first.misplaced, first.repaired) == (10, 0, 0)
    assert (states[-1].missing, states[-1].repaired, states[-1].lost, dict(states[-1].endangered)) == (0, 10, 0, {})


def test_files_that_cannot_be_read_stay_endangered(root: Path) -> None:
    with open_store(root) as store:
        push_many(store, [100] * 2)
    for slot in range(3):
        lose(root, slot)
    with open_store(root) as store:
        states: list[RepairState] = []
        assert store.repair(watch=states.append).lost_count == 2
    assert (states[-1].lost, dict(states[-1].endangered)) == (2, {-1: 2})


# -- disks that are not mounted yet, and directories named by mistake -----------------------------------


@pytest.mark.parametrize("mount_points", [False, True])
@pytest.mark.parametrize("missing", [3, 6])
def test_nothing_is_stored_in_the_place_of_disks_that_are_not_mounted(
    root: Path, scratch: Path, missing: int, mount_points: bool
) -> None:
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    for slot in range(missing):
        volume_dir(root, slot).rename(scratch / f"disk-{slot}")
        if mount_points:
            volume_dir(root, slot).mkdir()
    clocks = PutForward()
    with open_store(root, runtime=clocks) as store:
        assert _states(store) == ["offline"] * missing + ["ok"] * (6 - missing)
        assert "mount its disk" in store.stats().volumes[0].cause
        with pytest.raises(InsufficientWorkers, match="mount its disk"):
            push(store, b"new", "new")
        for slot in range(missing):
            if mount_points:
                volume_dir(root, slot).rmdir()
            (scratch / f"disk-{slot}").rename(volume_dir(root, slot))
        clocks.wait_until(lambda: _states(store) == ["ok"] * 6)
        check_all(store, pushed)
        check_all(store, {"new": (push(store, b"new", "new"), b"new")})
        assert store.scrub().clean


def test_a_repair_begins_volumes_anew_however_many_are_missing(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, content(1, CHUNK))
    lose(root, 0, 1, 2)
    with open_store(root) as store:
        assert store.repair().lost_count
        store.delete(version.file_id, user_id=USER)
        assert get(store, push(store, content(2, CHUNK), "new")) == content(2, CHUNK)
        assert store.repair().complete
    with open_store(root) as store:
        assert _states(store) == ["ok"] * 6


def test_a_store_without_files_begins_its_volumes_anew(root: Path) -> None:
    """As if the process was killed while the store was being made."""
    open_store(root).close()
    lose(root, *range(6))
    with open_store(root) as store:
        assert get(store, push(store, b"x")) == b"x"


@pytest.mark.parametrize("named", [(1, 0, 2, 3, 4, 5), (0, 0, 2, 3, 4, 5), (0, 1, 2, 3, 4), (6, 7, 8, 9, 10, 11)])
def test_volumes_named_by_mistake_are_not_remembered(root: Path, named: tuple[int, ...]) -> None:
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    with contextlib.suppress(FormatError, InvalidArgument):
        open_store(root, volumes=[volume_dir(root, slot) for slot in named]).close()
    with open_store(root) as store:
        check_all(store, pushed)
        assert _states(store) == ["ok"] * 6


def test_volumes_that_were_moved_are_remembered(root: Path, scratch: Path) -> None:
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    (root / "volumes").rename(scratch / "elsewhere")
    open_store(root, volumes=[scratch / "elsewhere" / str(slot) for slot in range(6)]).close()
    with open_store(root) as store:
        check_all(store, pushed)
        assert _states(store) == ["ok"] * 6


def test_one_directory_by_several_names_is_no_several_volumes(root: Path, scratch: Path) -> None:
    for slot in range(6):
        (scratch / f"name-{slot}").symlink_to(scratch)
    with pytest.raises(InvalidArgument, match="same directory"):
        open_store(root, volumes=[scratch / f"name-{slot}" for slot in range(6)])
