"""Pushes beside a worker that takes what it is sent slowly, or not at all for a while."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import cast

import pytest

from storage.erasure import ErasureProfile
from storage.fleet.layout import Layout
from storage.fleet.members import Member
from storage.formats.manifest import RootNode
from storage.keys import Kind, ShardKey, StripeKey, shard_key, stripe_key
from storage.limits import KIB, MIB
from storage.runtime import Runtime
from storage.shards import LocalVolume, Location, Shard
from storage.stripes.stripes import StripeStore
from storage.write.completing import Appended, make_batch_whole
from storage.write.pending import PendingVersion
from storage.write.redundancy import make_whole
from storage.write.target import PushTarget
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.worker_fleet import WorkerFleet
from tests.pool.helpers import IDENTITY, served
from tests.simulation.model import chunks_of
from tests.simulation.pool import CHUNK_BYTES, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.storage.helpers import content, digest

SLOW = 0
WORKERS = 6
PATIENCE_S = 60.0  # who waits for the slow worker sees it go away in the end


class SlowVolume(LocalVolume):
    """A volume whose appends wait while a gate is closed, and everything else while another one is."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        super().__init__(path, IDENTITY)
        self.gate, self.others = threading.Event(), threading.Event()
        self.looks = 0  # how often it was asked for shards
        self.on_read: Callable[[], object] = lambda: None
        self.open()

    def open(self) -> None:
        """Open both gates."""
        self.gate.set()
        self.others.set()

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        self.looks += 1
        self.others.wait()
        return super().missing(keys)

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        self.looks += 1
        self.others.wait()
        return super().locate_all(keys)

    def fetch_all(self, wanted: Sequence[tuple[ShardKey, int]]) -> Sequence[memoryview | None]:
        self.on_read()
        return super().fetch_all(wanted)

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        self.gate.wait()
        super().append(shards, urgent=urgent)


class Pool:
    """What writes in a pool, with volumes that are served as workers serve them."""

    def __init__(self, directory: Path, exits: ExitStack) -> None:
        self.fleet = WorkerFleet()
        members = [Member(slot, f"w{slot}", "", 1 << 40) for slot in range(WORKERS)]
        self.fleet.use_layouts(Layout.first(members, WORKERS))
        self.volumes = [SlowVolume(directory / str(slot)) for slot in range(WORKERS)]
        for volume in self.volumes:
            exits.callback(volume.close)
        for slot, volume in enumerate(self.volumes):
            address = exits.enter_context(served(volume, path=directory / f"s{slot}"))
            self.fleet.attach(slot, RemoteVolume(address, f"w{slot}", timeout_s=PATIENCE_S))
        self.stripes = StripeStore(self.fleet, Runtime())
        exits.callback(self.fleet.close)
        exits.callback(self.stripes.close)
        for volume in self.volumes:
            exits.callback(volume.open)

    def push(self, objects: Sequence[bytes]) -> list[StripeKey]:
        """Store objects as a push does, until they could be committed."""
        since = self.fleet.epoch()
        stripes = [stripe_key(Kind.CHUNK, digest(one), 4, 6) for one in objects]
        for stripe, one in zip(stripes, objects, strict=True):
            self.stripes.put(stripe, one, len(one))
        self.fleet.sync_most()
        make_whole(self.stripes, lambda: stripes, since)
        return stripes

    def on_others(self, stripe: StripeKey) -> Counter[int]:
        """Which shards of a stripe the workers but the slow one have, by their index."""
        others = self.volumes[SLOW + 1 :]
        return Counter(slot for slot in range(6) for one in others if one.locate(shard_key(stripe, slot)) is not None)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with ExitStack() as exits:
        yield Pool(tmp_path, exits)


def test_a_push_does_not_read_what_has_not_reached_a_slow_worker(pool: Pool) -> None:
    pool.volumes[SLOW].gate.clear()
    pool.volumes[SLOW].others.clear()
    stripes = pool.push([content(seed, 64 * KIB) for seed in range(12)])
    assert all(pool.on_others(stripe) == Counter(range(6)) for stripe in stripes)
    pool.fleet.require_writable(ErasureProfile(4, 6))
    assert pool.fleet.state(SLOW) == "ok"


