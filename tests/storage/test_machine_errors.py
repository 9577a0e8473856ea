"""Errors of the machine do not mean damaged data: nothing is discarded, and everything works when they pass."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest

from storage import (
    ErasureProfile,
    FileStorage,
    InsufficientWorkers,
    ShardsUnavailable,
    StorageError,
    StoreReadOnly,
    StoreUnavailable,
    Version,
)
from storage.fleet.volumes import VolumeOptions
from storage.keys import Kind, shard_key, stripe_key
from storage.shards import CorruptShard, LocalVolume, Shard, VolumeFailed, VolumeUnavailable
from storage.shards.filesystem import LocalFileSystem
from storage.shards.identity import VolumeIdentity, new_volume_key, read_identity
from storage.shards.index import Aside, ShardIndex
from storage.shards.port import Location, Verdict
from storage.system.faults import Fault, fault_of
from storage.system.lmdb_env import Environment
from tests.storage.faulty_disk import CALLS, FaultyDisk
from tests.storage.helpers import (
    CHUNK,
    PutForward,
    check_all,
    content,
    digest,
    flip,
    get,
    holders,
    lose,
    open_store,
    plant,
    push,
    push_many,
    python_environment,
    records,
    volume_dir,
)

PASSING = (errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE)
NUMBERS = (*PASSING, errno.EIO, errno.EROFS)
ONE_OF_EACH = (errno.EMFILE, errno.EIO, errno.EROFS)
CLOCKS = PutForward()


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


def open_on(root: Path, disk: FaultyDisk) -> FileStorage:
    """Open a store whose volumes begin a segment for every chunk, so that all calls are used."""
    options = VolumeOptions(filesystem=disk, segment_bytes_max=CHUNK // 2)
    return FileStorage.open(
        root, profile=ErasureProfile(2, 3), chunk_size=CHUNK, volume_options=options, runtime=CLOCKS
    )


def states(store: FileStorage) -> list[str]:
    return [volume.state for volume in store.stats().volumes]


def forget_files(store: FileStorage) -> None:
    """Close all segments, so that they are opened again."""
    for _, volume in store._volumes.online():
        volume.files.clear()


def eventually(work: Callable[[], object], within_s: float = 20.0) -> None:
    """Put the clock forward until a function does not raise, as volumes are opened again at intervals."""
    until_s = time.monotonic() + within_s
    while True:
        try:
            work()
            return
        except (StorageError, AssertionError):
            if time.monotonic() > until_s:
                raise
            CLOCKS.ahead_s += 0.5
            time.sleep(0.002)


def until_tried_again(store: FileStorage) -> None:
    """Put the clock forward until volumes that refused writes are tried again."""

    def due() -> None:
        assert all(volume.condition.retry.due() for _, volume in store._volumes.online())

    eventually(due)


def eventually_opened(root: Path, disk: FaultyDisk) -> FileStorage:
    """Open the store as soon as the machine permits."""
    while True:
        try:
            return open_on(root, disk)
        except StoreUnavailable:
            assert disk.left


def all_well(store: FileStorage, pushed: dict[str, tuple[Version, bytes]]) -> None:
    """Check that everything can be read and written without intervention, and that nothing was set aside."""

    def works() -> None:
        check_all(store, pushed)
        store.get(push(store, b"again", "again").file_id, user_id="ada")
        assert "offline" not in states(store)
        assert "read-only" not in states(store)

    eventually(works)
    assert store.repair().complete
    assert store.scrub().clean
    assert states(store) == ["ok"] * 3
    check_all(store, pushed)


@pytest.mark.parametrize(
    ("fault", "numbers"),
    [
        (Fault.PASSING, (*PASSING, errno.ENFILE, errno.EAGAIN, errno.EINTR, errno.ENOENT, errno.EPERM)),
        (Fault.READ_ONLY, (errno.EROFS,)),
        (Fault.FULL, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        (Fault.BROKEN, (errno.EIO, errno.ENXIO, errno.EBADF, errno.EUCLEAN)),
    ],
)
def test_what_error_numbers_mean(fault: Fault, numbers: tuple[int, ...]) -> None:
    assert {fault_of(OSError(number, "")) for number in numbers} == {fault}


# -- the store as a whole -----------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "number"), list(itertools.product(CALLS, ONE_OF_EACH)))
def test_every_call_may_fail_on_all_volumes_for_a_while(root: Path, disk: FaultyDisk, call: str, number: int) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, CHUNK, 3 * CHUNK))
        forget_files(store)
        disk.fail(number, call)
        for attempt in range(2):
            try:
                pushed[f"new{attempt}"] = push(store, content(90 + attempt, 2 * CHUNK), f"new{attempt}"), b""
                pushed[f"new{attempt}"] = pushed[f"new{attempt}"][0], content(90 + attempt, 2 * CHUNK)
            except (InsufficientWorkers, StoreUnavailable, VolumeFailed):
                assert f"new{attempt}" not in pushed
            for version, data in list(pushed.values()):
                with suppress(ShardsUnavailable):
                    assert get(store, version) == data
        for maintenance in (store.scrub, lambda: store.collect(grace_s=0)):
            with suppress(StoreUnavailable, VolumeFailed, InsufficientWorkers):
                maintenance()
        disk.heal()
        all_well(store, pushed)


def test_nothing_is_called_lost_while_a_lie_and_an_absence_come_together(root: Path, disk: FaultyDisk) -> None:
    """Of two shards that contradict each other, one may be forged; the third shard decides once it is back."""
    data = content(1, CHUNK)
    with open_on(root, disk) as store:
        version = push(store, data)
    lied, away = holders(digest(data), 2, 3, 3)[1:]
    plant(root, stripe_key(Kind.CHUNK, digest(data), 2, 3), {1: (CHUNK, content(9, CHUNK // 2))}, 3)
    assert lied != away
    with open_on(root, disk) as store:
        disk.fail(errno.EMFILE, "open", "read", only=volume_dir(root, away).name)
        forget_files(store)
        with pytest.raises(ShardsUnavailable, match="1 of 2 shards needed are within reach, 1 more are not"):
            get(store, version)
        disk.heal()
        assert get(store, version) == data


@pytest.mark.parametrize("call", ["open", "read", "database", "names", "space"])
def test_more_volumes_than_may_be_lost_cannot_be_opened_at_first(root: Path, disk: FaultyDisk, call: str) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
    disk.fail(errno.EMFILE, call)
    with open_on(root, disk) as store:
        for version, _ in pushed.values():
            with suppress(ShardsUnavailable):
                get(store, version)
        disk.heal()
        all_well(store, pushed)


def test_one_failed_flush_costs_nothing_but_the_push(root: Path, disk: FaultyDisk) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (3 * CHUNK,))
        disk.fail(errno.EIO, "datasync")
        with pytest.raises(InsufficientWorkers, match="Input/output error"):
            push(store, content(5, CHUNK), "new")
        disk.heal()
        all_well(store, pushed)


def test_a_disk_that_takes_no_writes_is_read_and_says_so(root: Path, disk: FaultyDisk) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
        disk.fail(errno.EROFS, "create", "open_writable", "write", "truncate", "write_whole", "remove")
        with pytest.raises(InsufficientWorkers, match="Read-only file system"):
            push(store, content(5, 2 * CHUNK), "new")
        check_all(store, pushed)
        assert states(store) == ["read-only"] * 3
        assert "Read-only file system" in store.stats().volumes[0].cause
        assert store.scrub().clean
        disk.heal()
        all_well(store, pushed)


def test_a_volume_taken_away_for_a_while_is_back_by_itself(root: Path, disk: FaultyDisk) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
        for slot in range(3):
            (root / "volumes" / str(slot)).rename(root / f"away{slot}")
            (root / "volumes" / str(slot)).mkdir()  # like a mount point without its disk
        store._volumes.check_present(at_once=True)
        assert states(store) == ["offline"] * 3
        with pytest.raises(ShardsUnavailable):
            get(store, pushed["f1"][0])
        for slot in range(3):
            assert not list((root / "volumes" / str(slot)).iterdir()), "nothing is made where a disk may be missing"
            (root / "volumes" / str(slot)).rmdir()
            (root / f"away{slot}").rename(root / "volumes" / str(slot))
        all_well(store, pushed)


@pytest.mark.parametrize("looks", range(1, 13))
def test_a_volume_that_comes_late_is_never_taken_for_an_empty_one(root: Path, disk: FaultyDisk, looks: int) -> None:
    """Its directory is missing at the first attempts, like that of a disk that is being mounted."""
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
    keys = [read_identity(root / "volumes" / str(slot)) for slot in range(3)]
    disk.fail(errno.ENOENT, "names", "read_whole", "open", "sync_directory", times=looks)
    store = eventually_opened(root, disk)
    with store:
        store.repair()
        disk.heal()
        all_well(store, pushed)
    assert [read_identity(root / "volumes" / str(slot)) for slot in range(3)] == keys


@pytest.mark.parametrize("looks", range(3))
def test_a_directory_that_drops_out_during_a_look_for_a_segment(
    root: Path, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """The directory can be listed a few more times; then calls fail at any point of a scrub."""
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
        forget_files(store)
        left = itertools.count(looks - 1, -1)
        names = disk.names

        def listed(path: Path) -> list[str]:
            if next(left) < 0:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            return names(path)

        monkeypatch.setattr(disk, "names", listed)
        disk.fail(errno.ENOENT, "open")
        with suppress(StorageError):
            store.scrub()
        monkeypatch.undo()
        disk.heal()
        all_well(store, pushed)


@pytest.mark.parametrize("lost", [False, True], ids=["VOLUME there", "VOLUME lost"])
def test_a_directory_with_a_volume_is_not_opened_as_another(root: Path, disk: FaultyDisk, lost: bool) -> None:
    with open_on(root, disk) as store:
        pushed = push_many(store, (10, 3 * CHUNK))
    path = root / "volumes" / "0"
    identity = read_identity(path)
    assert identity is not None
    if lost:
        (path / "VOLUME").unlink()
    other = VolumeIdentity(identity.store_id, 0, 3, new_volume_key(), identity.k, identity.n, identity.chunk_size)
    with pytest.raises(VolumeUnavailable, match="is not the one that was there"):
        LocalVolume(path, other)
    assert read_identity(path) == identity
    with open_on(root, disk) as store:
        all_well(store, pushed)


@pytest.mark.parametrize("filled", [False, True], ids=["room in the last segment", "a new segment next"])
def test_a_disk_that_takes_writes_again_is_seen_without_any(root: Path, disk: FaultyDisk, filled: bool) -> None:
    """Nothing is stored or repaired; the store's periodic checks are enough."""
    with open_on(root, disk) as store:
        pushed = push_many(store, (3 * CHUNK,) if filled else (10,))
        disk.fail(errno.EROFS, "create", "open_writable", "write", "truncate", "write_whole", "remove")
        with pytest.raises(InsufficientWorkers, match="Read-only file system"):
            push(store, content(5, 10), "new")

        def looked_after(state: str) -> None:
            assert store.repair().complete
            assert states(store) == [state] * 3

        looked_after("read-only")
        until_tried_again(store)
        looked_after("read-only")
        disk.heal()
        eventually(lambda: looked_after("ok"))
        all_well(store, pushed)


