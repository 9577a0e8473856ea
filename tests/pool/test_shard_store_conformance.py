"""What every shard store promises, kept by a volume on the disk and by one behind a network alike."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import QuotaExceeded, StorageError, StoreFull
from storage.keys import Kind, ShardKey
from storage.limits import MIB, BytesLike
from storage.shards import (
    CorruptShard,
    LocalVolume,
    Location,
    Shard,
    ShardStore,
    VolumeFailed,
    VolumeReadOnly,
    VolumeUnavailable,
    VolumeUsage,
)
from storage.shards.filesystem import LocalFile, LocalFileSystem
from storage.shards.port import Verdict
from storage.shards.record import HEADER_BYTES, SEGMENT_HEADER_BYTES
from taskworker.errors import TicketRefused, WorkerReadOnly
from taskworker.rpc import status
from taskworker.transport.frames import KEYS_MAX, MESSAGE_BYTES_MAX
from taskworker.transport.port import Ticket
from taskworker.transport.remote_volume import RemoteVolume, identify_process
from taskworker.transport.shard_calls import ShardCalls
from taskworker.transport.wire.serving import Caller
from taskworker.transport.wire.streams import SocketStream, dial
from tests.auth.members import Members
from tests.pool.helpers import Refusal, key_of, made_up_server, noise, open_volume, served, shard_of
from tests.storage.helpers import flip, records

ALL_KINDS = frozenset(Kind)


class CrampedFile(LocalFile):
    """A file on a disk that is full whenever the test says so."""

    __slots__ = ("_disk",)

    def __init__(self, fd: int, disk: CrampedDisk) -> None:
        super().__init__(fd)
        self._disk = disk

    def write(self, buffers: Sequence[BytesLike], offset: int) -> None:
        if self._disk.full:
            raise StoreFull("no space left")
        super().write(buffers, offset)


class CrampedDisk(LocalFileSystem):
    """A disk that can be filled up."""

    def __init__(self) -> None:
        self.full = False

    def create(self, path: Path) -> LocalFile:
        file = super().create(path)
        return CrampedFile(os.dup(file._fd), self)


@dataclass(slots=True)
class Stand:
    """A store under test, and what lies behind it."""

    store: ShardStore
    directory: Path
    disk: CrampedDisk
    remote: bool
    exits: ExitStack

    def reopened(self) -> LocalVolume:
        """Let go of everything, and open the directory anew: what was durable is there."""
        self.store.close()
        self.exits.close()
        volume = open_volume(self.directory)
        self.exits.callback(volume.close)
        return volume


@pytest.fixture(params=["local", "tcp", "unix", "tls"])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    with ExitStack() as exits:
        disk = CrampedDisk()
        volume = open_volume(tmp_path / "volume", disk)
        exits.callback(volume.close)
        store: ShardStore = volume
        if request.param != "local":
            path = tmp_path / "socket" if request.param == "unix" else None
            members = Members.in_directory(tmp_path) if request.param == "tls" else None
            secure, dialling = (SocketStream, dial) if members is None else (members.accept, members.dial)
            store = RemoteVolume(exits.enter_context(served(volume, path=path, secure=secure)), "w1", dial=dialling)
            exits.callback(store.close)
        yield Stand(store, tmp_path / "volume", disk, request.param != "local", exits)


@pytest.fixture
def store(stand: Stand) -> ShardStore:
    return stand.store


def rot(directory: Path, key: ShardKey) -> None:
    """Flip a byte of a shard's payload on the disk."""
    (record,) = (record for record in records(directory) if record.key == key)
    flip(record.segment, record.start + HEADER_BYTES)


def same(found: Shard | None, shard: Shard) -> bool:
    return found is not None and found._replace(payload=bytes(found.payload)) == shard