def test_many_stripes_are_looked_up_together_again_if_stores_come_or_go_meanwhile(pool: Pool) -> None:
    objects = [content(seed, 64 * KIB) for seed in range(4)]
    stripes = pool.push(objects)
    pool.volumes[SLOW].remove([shard_key(stripe, slot) for stripe in stripes for slot in range(6)])
    epoch = pool.fleet.epoch()
    for volume in pool.volumes:
        volume.on_read = pool.fleet.note_refusal  # a new epoch
    for volume in pool.volumes:
        volume.looks = 0
    made = pool.stripes.heal_all(stripes, at_once=True)
    assert made == [(1, 16 * KIB)] * 4
    assert pool.fleet.epoch() != epoch
    assert max(volume.looks for volume in pool.volumes) < len(stripes) + 2


def large_objects(count: int) -> list[bytes]:
    block = content(1, 4 * MIB - 8)
    return [number.to_bytes(8, "big") + block for number in range(count)]


def test_a_push_does_not_wait_until_a_slow_worker_has_room_for_more(pool: Pool) -> None:
    pool.volumes[SLOW].gate.clear()
    stripes = pool.push(large_objects(24))
    assert all(pool.on_others(stripe) == Counter(range(6)) for stripe in stripes)
    assert pool.fleet.slow() == {SLOW}
    small = pool.push([b"small"])  # its lane is still full
    assert pool.on_others(small[0]) == Counter(range(6))
    pool.volumes[SLOW].gate.set()
    while pool.fleet.slow():
        time.sleep(0.05)
        pool.fleet.forgive()  # from time to time, also if nobody writes
    assert pool.fleet.state(SLOW) == "ok"
    assert any(SLOW in pool.fleet.targets(stripe) for stripe in stripes)


def shards_of_the_slow_worker(pool: Pool, count: int, size: int) -> list[Shard]:
    """As many shards of different stripes that belong to the slow worker."""
    stripes = [stripe_key(Kind.CHUNK, digest(number.to_bytes(8, "big")), 4, 6) for number in range(count)]
    keys = [shard_key(stripe, pool.fleet.targets(stripe).index(SLOW)) for stripe in stripes]
    payload = content(1, size)
    return [Shard(key, 4 * size, digest(payload), payload) for key in keys]


def ends_while_the_slow_worker_waits(pool: Pool, write: Callable[[], object]) -> bool:
    pool.volumes[SLOW].gate.clear()
    thread = threading.Thread(target=write)
    thread.start()
    thread.join(PATIENCE_S / 2)
    ended = not thread.is_alive()
    pool.volumes[SLOW].gate.set()
    thread.join()
    return ended


def test_a_sync_does_not_wait_for_a_slow_worker_that_alone_was_given_something(pool: Pool) -> None:
    pool.push([b"before"])

    def write() -> None:
        pool.fleet.append({SLOW: shards_of_the_slow_worker(pool, 1, 100)})
        pool.fleet.sync_most()

    assert ends_while_the_slow_worker_waits(pool, write)


def test_shards_for_a_slow_worker_alone_go_to_others_if_it_has_no_room(pool: Pool) -> None:
    pool.push([b"before"])
    shards = shards_of_the_slow_worker(pool, 48, MIB)
    assert ends_while_the_slow_worker_waits(pool, lambda: pool.fleet.append({SLOW: shards}))
    pool.fleet.sync()
    assert any(volume.locate(shard.key) is not None for volume in pool.volumes[SLOW + 1 :] for shard in shards)


def test_a_write_waits_for_room_if_too_few_others_are_left(pool: Pool) -> None:
    slow = pool.volumes[SLOW : SLOW + 3]
    for volume in slow:
        volume.gate.clear()
    pushed: list[StripeKey] = []
    thread = threading.Thread(target=lambda: pushed.extend(pool.push(large_objects(24))))
    thread.start()
    thread.join(2.0)
    assert thread.is_alive()
    for volume in slow:
        volume.gate.set()
    thread.join()
    assert all(len(pool.stripes.read(stripe)) == 4 * MIB for stripe in pushed)
    assert len(pushed) == 24


def test_a_push_leaves_to_repair_what_a_worker_lacks_that_is_slow_no_longer(pool: Pool) -> None:
    pool.push([b"before"])
    pool.volumes[SLOW].gate.clear()
    pool.push([b"late"])
    assert pool.fleet.slow() == {SLOW}
    since = pool.fleet.epoch()
    objects = [content(seed, 64 * KIB) for seed in range(12)]
    stripes = [stripe_key(Kind.CHUNK, digest(one), 4, 6) for one in objects]
    for stripe, one in zip(stripes, objects, strict=True):
        pool.stripes.put(stripe, one, len(one))
    pool.volumes[SLOW].gate.set()
    while pool.fleet.slow():
        time.sleep(0.05)
        pool.fleet.forgive()
    looks = pool.volumes[SLOW].looks
    pool.fleet.sync_most()
    assert make_whole(pool.stripes, lambda: stripes, since) == since
    assert all(pool.on_others(stripe) == Counter(range(6)) for stripe in stripes)
    assert pool.volumes[SLOW].looks == looks
    assert all(pool.volumes[SLOW].locate(shard_key(stripe, slot)) is None for stripe in stripes for slot in range(6))