def test_descriptors_used_up(root: Path) -> None:
    """Runs in its own process. Reads may fail while descriptors are used up, and are right afterwards."""
    program = f"""
        import os, resource
        from storage import *
        from storage.fleet.volumes import VolumeOptions
        options = VolumeOptions(segment_bytes_max=1 << 16)
        with FileStorage.open({str(root)!r}, chunk_size=1 << 16, volume_options=options) as store:
            data = os.urandom(3 << 20)
            version = store.push(data, filename="a", user_id="u")
            for slot in range(6):
                store._volumes.volume(slot).files.clear()
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, 4096))
            for again in range(2):
                for work in (lambda: store.get(version.file_id, user_id="u"), store.scrub, store.repair,
                             lambda: store.push(os.urandom(1 << 20), filename="b", user_id="u")):
                    try:
                        work()
                    except (InsufficientWorkers, StoreUnavailable, StorageError) as error:
                        assert not isinstance(error, (DataLossError, FormatError)), error
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            assert store.get(version.file_id, user_id="u") == data
            assert store.repair().complete
            report = store.scrub()
            assert report.clean, report
            assert not any(store._volumes.volume(slot).all_aside() for slot in range(6))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=python_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_few_descriptors_are_enough(root: Path) -> None:
    """Runs in its own process. A large push fills many more segments than may be open, and so does a replay."""
    program = f"""
        import glob, os, resource
        from storage import *
        from storage.fleet.volumes import VolumeOptions
        options = VolumeOptions(segment_bytes_max=1 << 16)
        resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
        data = os.urandom(16 << 20)
        with FileStorage.open({str(root)!r}, chunk_size=1 << 16, volume_options=options) as store:
            version = store.push(data, filename="a", user_id="u")
            assert store.get(version.file_id, user_id="u") == data
            assert store.scrub().clean
            directories = [os.path.dirname(store._volumes.volume(slot).files.path_of(1)) for slot in range(6)]
        for directory in directories:
            for name in glob.glob(directory + "/index/*"):
                os.remove(name)
        with FileStorage.open({str(root)!r}, volume_options=options) as store:
            assert store.get(version.file_id, user_id="u") == data
            assert store.scrub().clean
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=python_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_bad_sectors_in_volumes_that_lost_their_index(root: Path, disk: FaultyDisk) -> None:
    """The volumes are online nevertheless, and data in bad sectors is made again from other volumes."""
    options = VolumeOptions(filesystem=disk)
    with open_store(root) as store:
        pushed = push_many(store, (10, CHUNK, 3 * CHUNK, 9 * CHUNK))
    for slot in (1, 4):
        shutil.rmtree(volume_dir(root, slot) / "index")
        for record in records(volume_dir(root, slot))[2:12:3]:
            disk.spoil(record.segment, record.start, record.start + 1)
    with FileStorage.open(root, volume_options=options) as store:
        assert set(states(store)) <= {"ok", "incomplete"}
        check_all(store, pushed)
        assert store.repair().complete
        assert store.scrub().clean
        assert states(store) == ["ok"] * 6
    lose(root, 0, 5)
    with FileStorage.open(root, volume_options=options) as store:
        check_all(store, pushed)
        disk.heal()
        assert store.repair().complete
        assert store.scrub().clean