# -- appending and reading -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 70_000, 1_300_000])
def test_an_appended_shard_can_be_read_at_once(store: ShardStore, size: int) -> None:
    shard = shard_of(1, size)
    store.append([shard])
    place = store.locate(shard.key)
    assert place is not None
    assert (place.payload_length, place.object_length) == (size, 4 * size)
    payload = store.fetch_all([(shard.key, size)])[0]
    assert payload is not None
    assert bytes(payload) == shard.payload
    assert same(store.read(shard.key), shard)
    whole = memoryview(bytearray(size))
    assert store.read_into(shard.key, [whole[: size // 3], whole[size // 3 :]], size)
    assert bytes(whole) == shard.payload


@pytest.mark.parametrize("look", ["fetch", "read", "read_into", "keys", "records", "remove", "locate"])
def test_what_was_appended_just_now_is_seen_by_every_call(store: ShardStore, look: str) -> None:
    """Also where it is still on its way."""
    for seed in range(20):
        shard = shard_of(seed, 150_000)
        store.append([shard])
        assert _sees(store, look, shard)


def _sees(store: ShardStore, look: str, shard: Shard) -> bool:
    size = len(shard.payload)
    if look == "remove":
        return store.remove([shard.key]) == 1 and store.read(shard.key) is None
    if look == "read_into":
        return store.read_into(shard.key, [memoryview(bytearray(size))], size)
    if look == "fetch":
        return store.fetch_all([(shard.key, size)])[0] is not None
    if look == "keys":
        return shard.key in list(store.keys())
    if look == "records":
        return shard.key in [found.key for page in store.records(ALL_KINDS) for found in page]
    return (store.read if look == "read" else store.locate)(shard.key) is not None


def test_what_is_not_there(store: ShardStore) -> None:
    store.append([shard_of(1)])
    key = key_of(2)
    assert store.locate(key) is None
    assert store.read(key) is None
    assert store.fetch_all([(key, 100)])[0] is None
    assert not store.read_into(key, [memoryview(bytearray(100))], 100)
    assert store.remove([key]) == 0
    assert not store.discard(key, Location(1, 128, 100, 400))


def test_a_shard_of_another_length_is_not_the_one_wanted(store: ShardStore) -> None:
    shard = shard_of(1, 100)
    store.append([shard])
    for length in (0, 99, 101):
        assert store.fetch_all([(shard.key, length)])[0] is None
        assert not store.read_into(shard.key, [memoryview(bytearray(length))], length)


def test_the_callers_memory_is_its_own_again_after_an_append(store: ShardStore) -> None:
    shard = shard_of(1, 1000)
    payload = bytearray(shard.payload)
    store.append([shard._replace(payload=memoryview(payload))])
    payload[:] = bytes(1000)
    store.sync()
    assert same(store.read(shard.key), shard)


def test_many_are_located_in_the_order_asked_for(store: ShardStore) -> None:
    shards = [shard_of(seed, 1) for seed in range(KEYS_MAX + 100)]
    store.append(shards[::2])
    store.sync()
    asked = [*(shard.key for shard in shards), shards[0].key, shards[1].key]
    found = store.locate_all(asked)
    assert [place is not None for place in found] == [*(index % 2 == 0 for index in range(len(shards))), True, False]
    assert store.locate_all([]) == []


def test_those_missing_among_many_are_named_by_their_positions(store: ShardStore) -> None:
    shards = [shard_of(seed, 1) for seed in range(KEYS_MAX + 100)]
    store.append(shards[::2])
    store.sync()
    removed = [0, KEYS_MAX + 2]
    store.remove([shards[at].key for at in removed])
    asked = [*(shard.key for shard in shards), shards[1].key, shards[2].key]
    there = [index % 2 == 0 and index not in removed for index in range(len(shards))]
    assert store.missing(asked) == [at for at, held in enumerate([*there, False, True]) if not held]
    assert store.missing([]) == []
    missing = set(store.missing(asked))
    assert [place is None for place in store.locate_all(asked)] == [at in missing for at in range(len(asked))]


def test_what_was_just_appended_is_not_missing(store: ShardStore) -> None:
    shards = [shard_of(seed, 1000) for seed in range(10)]
    store.append(shards)
    assert store.missing([shards[3].key, key_of(99), shards[9].key]) == [1]


def test_nothing_to_append(store: ShardStore) -> None:
    store.append([])
    store.sync()
    assert list(store.keys()) == []


def test_what_was_synced_is_there_after_opening_again(stand: Stand) -> None:
    shards = [shard_of(seed, 1000 * seed, slot=seed % 6) for seed in range(20)]
    stand.store.append(shards[:10])
    stand.store.append(shards[10:], urgent=True)
    stand.store.sync()
    volume = stand.reopened()
    assert all(same(volume.read(shard.key), shard) for shard in shards)


def test_closing_loses_nothing(stand: Stand) -> None:
    shards = [shard_of(seed, 1000) for seed in range(20)]
    stand.store.append(shards)
    volume = stand.reopened()
    assert all(same(volume.read(shard.key), shard) for shard in shards)


def test_an_append_larger_than_any_message(store: ShardStore) -> None:
    payload = noise(1, 900_000)
    shards = [
        Shard(key_of(seed), len(payload), blake3(payload).digest(), payload)
        for seed in range(MESSAGE_BYTES_MAX * 5 // 2 // len(payload))
    ]
    store.append(shards)
    store.sync()
    assert all(place is not None for place in store.locate_all([shard.key for shard in shards]))
    assert all(same(store.read(shard.key), shard) for shard in shards)


def test_the_largest_shards_one_after_another(store: ShardStore) -> None:
    payload = bytes(16 * MIB)
    shards = [Shard(key_of(seed), len(payload), blake3(payload).digest(), payload) for seed in range(3)]
    store.append([shard_of(9, 4 * MIB - 100_000)])  # less than makes an append wait
    for shard in shards:
        store.append([shard])
    store.sync()
    assert all(store.read(shard.key) is not None for shard in shards)


def test_many_threads_append_at_once(store: ShardStore) -> None:
    def work(thread: int) -> list[Shard]:
        mine = [shard_of(1000 * thread + number, 100 + 37 * number) for number in range(40)]
        for start in range(0, len(mine), 8):
            store.append(mine[start : start + 8])
            store.sync()
            assert all(place is not None for place in store.locate_all([shard.key for shard in mine[: start + 8]]))
        return mine

    with ThreadPoolExecutor(8) as threads:
        shards = [shard for batch in threads.map(work, range(8)) for shard in batch]
    assert all(same(store.read(shard.key), shard) for shard in shards)
    assert list(store.keys()) == sorted(shard.key for shard in shards)


def test_a_full_disk_is_told_by_the_next_sync_at_the_latest(stand: Stand) -> None:
    store, first, refused, later = stand.store, shard_of(1), shard_of(2, 5000), shard_of(3, 5000)
    store.append([first])
    store.sync()
    stand.disk.full = True
    with pytest.raises(StoreFull, match="no space"):
        _append_and_sync(store, refused)
    assert store.locate(refused.key) is None
    assert same(store.read(first.key), first)
    stand.disk.full = False
    store.sync()  # it has been told
    _append_and_sync(store, later)
    assert same(store.read(later.key), later)


def _append_and_sync(store: ShardStore, shard: Shard) -> None:
    store.append([shard])
    store.sync()


# -- walks -----------------------------------------------------------------------------------------


def test_keys_come_in_order_and_within_bounds(store: ShardStore) -> None:
    expected = sorted(key_of(seed) for seed in range(KEYS_MAX + 500))
    store.append([shard_of(seed, 0) for seed in range(KEYS_MAX + 500)])
    assert list(store.keys()) == expected
    start, stop = expected[100], expected[-100]
    assert list(store.keys(start)) == expected[100:]
    assert list(store.keys(start, stop)) == expected[100:-100]
    assert list(store.keys(stop=stop)) == expected[:-100]
    assert list(store.keys(start[:5], stop[:7])) == [key for key in expected if start[:5] <= key < stop[:7]]
    assert list(store.keys(stop, start)) == []
    assert list(store.keys(b"\xff" * 36)) == []


def test_a_walk_can_be_broken_off(store: ShardStore) -> None:
    store.append([shard_of(seed, 0) for seed in range(2 * KEYS_MAX)])
    walk = store.keys()
    next(walk)
    walk.close()  # type: ignore[attr-defined]
    assert store.read(key_of(1)) is not None


def test_records_of_some_kinds(stand: Stand) -> None:
    shards = [shard_of(10 * seed + kind, 60_000 * seed + 1, kind=kind, slot=seed) for seed in range(5) for kind in Kind]
    gone, rotten, *rest = shards
    stand.store.append(shards)
    stand.store.sync()
    stand.store.remove([gone.key])
    rot(stand.directory, rotten.key)
    for kinds in (ALL_KINDS, frozenset({Kind.CHUNK}), frozenset({Kind.VERSION, Kind.TOMBSTONE}), frozenset[Kind]()):
        found = [shard for page in stand.store.records(kinds) for shard in page]
        expected = {shard.key: shard for shard in rest if shard.key[32] in kinds}
        assert {shard.key for shard in found} == set(expected)
        assert all(same(shard, expected[shard.key]) for shard in found)


def test_a_scan_that_finds_no_records_for_a_while_tells_that_it_goes_on(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.shards.record_walk._SCANNED_TOGETHER_BYTES", 100_000)
    monkeypatch.setattr("taskworker.transport.shard_service._SIGN_OF_LIFE_S", 0.0)
    version = shard_of(99, 100, kind=Kind.VERSION)
    stand.store.append([*(shard_of(seed, 50_000) for seed in range(10)), version])
    stand.store.sync()
    pages = list(stand.store.records(frozenset({Kind.VERSION})))
    assert len(pages) > 4
    assert pages[:4] == [[]] * 4
    assert [shard.key for page in pages for shard in page] == [version.key]


# -- removal, rot and space ------------------------------------------------------------------------


def test_removed_shards_are_gone(store: ShardStore) -> None:
    shards = [shard_of(seed) for seed in range(10)]
    store.append(shards)
    store.sync()
    assert store.remove(shard.key for shard in [*shards[:4], shard_of(77)]) == 4
    assert store.remove([shards[0].key]) == 0
    assert [store.read(shard.key) is None for shard in shards] == [True] * 4 + [False] * 6
    assert sorted(store.keys()) == sorted(shard.key for shard in shards[4:])
    store.append([shards[0]])
    assert same(store.read(shards[0].key), shards[0])


def test_only_the_copy_found_bad_is_discarded(store: ShardStore) -> None:
    shard = shard_of(1)
    store.append([shard])
    store.sync()
    place = store.locate(shard.key)
    assert place is not None
    assert not store.discard(shard.key, place._replace(offset=place.offset + 1), wrong=True)
    assert not store.discard(key_of(2), place, wrong=True)
    assert not store.discard(shard.key, place), "it reads well"
    assert same(store.read(shard.key), shard)
    assert store.discard(shard.key, place, wrong=True)
    assert store.locate(shard.key) is None
    assert store.read(shard.key) is None
    assert not store.discard(shard.key, place, wrong=True)


def test_rot_is_met_by_reading(stand: Stand) -> None:
    store, shard = stand.store, shard_of(1, 1000)
    store.append([shard, shard_of(2)])
    store.sync()
    rot(stand.directory, shard.key)
    with pytest.raises(CorruptShard):
        store.read(shard.key)
    payload = store.fetch_all([(shard.key, 1000)])[0]  # unverified, as said
    assert payload is not None
    assert bytes(payload) != shard.payload
    assert same(store.read(key_of(2)), shard_of(2))


def test_verification_judges_and_quarantines(stand: Stand) -> None:
    store, shards = stand.store, [shard_of(seed, 3000) for seed in range(30)]
    store.append(shards)
    store.sync()
    for shard in shards[:6]:
        rot(stand.directory, shard.key)
    read: list[int] = []
    verification = store.verify(read.append)
    assert sum(read) >= 30 * 3000
    asked = [shards[0], shards[1], shards[10], shard_of(99)]
    assert verification.judge([shard.key for shard in asked]) == [
        Verdict.ROTTEN,
        Verdict.ROTTEN,
        Verdict.GOOD,
        Verdict.MISSING,
    ]
    assert store.locate(shards[0].key) is None
    assert verification.judge([shards[0].key]) == [Verdict.MISSING]
    assert sorted(verification.quarantine_rest()) == sorted(shard.key for shard in shards[2:6])
    assert store.missing([shard.key for shard in shards]) == list(range(6))
    # Set aside, they are there for a collect to remove.
    assert sorted(store.keys()) == sorted(shard.key for shard in shards)


def test_a_verification_of_an_empty_store(store: ShardStore) -> None:
    verification = store.verify(lambda _count: None)
    assert verification.judge([key_of(1)]) == [Verdict.MISSING]
    assert verification.judge([]) == []
    assert list(verification.quarantine_rest()) == []


def test_compaction_frees_the_space_of_removed_shards(store: ShardStore) -> None:
    shards = [shard_of(seed, 50_000) for seed in range(60)]
    store.append(shards)
    store.sync()
    store.remove(shard.key for shard in shards[5:])
    before = store.usage()
    segments, freed = store.compact(0.5)
    after = store.usage()
    assert segments >= 2
    assert freed >= 40 * 50_000
    assert after.bytes_used + freed - before.bytes_used in (0, SEGMENT_HEADER_BYTES)
    assert all(same(store.read(shard.key), shard) for shard in shards[:5])
    assert store.compact(0.0) == (0, 0)


def test_usage_counts_what_is_stored(store: ShardStore) -> None:
    assert store.usage().shards == 0
    store.append([shard_of(seed, 1000) for seed in range(10)])
    store.sync()
    usage = store.usage()
    assert (usage.shards, usage.segments) == (10, 1)
    assert 10_000 < usage.bytes_live <= usage.bytes_used < 20_000
    assert usage.bytes_free > 0
    store.remove([key_of(1)])
    assert list(store.keys())  # what was removed lately is still counted until the index is written
    assert store.usage().shards == 9
    assert store.usage().bytes_live == usage.bytes_live - 1000 - HEADER_BYTES


# -- ending ----------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[ShardStore], object]] = {
    "append": lambda store: _append_and_sync(store, shard_of(5)),
    "sync": lambda store: store.sync(),
    "locate": lambda store: store.locate(key_of(1)),
    "locate_all": lambda store: store.locate_all([key_of(1), key_of(2)]),
    "missing": lambda store: store.missing([key_of(1), key_of(2)]),
    "fetch": lambda store: store.fetch_all([(key_of(1), 100)])[0],
    "read_into": lambda store: store.read_into(key_of(1), [memoryview(bytearray(100))], 100),
    "read": lambda store: store.read(key_of(1)),
    "remove": lambda store: store.remove([key_of(1)]),
    "discard": lambda store: store.discard(key_of(1), Location(1, 128, 100, 400)),
    "keys": lambda store: list(store.keys()),
    "records": lambda store: list(store.records(ALL_KINDS)),
    "verify": lambda store: store.verify(lambda _count: None),
    "compact": lambda store: store.compact(0.5),
    "usage": lambda store: store.usage(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
STREAMED = ("keys", "records", "verify")


@pytest.mark.parametrize("end", ["close", "abandon"])
@pytest.mark.parametrize("call", [CALLS["append"], CALLS["sync"]], ids=["append", "sync"])
def test_nothing_is_written_after_the_end(store: ShardStore, end: str, call: Callable[[ShardStore], object]) -> None:
    store.append([shard_of(1)])
    store.sync()
    store.close() if end == "close" else store.abandon("taken away")
    with pytest.raises(VolumeFailed, match="closed" if end == "close" else "taken away"):
        call(store)


def test_ending_twice(store: ShardStore) -> None:
    store.close()
    store.abandon("once more")
    store.close()


def test_a_check_reads_what_it_judges_and_forgets_what_is_rotten(stand: Stand) -> None:
    shards = [shard_of(number, 1000) for number in range(40)]
    stand.store.append(shards)
    stand.store.sync()
    rot(stand.directory, shards[5].key)
    keys = [*(shard.key for shard in shards), key_of(99)]
    expected = [Verdict.GOOD] * 40 + [Verdict.MISSING]
    assert stand.store.check(keys) == [Verdict.ROTTEN if at == 5 else verdict for at, verdict in enumerate(expected)]
    assert stand.store.locate(shards[5].key) is None
    assert stand.store.check(keys[4:7]) == [Verdict.GOOD, Verdict.MISSING, Verdict.GOOD]
    assert stand.store.check([]) == []


# -- behind a network ------------------------------------------------------------------------------


def connect(exits: ExitStack, address: str, timeout_s: float = 20.0) -> RemoteVolume:
    volume = RemoteVolume(address, "w1", timeout_s=timeout_s)
    exits.callback(volume.abandon, "the test is over")
    return volume


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("write", ["append", "sync"])
def test_another_process_of_a_worker_takes_no_writes(tmp_path: Path, exits: ExitStack, write: str) -> None:
    """It was rebooted within its lease: what was appended and not synced is gone, and nobody else can know."""
    first, second = open_volume(tmp_path / "volume"), open_volume(tmp_path / "as if the power had failed")
    exits.callback(first.close)
    exits.callback(second.close)
    with served(first, "instance 1") as address:
        volume = RemoteVolume(address, "w1", "instance 1")
        exits.callback(volume.abandon, "the test is over")
        volume.append([shard_of(1)])
        assert volume.locate(shard_of(1).key) is not None
        assert volume.read(shard_of(1).key) is not None  # it has arrived
    with served(second, "instance 2", int(address.rpartition(":")[2])):
        _await_answer(address)
        if write == "append":
            volume.append([shard_of(2)])
        with pytest.raises(VolumeFailed, match="restarted, or reopened its volume"):
            volume.sync()
        with pytest.raises(VolumeFailed):
            volume.usage()
        assert second.locate(shard_of(2).key) is None


def test_a_worker_that_is_slow_to_answer_at_first_is_waited_for(tmp_path: Path, exits: ExitStack) -> None:
    local = open_volume(tmp_path / "volume")
    exits.callback(local.close)
    with served(local) as address:
        port = int(address.rpartition(":")[2])
    with pytest.raises(VolumeFailed, match="does not answer"):
        identify_process(address, "w1")
    volume = connect(exits, address)
    names: list[str] = []
    asking = threading.Thread(target=lambda: names.append(volume.instance()))
    asking.start()
    asking.join(0.5)
    assert asking.is_alive()
    with served(local, "instance 1", port):
        asking.join()
    assert names == ["instance 1"]


def _await_answer(address: str) -> None:
    """Return once a process answers at an address."""
    while True:
        with suppress(VolumeFailed):
            identify_process(address, "w1")
            return


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | None]]:
    """Work under way in a thread, and how it ended (None: well)."""
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


@every_call
def test_nobody_is_there(exits: ExitStack, tmp_path: Path, call: Callable[[ShardStore], object]) -> None:
    volume = connect(exits, f"unix:{tmp_path / 'nobody'}")
    with pytest.raises(VolumeFailed, match="w1"):
        call(volume)


def test_a_killed_server_fails_every_call(exits: ExitStack, tmp_path: Path) -> None:
    local = open_volume(tmp_path / "volume")
    with served(local) as address:
        volumes = {name: connect(exits, address) for name in CALLS}
        for volume in volumes.values():
            _append_and_sync(volume, shard_of(1))
    local.close()
    for name, call in CALLS.items():
        with pytest.raises(VolumeFailed, match="w1"):
            call(volumes[name])


def test_a_killed_server_fails_those_who_wait_for_it(exits: ExitStack) -> None:
    """Syncs, appends beyond what is queued, and reads of what is on its way."""
    asked, over = threading.Event(), threading.Event()

    def hang(_method: str, _request: bytes, _caller: Caller) -> bytes:
        asked.set()
        over.wait()
        return b""

    with made_up_server(hang) as (address, server):
        exits.callback(over.set)
        volume = connect(exits, address)
        sent = volume.start_sync([shard_of(1)])
        asked.wait()
        for seed in range(10, 13):
            volume.append([shard_of(seed, 5 * MIB)])
        queued = volume.start_sync([shard_of(3)])
        waiting = [
            in_thread(sent.wait),
            in_thread(queued.wait),
            in_thread(volume.sync),
            in_thread(lambda: _append_and_sync(volume, shard_of(4, 5 * MIB))),
            in_thread(lambda: volume.read(key_of(1))),
            in_thread(lambda: volume.keys().__next__()),
        ]
        stopping, _ = in_thread(lambda: server.stop(0.0))
        for thread, _ in waiting:
            thread.join()
        over.set()
        stopping.join()
    assert all(isinstance(error, VolumeFailed) for _, (error,) in waiting)


def test_a_sync_ends_after_what_was_sent_before_it(exits: ExitStack) -> None:
    """A worker may answer out of order, and other pushes count on shards that are on their way."""
    over, asked, answered = threading.Event(), threading.Event(), threading.Event()

    def hang_at_first(_method: str, _request: bytes, _caller: Caller) -> bytes:
        if not asked.is_set():
            asked.set()
            over.wait()
        else:
            answered.set()
        return b""

    with made_up_server(hang_at_first) as (address, _), ExitStack() as first:
        first.callback(over.set)
        volume = connect(exits, address)
        before = volume.start_sync([shard_of(1)])
        asked.wait()
        after = volume.start_sync([shard_of(2)])
        answered.wait()
        assert not after.ended_within(0.3)
        needed = [volume.needs_sync]
        over.set()
        before.wait()
        after.wait()
        assert [*needed, volume.needs_sync] == [True, False]


@pytest.mark.parametrize("synced", [False, True], ids=["an append", "a sync with shards"])
def test_a_sync_fails_if_what_was_sent_before_it_is_refused_later(exits: ExitStack, *, synced: bool) -> None:
    """A worker may answer out of order, so the sync's own answer does not say that all is well."""
    over, asked, answered = threading.Event(), threading.Event(), threading.Event()

    def refuse_late(_method: str, _request: bytes, _caller: Caller) -> bytes:
        if not asked.is_set():
            asked.set()
            over.wait()
            raise Refusal(b"StoreFull\0no space")
        answered.set()
        return b""

    with made_up_server(refuse_late) as (address, _), ExitStack() as first:
        first.callback(over.set)
        volume = connect(exits, address)
        before: Ticket | None = None
        if synced:
            before = volume.start_sync([shard_of(1)])
        else:
            volume.append([shard_of(1)])
        asked.wait()
        tickets = [volume.start_sync([shard_of(2)]), volume.start_sync()]
        answered.wait()
        assert not tickets[0].ended_within(0.3)
        over.set()
        for ticket in (*tickets, *([before] if before else [])):
            with pytest.raises(StoreFull):
                ticket.wait()
        volume.sync()  # all were told
        assert not volume.needs_sync


def test_a_volume_needs_a_sync_until_all_that_was_sent_is_durable(exits: ExitStack) -> None:
    refusing = threading.Event()

    def answer(_method: str, _request: bytes, _caller: Caller) -> bytes:
        if refusing.is_set():
            raise Refusal(b"StoreFull\0no space")
        return b""

    with made_up_server(answer) as (address, _):
        volume = connect(exits, address)
        needed = [volume.needs_sync]  # the worker may have shards of an earlier connection
        volume.sync()
        needed.append(volume.needs_sync)
        volume.append([shard_of(1)])
        needed.append(volume.needs_sync)
        refusing.set()
        with pytest.raises(StoreFull):
            volume.sync()
        needed.append(volume.needs_sync)
        refusing.clear()
        volume.sync()
        needed.append(volume.needs_sync)
    assert needed == [True, False, True, True, False]


@every_call
def test_a_server_that_hangs(exits: ExitStack, call: Callable[[ShardStore], object]) -> None:
    """Calls end when their time is up; walks, which may take long, when the worker is given up."""
    over, asked = threading.Event(), threading.Event()

    def hang(_method: str, _request: bytes, _caller: Caller) -> bytes:
        asked.set()
        over.wait()
        return b""

    with made_up_server(hang) as (address, _), ExitStack() as first:
        first.callback(over.set)  # whatever happens, or the server would never end
        volume = connect(exits, address, timeout_s=0.3)
        if call in [CALLS[name] for name in (*STREAMED, "compact")]:
            thread, outcome = in_thread(lambda: call(volume))
            asked.wait()
            volume.abandon("its heartbeats stopped")
            thread.join()
            assert isinstance(outcome[0], VolumeFailed)
        else:
            with pytest.raises(VolumeFailed, match=r"took longer than 0\.3 s"):
                call(volume)


def test_a_worker_given_up_just_before_a_frame_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up between the look whether it can be used and the sending."""
    volume = RemoteVolume("127.0.0.1:1", "w1")
    send = ShardCalls.send

    def give_up_first(calls: ShardCalls, *arguments: Any) -> object:
        volume.abandon("its heartbeats stopped")
        return send(calls, *arguments)

    monkeypatch.setattr(ShardCalls, "send", give_up_first)
    ticket = volume.start_sync([shard_of(1)])
    with pytest.raises(VolumeFailed, match="heartbeats stopped"):
        ticket.wait()


# -- servers that lie ------------------------------------------------------------------------------


@every_call
def test_a_server_that_answers_nonsense(exits: ExitStack, call: Callable[[ShardStore], object]) -> None:
    with made_up_server(lambda *_: b"\xff" * 7) as (address, _):
        volume = connect(exits, address)
        with pytest.raises(VolumeFailed, match="w1 answers nonsense"):
            call(volume)


@every_call
def test_a_server_that_answers_more_than_can_be(exits: ExitStack, call: Callable[[ShardStore], object]) -> None:
    with made_up_server(lambda *_: bytes(MESSAGE_BYTES_MAX + 2 * MIB)) as (address, _):
        volume = connect(exits, address)
        with pytest.raises(VolumeFailed):
            call(volume)


@pytest.fixture(scope="module")
def liar() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server, and its answer to everything, to be set."""
    answers = [b""]
    with made_up_server(lambda *_: answers[0]) as (address, _):
        yield address, answers


ANSWERS = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([1, 8, 9, 12, 25, 36, 45, 81, 101, 145]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    ),
    st.binary(max_size=60).map(lambda raw: b"\1" + raw),
    st.binary(min_size=101, max_size=101).map(lambda raw: b"\1" + raw[1:]),
)


@every_call
@given(answer=ANSWERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_server_answers_is_a_value_or_a_failed_volume(
    liar: tuple[str, list[bytes]], call: Callable[[ShardStore], object], answer: bytes
) -> None:
    address, answers = liar
    answers[0] = answer
    with ExitStack() as exits:
        volume = connect(exits, address)
        with suppress(VolumeFailed, CorruptShard):
            call(volume)


@given(answer=st.binary(min_size=9, max_size=9), verdicts=st.binary(max_size=5))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_made_up_verdicts(liar: tuple[str, list[bytes]], answer: bytes, verdicts: bytes) -> None:
    address, answers = liar
    answers[0] = answer
    with ExitStack() as exits:
        verification = connect(exits, address).verify(lambda _count: None)
        answers[0] = verdicts
        asked = [key_of(1), key_of(2)]
        if len(verdicts) == 2 and max(verdicts) <= max(Verdict):
            assert verification.judge(asked) == list(verdicts)
        else:
            with pytest.raises(VolumeFailed):
                verification.judge(asked)
        with suppress(VolumeFailed):
            list(verification.quarantine_rest())


NESTED = b"\x81\xa1x" + b"\x91" * 100_000


@pytest.mark.parametrize(
    "answer",
    [NESTED, b"\x81\xa1\xff\0", b"\x85", msgspec.msgpack.encode({"shards": 1}), b"\xc0", b"\xdd\xff\xff\xff\xff"],
    ids=["nested deeply", "not UTF-8", "cut", "too little", "nil", "claims much"],
)
def test_made_up_usage(exits: ExitStack, answer: bytes) -> None:
    with made_up_server(lambda *_: answer) as (address, _), pytest.raises(VolumeFailed, match="nonsense"):
        connect(exits, address).usage()


def test_a_shard_that_does_not_match_its_digest(exits: ExitStack) -> None:
    answer = b"\1" + (400).to_bytes(8, "little") + bytes(32) + (3).to_bytes(4, "little") + b"abc"
    with made_up_server(lambda *_: answer) as (address, _), pytest.raises(CorruptShard, match="w1 sent a shard"):
        connect(exits, address).read(key_of(1))


PASSING = (VolumeUnavailable, VolumeReadOnly, TicketRefused)
FULL = (StoreFull, QuotaExceeded, WorkerReadOnly)


@pytest.mark.parametrize("kind", [kind for kind in status._CODES if kind not in (*FULL, *PASSING)])
def test_every_error_but_a_full_disk_is_a_failed_volume(exits: ExitStack, kind: type[StorageError]) -> None:
    def fail(_method: str, _request: bytes, _caller: Caller) -> bytes:
        raise Refusal(f"{kind.__name__}\0because".encode())

    with made_up_server(fail) as (address, _):
        for name in ("append", "locate", "fetch", "remove", "keys", "usage"):
            with pytest.raises(VolumeFailed, match=r"because|lost|does not answer|took longer"):
                CALLS[name](connect(exits, address))


@pytest.mark.parametrize("kind", PASSING)
@every_call
def test_what_a_worker_cannot_do_now_is_no_failure(
    exits: ExitStack, kind: type[StorageError], call: Callable[[ShardStore], object]
) -> None:
    def refuse(_method: str, _request: bytes, _caller: Caller) -> bytes:
        raise Refusal(f"{kind.__name__}\0too many open files".encode())

    with made_up_server(refuse) as (address, _):
        volume = connect(exits, address)
        for _ in range(2):  # it remains in use
            with pytest.raises(VolumeUnavailable, match="w1: too many open files"):
                call(volume)


def test_usage_travels_whole(exits: ExitStack) -> None:
    usage = VolumeUsage(1, 2, 3, 4, 5)
    with made_up_server(lambda *_: msgspec.msgpack.encode(usage)) as (address, _):
        assert connect(exits, address).usage() == usage