def test_what_a_late_worker_has_made_durable_is_not_made_again(pool: Pool) -> None:
    before = pool.fleet.epoch()
    stripes = pool.push([content(seed, 64 * KIB) for seed in range(12)])
    since = pool.fleet.epoch()
    assert since == before
    pool.volumes[SLOW].gate.clear()
    record = stripe_key(Kind.VERSION, digest(b"record"), 1, 6)
    shards = pool.stripes.by_volume(record, pool.stripes.shards_of(record, b"record", 6))
    durable = pool.fleet.append_and_sync(shards)
    assert pool.fleet.slow() == {SLOW}
    assert pool.on_others(record) == Counter(range(6))
    looks = [volume.looks for volume in pool.volumes]
    version = waiting_version(since, stripes)
    make_batch_whole(pool.stripes, [version], Appended(shards, durable, since))
    assert [volume.looks for volume in pool.volumes] == looks
    assert all(pool.on_others(stripe).total() == 5 for stripe in stripes)
    pool.fleet.set_offline(SLOW, "gone")
    make_batch_whole(pool.stripes, [version], Appended(shards, durable, since))
    assert all(pool.on_others(stripe) == Counter(range(6)) for stripe in stripes)


def test_what_a_late_worker_has_not_made_durable_is_made_again(pool: Pool) -> None:
    since = pool.fleet.epoch()
    stripes = pool.push([content(seed, 64 * KIB) for seed in range(12)])
    pool.volumes[SLOW].remove([shard_key(stripe, slot) for stripe in stripes for slot in range(6)])
    pool.volumes[SLOW].gate.clear()
    pool.push([b"late"])
    assert pool.fleet.slow() == {SLOW}
    version = waiting_version(since, stripes)
    version.written, version.stripes = None, stripes  # nothing says that they were durable before
    make_batch_whole(pool.stripes, [version], Appended({}, {}, since))
    assert all(pool.on_others(stripe) == Counter(range(6)) for stripe in stripes)


def waiting_version(epoch: tuple[int, ...], stripes: list[StripeKey]) -> PendingVersion:
    """A version of a large file that consists of these stripes, which are durable in that epoch."""
    root = cast("RootNode", None)
    target = cast("PushTarget", None)
    return PendingVersion(target, root, [], [], {}, None, None, epoch, written=lambda: stripes)


@pytest.mark.parametrize("mends", [False, True])
def test_what_a_push_left_to_repair_is_known_until_it_is_mended(*, mends: bool) -> None:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), WORKERS, zones=1)
        fleet, worker = cluster.pool.fleet, cluster.workers[SLOW]
        slot = next(slot for slot in fleet.slots if fleet.name(slot) == worker.name)

        def mend() -> None:
            for _ in range(6):
                cluster.pass_time(2.0)
                cluster.pool.repair_scheduler.mend()

        def source() -> Iterator[bytes]:
            yield Random(2).randbytes(3 * CHUNK_BYTES)
            while fleet.slow():
                cluster.pass_time(2.0)
                fleet.forgive()
            if mends:
                mend()
                assert fleet.is_mended()
            yield Random(3).randbytes(3 * CHUNK_BYTES)

        mend()
        for _ in range(8):
            fleet.note_unread(slot)
        assert fleet.slow() == {slot}
        mend()
        before = set(worker.volume.records_by_key)
        cluster.pool.store.push(source(), filename="f", user_id="u")
        stripes = chunks_of(Random(2).randbytes(3 * CHUNK_BYTES), cluster.profile)
        keys = {shard_key(stripe, index) for stripe in stripes for index in range(6)}
        assert not keys & (worker.volume.records_by_key.keys() - before)
        assert not fleet.is_mended()
        assert fleet.losses_survivable(cluster.profile) == 1  # one of the others has two shards of each stripe
        mend()
        assert fleet.is_mended()
        assert fleet.losses_survivable(cluster.profile) == 2
        assert len(keys & worker.volume.records_by_key.keys()) == len(set(stripes))