# -- records set aside --------------------------------------------------------------------------------


@pytest.fixture
def volume(scratch: Path, disk: FaultyDisk) -> Iterator[LocalVolume]:
    identity = VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key=new_volume_key())
    volume = LocalVolume(scratch, identity, filesystem=disk, segment_bytes_max=64 * 1024)
    yield volume
    volume.close()


def shard_of(seed: int, size: int = 5000) -> Shard:
    payload = content(seed, size)
    return Shard(shard_key(stripe_key(Kind.CHUNK, digest(payload), 1, 1), 0), size, digest(payload), payload)


def rot(volume: LocalVolume, shard: Shard) -> None:
    record = next(record for record in records(volume.path) if record.key == shard.key)
    flip(record.segment, record.stop - 1)


def unrot(volume: LocalVolume, shard: Shard) -> None:
    location = volume.all_aside().get(shard.key)
    assert location is not None
    place = location.location
    flip(volume.files.path_of(place.segment), place.offset + 96 + place.payload_length - 1)


def test_rot_that_passes_is_found_again(volume: LocalVolume) -> None:
    """Also after the records set aside were moved, and the volume was opened again."""
    shards = [shard_of(seed) for seed in range(30)]
    volume.append(shards)
    volume.sync()
    rot(volume, shards[0])
    with pytest.raises(CorruptShard):
        volume.read(shards[0].key)
    assert volume.check([shards[0].key]) == [Verdict.ROTTEN]
    assert volume.missing([shards[0].key]) == [0]
    volume.remove([shard.key for shard in shards[1:8]])
    assert volume.compact(0.99)[0] > 0
    volume.close()
    again = LocalVolume(volume.path, volume.identity, segment_bytes_max=64 * 1024)
    assert again.read(shards[0].key) is None
    unrot(again, shards[0])
    again.verify(lambda _: None)
    found = again.read(shards[0].key)
    assert found is not None
    assert bytes(found.payload) == shards[0].payload
    assert again.missing([shard.key for shard in shards]) == list(range(1, 8))
    again.close()


def test_a_good_record_takes_the_place_of_one_set_aside(volume: LocalVolume) -> None:
    shard = shard_of(1)
    volume.append([shard])
    volume.sync()
    before = volume.usage().bytes_live
    rot(volume, shard)
    assert volume.check([shard.key]) == [Verdict.ROTTEN]
    assert volume.usage().bytes_live == before, "it is kept"
    volume.append([shard])
    volume.sync()
    assert volume.usage().bytes_live == before, "its successor is"
    assert volume.read(shard.key) is not None


def test_a_record_proved_wrong_is_never_given_out_again(volume: LocalVolume) -> None:
    shard = shard_of(1)
    volume.append([shard])
    place = volume.locate(shard.key)
    assert place is not None
    assert volume.discard(shard.key, place, wrong=True)
    volume.verify(lambda _: None)
    assert volume.read(shard.key) is None
    assert list(volume.keys()) == [shard.key]
    assert volume.remove([shard.key]) == 1
    assert list(volume.keys()) == []


@pytest.mark.parametrize("number", NUMBERS)
def test_what_cannot_be_read_is_not_called_rotten(volume: LocalVolume, disk: FaultyDisk, number: int) -> None:
    shards = [shard_of(seed) for seed in range(20)]
    volume.append(shards)
    volume.sync()
    volume.files.clear()
    disk.fail(number, "open", "read")
    for shard in shards:
        with pytest.raises(VolumeUnavailable):
            volume.read(shard.key)
        with pytest.raises(VolumeUnavailable):
            volume.fetch_all([(shard.key, 5000)])
    assert volume.check([shard.key for shard in shards]) == [Verdict.UNREADABLE] * 20
    with pytest.raises(VolumeUnavailable):
        volume.verify(lambda _: None)
    disk.heal()
    assert volume.check([shard.key for shard in shards]) == [Verdict.GOOD] * 20


def test_a_segment_that_is_really_shorter_is_damage(volume: LocalVolume) -> None:
    shards = [shard_of(seed) for seed in range(4)]
    volume.append(shards)
    volume.sync()
    segment = volume.files.path_of(1)
    with segment.open("r+b") as stream:
        stream.truncate(records(volume.path)[-1].start + 50)
    with pytest.raises(CorruptShard):
        volume.read(shards[-1].key)
    assert volume.check([shards[-1].key]) == [Verdict.ROTTEN]


# -- databases ----------------------------------------------------------------------------------------


def test_a_map_that_cannot_grow_leaves_the_database_usable(scratch: Path) -> None:
    """Runs in its own process, because nothing else may use or give back address space meanwhile."""
    program = f"""
        import resource
        from pathlib import Path
        from storage import StoreUnavailable
        from storage.system.lmdb_env import Environment
        environment = Environment(Path({str(scratch / "db")!r}), ("table",), sync=False)
        environment.write(lambda txn: txn.put(b"key", b"value", db=environment.databases["table"]))
        big = bytes(1 << 20)

        def fill():
            table = environment.databases["table"]
            environment.write(lambda txn: [txn.put(b"%d" % at, big, db=table) for at in range(80)])

        [now] = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")]
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, ((now << 10) + (32 << 20), limits[1]))
        try:
            fill()
        except (StoreUnavailable, MemoryError):
            pass
        else:
            raise AssertionError("the map has grown beyond the limit")
        resource.setrlimit(resource.RLIMIT_AS, limits)
        assert environment.get("table", b"key") == b"value"
        fill()
        assert environment.get("table", b"79") == big
        environment.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=python_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


class Panicking:
    """An environment that refuses every transaction until it is closed, like LMDB after a disk error."""

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env

    def begin(self, **_options: object) -> None:
        raise lmdb.PanicError("MDB_PANIC")

    def close(self) -> None:
        self._env.close()


def test_a_database_that_gave_up_is_opened_anew(scratch: Path) -> None:
    environment = Environment(scratch / "db", ("table",))
    environment.write(lambda txn: txn.put(b"key", b"value", db=environment.databases["table"]))

    environment._env = Panicking(environment._env)  # type: ignore[assignment, arg-type]
    assert environment.get("table", b"key") == b"value"
    environment._env = Panicking(environment._env)  # type: ignore[assignment, arg-type]
    environment.write(lambda txn: txn.put(b"key", b"other", db=environment.databases["table"]))
    assert environment.get("table", b"key") == b"other"
    environment.close()


def test_threads_that_meet_the_same_failure_open_a_database_anew_once(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread comes while the first one, which writes and reads, uses the reopened database."""
    environment = Environment(scratch / "db", ("table",))
    environment.write(lambda txn: txn.put(b"key", b"value", db=environment.databases["table"]))
    environment._env = Panicking(environment._env)  # type: ignore[assignment, arg-type]
    opened = itertools.count()
    opening, open_anew = lmdb.open, environment._open_anew
    monkeypatch.setattr(lmdb, "open", lambda *args, **options: opening(*args, **options) if next(opened) >= 0 else None)
    failed, writing = threading.Event(), threading.Event()

    def open_anew_later(*args: object) -> None:
        if threading.current_thread() is reader:
            failed.set()
            assert writing.wait(20)
        open_anew(*args)  # type: ignore[arg-type]

    def write_and_read(txn: object) -> bytes | None:
        writing.set()
        reader.join(0.5)  # it would wait for the writer if it needed the database exclusively
        return environment.get("table", b"key")

    monkeypatch.setattr(environment, "_open_anew", open_anew_later)
    reader = threading.Thread(target=environment.get, args=("table", b"key"), daemon=True)
    reader.start()
    assert failed.wait(20)
    found: list[bytes | None] = []
    writer = threading.Thread(target=lambda: found.append(environment.write(write_and_read)), daemon=True)
    writer.start()
    for thread in (writer, reader):
        thread.join(20)
        assert not thread.is_alive()
    assert found == [b"value"]
    assert next(opened) == 1
    environment.close()


def test_what_keeps_a_database_from_being_opened_is_no_damage(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Environment(scratch / "db", ("table",)).close()
    opening = lmdb.open

    for text in ("Too many open files", "Cannot allocate memory", "Permission denied", "Input/output error"):
        monkeypatch.setattr(lmdb, "open", lambda *_a, text=text, **_k: (_ for _ in ()).throw(lmdb.Error(text)))
        with pytest.raises(StoreUnavailable, match=text):
            Environment(scratch / "db", ("table",))

    def read_only(path: str, **options: object) -> lmdb.Environment:
        if not options["readonly"]:
            raise lmdb.Error("Read-only file system")
        return opening(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(lmdb, "open", read_only)
    environment = Environment(scratch / "db", ("table", "not made by an older version"))
    assert environment.get("table", b"key") is None
    with pytest.raises(StoreReadOnly):
        environment.write(lambda txn: txn.put(b"key", b"value", db=environment.databases["table"]))
    monkeypatch.setattr(lmdb, "open", opening)
    eventually(lambda: environment.write(lambda txn: txn.put(b"key", b"v", db=environment.databases["table"])))
    assert environment.get("table", b"key") == b"v"
    environment.close()


def test_a_record_set_aside_during_a_flush_is_entered_by_the_next_one(scratch: Path) -> None:
    """Its new position may not be durable, as the flush began before it was moved there."""
    key = shard_key(stripe_key(Kind.CHUNK, digest(b"x"), 1, 2), 0)
    index = ShardIndex(scratch / "index", LocalFileSystem())
    index.put(key, (1, 128, 10, 10))
    assert index.freeze()
    index.set_aside(key, Aside(Location(2, 128, 10, 10), wrong=False))
    index.flush({1: (300, 300)}, [])
    index.close()
    index = ShardIndex(scratch / "index", LocalFileSystem())
    assert index.aside(key) is None
    index.set_aside(key, Aside(Location(2, 128, 10, 10), wrong=False))
    assert index.freeze()
    index.flush({}, [])
    index.close()
    index = ShardIndex(scratch / "index", LocalFileSystem())
    assert index.aside(key) == Aside(Location(2, 128, 10, 10), wrong=False)
    index.close()
