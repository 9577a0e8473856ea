"""Workers that say what is not so: nothing is lost by them, and they are found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle
from random import Random

import pytest

from storage import ErasureProfile, RebuildReport
from storage.batching import batched
from storage.errors import DataLossError, InvalidArgument
from storage.formats.manifest import encode_node, encode_root, object_id
from storage.formats.tombstones import Tombstone, encode_tombstone
from storage.formats.version_records import RECORD_FORMAT, VersionRecord
from storage.formats.versions import read_version, seal
from storage.keys import ID_BYTES, Kind, ShardKey, shard_key, stripe_key
from storage.maintenance.round_robin import RECORD_BYTES_MAX
from storage.shards import Location, Shard, VolumeFailed, VolumeUnavailable
from storage.shards.port import Verdict
from storage.stripes.stripes import metadata_stripe
from taskworker.pool.membership import WorkerLoad, WorkerState
from taskworker.pool.trial import first_allowance
from tests.simulation.catalog import Database
from tests.simulation.disk import MemoryVolume
from tests.simulation.liars import forgeries
from tests.simulation.model import chunks_of
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker
from tests.storage.helpers import digest

OUT = {WorkerState.DRAINING, WorkerState.DRAINED}
CONTENTS = {f"f{seed}": Random(seed).randbytes(150_000 + seed) for seed in range(6)}


class HollowVolume(MemoryVolume):
    """Takes everything, keeps nothing, and says that it has all of it in good order."""

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        pass

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return []

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        return [Location(1, 128, 16_384, 65_536) for _ in keys]

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return [Verdict.GOOD] * len(keys)


class ForgingVolume(MemoryVolume):
    """Keeps other content than it is given, under digests that fit."""

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        super().append(shards, urgent=urgent)
        for shard in shards:
            self.lie(shard.key, Random(1), None)


class DenyingVolume(MemoryVolume):
    """Keeps what it is given, and says that it has nothing."""

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return list(range(len(keys)))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)


def push_all(cluster: Cluster) -> dict[str, str]:
    return {name: cluster.pool.store.push(data, filename=name, user_id="u").file_id for name, data in CONTENTS.items()}


def add(cluster: Cluster, volume: type[MemoryVolume]) -> Worker:
    worker = cluster.add_worker()
    worker.volume = volume(f"volume of {worker.name}", cluster.wounds)
    worker.listen()
    return worker


def settle(cluster: Cluster, rounds: int = 6) -> None:
    for _ in range(rounds):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def honest_slots(cluster: Cluster, liars: list[Worker], data: bytes) -> list[int]:
    """The fewest shards of a chunk of these contents that honest workers hold, of each chunk."""
    others = [worker.volume for worker in cluster.workers if worker not in liars]
    return [
        sum(any(volume.is_durable(shard_key(stripe, slot)) for volume in others) for slot in range(6))
        for stripe in chunks_of(data, cluster.profile)
    ]


def state_of(cluster: Cluster, worker: Worker) -> WorkerState:
    return next(view.state for view in cluster.pool.view().workers if view.record.worker == worker.name)


@pytest.mark.parametrize("kind", [HollowVolume, ForgingVolume])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_no_copy_is_dropped_for_one_that_is_not_there(cluster: Cluster, kind: type[MemoryVolume], count: int) -> None:
    files = push_all(cluster)
    liars = [add(cluster, kind) for _ in range(count)]
    settle(cluster)
    for name, data in CONTENTS.items():
        assert min(honest_slots(cluster, liars, data)) == 6
        assert cluster.pool.store.get(files[name], user_id="u") == data
    assert {state_of(cluster, liar) for liar in liars} <= {WorkerState.DISTRUSTED, *OUT}
    names = {liar.name for liar in liars}
    assert not any(record.worker in names and not record.allowed for record in cluster.pool.membership.records)
    assert all(state_of(cluster, worker) is WorkerState.ALIVE for worker in cluster.workers[:6])


@pytest.mark.parametrize("kind", [HollowVolume, ForgingVolume])
def test_what_is_pushed_after_liars_joined_does_not_depend_on_them(cluster: Cluster, kind: type[MemoryVolume]) -> None:
    push_all(cluster)
    liars = [add(cluster, kind) for _ in range(6)]
    settle(cluster)
    data = Random(99).randbytes(300_000)
    version = cluster.pool.store.push(data, filename="new", user_id="u")
    assert min(honest_slots(cluster, liars, data)) == 6
    assert cluster.pool.store.get(version.file_id, user_id="u") == data


@pytest.mark.parametrize("size", [9_000, 150_000])
@pytest.mark.parametrize("was_read", [True, False])
def test_content_whose_shards_were_poisoned_is_made_anew_by_the_next_push_of_it(
    cluster: Cluster, size: int, was_read: bool
) -> None:
    """More wrong shards than may be lost lie under the right keys when somebody else pushes the same content."""
    store, data = cluster.pool.store, Random(7).randbytes(size)
    poisoned = store.push(data, filename="first", user_id="mallory")
    for stripe in chunks_of(data, cluster.profile):
        keys = {shard_key(stripe, slot) for slot in range(6)}
        for worker in cluster.workers[:4]:
            for key in keys & worker.volume.records_by_key.keys():
                worker.volume.lie(key, Random(1), None)
    if was_read:
        with pytest.raises(DataLossError):
            store.get(poisoned.file_id, user_id="mallory")
    ids = store.chunk_ids(poisoned.file_id, user_id="mallory")
    assert all(store.missing_chunks(ids, user_id="mallory"))
    version = store.push(data, filename="second", user_id="victim")
    assert store.get(version.file_id, user_id="victim") == data
    assert store.get(poisoned.file_id, user_id="mallory") == data
    assert not any(store.missing_chunks(ids, user_id="mallory"))


def test_liars_are_named_and_drained(cluster: Cluster) -> None:
    for seed in range(60):
        cluster.pool.store.push(Random(seed).randbytes(100), filename=f"f{seed}", user_id="u")
    liar = add(cluster, HollowVolume)
    settle(cluster)
    assert state_of(cluster, liar) in {WorkerState.DISTRUSTED, *OUT}
    for _ in range(200):
        cluster.pool.auditor.audit()
    settle(cluster)
    assert state_of(cluster, liar) in OUT
    assert liar.name not in {member.worker for member in cluster.pool.layouts[0].members}
    assert any(liar.name in event.text for event in cluster.pool.view().events if event.kind == "distrusted")


def test_audits_find_a_worker_that_lost_what_it_says_it_has(cluster: Cluster) -> None:
    push_all(cluster)
    worker = cluster.workers[2]
    hollow = HollowVolume(worker.volume.volume_id, cluster.wounds)
    worker.volume.wounded()
    worker.volume = hollow
    worker.listen()
    assert state_of(cluster, worker) is WorkerState.ALIVE, "it answers everything"
    for _ in range(10):
        cluster.pool.auditor.audit()
    assert state_of(cluster, worker) is WorkerState.DISTRUSTED
    assert all(state_of(cluster, one) is WorkerState.ALIVE for one in cluster.workers if one is not worker)
    audit = next(view for view in cluster.pool.view().work if view.name == "audit")
    assert "were not what they should be" in audit.note


def test_audits_find_nothing_wrong_where_nothing_is(cluster: Cluster) -> None:
    push_all(cluster)
    assert all(cluster.pool.auditor.audit() > 0 for _ in range(10))
    assert not cluster.pool.fleet.lies()


def test_a_new_member_gets_its_part_in_steps(cluster: Cluster) -> None:
    for seed in range(60):
        cluster.pool.store.push(Random(seed).randbytes(100), filename=f"f{seed}", user_id="u")
    worker = cluster.add_worker()
    cluster.pass_time(2.0)
    slot = next(record.slot for record in cluster.pool.membership.records if record.worker == worker.name)
    first = cluster.pool.layouts[0].shares()[slot]
    assert 0 < first < 1 / 7 / 4
    settle(cluster)
    assert cluster.pool.layouts[0].shares()[slot] == pytest.approx(1 / 7, abs=0.01)
    assert any(event.kind == "proved" for event in cluster.pool.view().events)


def test_as_many_new_members_as_there_are_old_ones_never_hold_more_than_can_be_done_without(cluster: Cluster) -> None:
    push_all(cluster)
    for _ in range(6):
        cluster.add_worker()
    cluster.pass_time(2.0)
    new = {record.slot for record in cluster.pool.membership.records if record.allowed}
    assert len(new) == 6
    for seed in range(300):
        stripe = stripe_key(Kind.CHUNK, Random(seed).randbytes(32), 4, 6)
        assert sum(slot in new for slot in cluster.pool.fleet.targets(stripe)) <= 2


def test_a_capacity_that_nobody_has_counts_like_that_of_the_others(cluster: Cluster) -> None:
    push_all(cluster)
    records = cluster.pool.membership.records
    assert first_allowance(1 << 60, records) == first_allowance(records[0].capacity, records)


class ForgettingVolume(MemoryVolume):
    """Keeps nothing, and says so."""

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        pass


def test_a_worker_that_forgets_what_it_made_durable_is_not_believed(cluster: Cluster) -> None:
    for seed in range(60):
        cluster.pool.store.push(Random(seed).randbytes(100), filename=f"f{seed}", user_id="u")
    liar = add(cluster, ForgettingVolume)
    settle(cluster)
    assert state_of(cluster, liar) in {WorkerState.DISTRUSTED, *OUT}


@pytest.mark.parametrize("kind", [ForgettingVolume, ForgingVolume])
def test_a_worker_that_was_honest_and_only_says_that_it_made_shards_is_found(
    cluster: Cluster, kind: type[MemoryVolume]
) -> None:
    files = push_all(cluster)
    settle(cluster)
    cluster.add_worker()
    settle(cluster)
    liar, lost = cluster.workers[0], cluster.workers[1]
    assert cluster.pool.fleet.makers(), "they are told to make shards by themselves"
    volume = kind(liar.volume.volume_id, cluster.wounds)
    volume.records_by_key, volume.durable = liar.volume.records_by_key, liar.volume.durable
    liar.volume = volume
    liar.listen()
    lost.stop()
    settle(cluster, 30)
    assert state_of(cluster, liar) in {WorkerState.DISTRUSTED, *OUT}
    for name, data in CONTENTS.items():
        assert min(honest_slots(cluster, [liar, lost], data)) >= 5
        assert cluster.pool.store.get(files[name], user_id="u") == data


def test_a_worker_that_denies_what_it_has_costs_no_copies(cluster: Cluster) -> None:
    files = push_all(cluster)
    liar = add(cluster, DenyingVolume)
    settle(cluster)
    for name, data in CONTENTS.items():
        assert min(honest_slots(cluster, [liar], data)) >= 5
        assert cluster.pool.store.get(files[name], user_id="u") == data


def test_honest_workers_are_given_shards_and_former_copies_are_dropped(cluster: Cluster) -> None:
    push_all(cluster)
    worker = cluster.add_worker()
    settle(cluster)
    held: list[ShardKey] = [key for one in cluster.workers for key in one.volume.records_by_key]
    assert len(held) == len(set(held)), "copies were left over"
    assert worker.volume.records_by_key
    assert state_of(cluster, worker) is WorkerState.ALIVE


class StretchingVolume(MemoryVolume):
    """Says that every object is as large as can be."""

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        return [None if place is None else place._replace(object_length=1 << 24) for place in super().locate_all(keys)]


def test_a_worker_that_misstates_lengths_is_found_and_hinders_nobody(cluster: Cluster) -> None:
    files = push_all(cluster)
    liar, lost = cluster.workers[0], cluster.workers[1]
    stretching = StretchingVolume(liar.volume.volume_id, cluster.wounds)
    stretching.records_by_key = liar.volume.records_by_key
    liar.volume = stretching
    liar.listen()
    lost.stop()
    settle(cluster, 30)
    for name, data in CONTENTS.items():
        assert min(honest_slots(cluster, [liar, lost], data)) >= 4
        assert cluster.pool.store.get(files[name], user_id="u") == data
    slot = next(record.slot for record in cluster.pool.membership.records if record.worker == liar.name)
    assert set(cluster.pool.fleet.lies()) == {slot}


def test_a_worker_that_loses_what_it_is_given_hour_after_hour_is_not_believed(cluster: Cluster) -> None:
    push_all(cluster)
    fleet = cluster.pool.fleet
    for _ in range(20):
        fleet.note_made(3, 10 << 20)
    assert fleet.trusts(3)
    for _ in range(20):
        fleet.note_made(3, 10 << 20)
    assert not fleet.trusts(3)
    assert fleet.trusts(2)


def test_what_an_honest_worker_can_lack_counts_earlier_versions_too(cluster: Cluster) -> None:
    push_all(cluster)
    for worker in cluster.workers:
        held = 1 << 60 if worker is cluster.workers[0] else 600 << 20  # one of them makes it up
        assert cluster.pool.heartbeat(worker.name, worker.instance, WorkerLoad(bytes_live=held))
    fleet = cluster.pool.fleet
    fleet.note_made(3, 600 << 20)  # came back empty
    assert fleet.trusts(3)
    for _ in range(3):
        fleet.note_made(3, 600 << 20)
    assert not fleet.trusts(3)


def test_a_worker_that_holds_what_others_do_as_they_go_and_come_is_believed(cluster: Cluster) -> None:
    """Two that go again and again must not make the others, who are given their shards each time, pass for liars."""
    push_all(cluster)
    fleet, held = cluster.pool.fleet, 600 << 20
    slots = {record.worker: record.slot for record in cluster.pool.membership.records}
    flapping, steady = cluster.workers[:2], slots[cluster.workers[2].name]
    for _ in range(12):
        for worker in cluster.workers:
            assert cluster.pool.heartbeat(worker.name, worker.instance, WorkerLoad(bytes_live=held))
        for worker in flapping:
            fleet.set_offline(slots[worker.name], "gone")
        fleet.note_made(steady, len(flapping) * held // (len(cluster.workers) - len(flapping)))
        settle(cluster)  # they join again
    assert fleet.trusts(steady)
    for _ in range(40):
        fleet.note_made(steady, held)
    assert not fleet.trusts(steady)


def test_a_liar_that_cannot_be_done_without_holds_up_nobody(cluster: Cluster) -> None:
    """As it is not believed anyway, further lies are no news."""
    push_all(cluster)
    settle(cluster)
    pool, worker = cluster.pool, cluster.workers[2]
    slot = next(record.slot for record in pool.membership.records if record.worker == worker.name)
    for _ in range(3):
        pool.fleet.note_lie(slot, b"", "lies")
    assert state_of(cluster, worker) is WorkerState.DISTRUSTED
    settle(cluster)
    assert pool.fleet.is_mended()
    for _ in range(20):
        pool.fleet.note_lie(slot, b"", "lies")
        pool.fleet.report("rotten", bytes(36), slot, "lies")
    assert pool.fleet.is_mended()
    assert state_of(cluster, worker) is WorkerState.DISTRUSTED, "too few others are there to drain it"


def test_what_is_left_on_liars_is_no_reason_to_collect_again_and_again(cluster: Cluster) -> None:
    files = push_all(cluster)
    settle(cluster)
    for _ in range(3):
        cluster.pool.fleet.note_lie(2, b"", "lies")
    cluster.pool.store.delete(next(iter(files.values())), user_id="u")
    cluster.pool.store.collect(grace_s=0)
    assert not cluster.pool.store.upkeep.is_collect_owed()
    cluster.pass_time(700.0)
    cluster.pool.tick()
    assert cluster.pool.fleet.trusts(2)
    assert cluster.pool.store.upkeep.is_collect_owed()


def test_audits_go_on_beside_users_who_are_always_at_work(cluster: Cluster) -> None:
    push_all(cluster)
    auditor = cluster.pool.auditor
    cluster.pool.store.push(b"at work", filename="now", user_id="u")
    assert cluster.pool.store.is_busy()
    busy_s = auditor.audit_at_pace()
    cluster.pass_time(2.0)
    assert not cluster.pool.store.is_busy()
    assert busy_s > 2 * auditor.audit_at_pace()
    assert "shards" in auditor.view().note


def test_no_capacity_counts_for_more_than_the_operator_wants(cluster: Cluster) -> None:
    good = cluster.add_worker().application(cluster.pool)
    assert cluster.pool.join(replace(good, capacity=1 << 62)).capacity == 1 << 50


def test_members_tell_no_more_of_themselves_than_people_can_read(cluster: Cluster) -> None:
    worker = cluster.add_worker()
    good = worker.application(cluster.pool)
    for bad in (
        replace(good, zone="z" * 1000),
        replace(good, worker="w\n"),
        replace(good, instance="i" * 300),
        replace(good, address="a" * 1000),
    ):
        with pytest.raises(InvalidArgument, match="printable text"):
            cluster.pool.join(bad)


class ExcusingVolume(MemoryVolume):
    """Keeps nothing, says that it has everything, and that its disk cannot be read just now."""

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        pass

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        return []

    def read(self, key: ShardKey) -> Shard | None:
        raise VolumeUnavailable("try again later")


def test_excuses_are_no_lies_and_no_shards(cluster: Cluster) -> None:
    files = push_all(cluster)
    worker = cluster.workers[2]
    excusing = ExcusingVolume(worker.volume.volume_id, cluster.wounds)
    worker.volume.wounded()
    worker.volume = excusing
    worker.listen()
    for _ in range(12):
        cluster.pool.auditor.audit()
    assert state_of(cluster, worker) is WorkerState.SLOW
    assert not cluster.pool.fleet.distrusted()
    data = Random(99).randbytes(100_000)
    cluster.pool.store.push(data, filename="new", user_id="u")
    assert min(honest_slots(cluster, [worker], data)) == 6
    for name, file_id in files.items():
        assert cluster.pool.store.get(file_id, user_id="u") == CONTENTS[name]


class RamblingVolume(MemoryVolume):
    """Its list of keys comes to no end."""

    asked = 0

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        self.asked += 1
        raise VolumeFailed("a list of keys that is endless")


def test_a_worker_whose_lists_never_end_holds_up_no_mending_and_no_collect(cluster: Cluster) -> None:
    files = push_all(cluster)
    liar = add(cluster, RamblingVolume)
    settle(cluster, 1)
    slot = next(record.slot for record in cluster.pool.membership.records if record.worker == liar.name)
    for _ in range(6):
        cluster.pass_time(2.0)
        connection = cluster.pool.fleet.volume(slot)
        assert connection is not None
        connection.misbehaved = "endless"  # as the client side of the transport notes it
        cluster.pool.repair_scheduler.mend()
    assert state_of(cluster, liar) in {WorkerState.DISTRUSTED, *OUT}
    assert cluster.pool.fleet.is_mended()
    gone = next(iter(files.values()))
    cluster.pool.store.delete(gone, user_id="u")
    asked = vars(liar.volume).get("asked", 0)
    report = cluster.pool.store.collect(grace_s=0)
    assert report.objects_removed > 0
    assert vars(liar.volume).get("asked", 0) == asked


class LateVolume(MemoryVolume):
    """Shows a commit of far in the future, which nobody vouches for."""

    def newest(self) -> Shard | None:
        true = super().newest()
        return None if true is None else forgeries(true)[1]


def with_a_crowd() -> Cluster:
    """A settled pool with three further workers, each of which holds a version to show."""
    for seed in range(1, 20):
        cluster = Cluster(Random(seed), ErasureProfile(4, 6), 6, zones=1, crowd=3)
        push_all(cluster)
        settle(cluster)
        if all(worker.volume.newest() is not None for worker in cluster.workers[6:]):
            return cluster
    raise AssertionError("no seed places a version on each of them")


@pytest.mark.parametrize(("owners", "behind"), [("xxx", False), ("xyz", True)])
def test_many_ids_of_one_owner_cannot_have_the_catalog_pass_for_an_older_one(owners: str, behind: bool) -> None:
    with simulated_surroundings():
        cluster = with_a_crowd()
        for worker, owner in zip(cluster.workers[6:], owners, strict=True):
            late = LateVolume(worker.volume.volume_id, cluster.wounds)
            late.__dict__ = worker.volume.__dict__
            worker.volume, worker.owner = late, owner
            worker.start()
        cluster.pass_time(3.0)
        assert cluster.pool.store.behind is behind


class UntellingVolume(MemoryVolume):
    """Breaks off whenever it is to show what it holds."""

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        raise VolumeFailed("a list of records that is nonsense")


def test_a_worker_that_shows_nonsense_holds_up_a_rebuild_only_until_it_is_known(cluster: Cluster) -> None:
    files = push_all(cluster)
    settle(cluster)
    former, liar = cluster.pool.pool_id, cluster.workers[2]
    untelling = UntellingVolume(liar.volume.volume_id, cluster.wounds)
    untelling.records_by_key, untelling.durable = liar.volume.records_by_key, liar.volume.durable
    liar.volume = untelling
    liar.listen()
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)
    for trusted in (True, True, False):
        cluster.pass_time(3.0)
        slot = next(record.slot for record in cluster.pool.membership.records if record.worker == liar.name)
        connection = cluster.pool.fleet.volume(slot)
        assert connection is not None
        connection.misbehaved = "nonsense"  # as the client side of the transport notes it
        report = cluster.pool.store.rebuild()
        named = report.undecided if trusted else report.skipped
        assert liar.name in named[0]
        assert ("nonsense" in named[0]) is trusted
        assert cluster.pool.store.behind is bool(report.undecided) is trusted
    for name, file_id in files.items():
        assert cluster.pool.store.get(file_id, user_id="u") == CONTENTS[name]


def test_a_worker_that_cannot_be_reached_is_lost_however_often_it_says_that_it_is_there(cluster: Cluster) -> None:
    worker = cluster.add_worker()
    ids = push_all(cluster)
    settle(cluster)
    worker.cut_off = True  # so it neither answers nor joins again
    worker.listen()
    seeds = count()
    for _ in range(4):
        for file_id in ids.values():
            cluster.pool.store.get(file_id, user_id="u")
        for _ in range(5):
            cluster.pass_time(2.0)
            data = Random(next(seeds)).randbytes(100_000)  # which is written to most workers, as reads may not need it
            cluster.pool.store.push(data, filename="more", user_id="u")
            cluster.pool.heartbeat(worker.name, worker.instance, WorkerLoad())
        cluster.pool.repair_scheduler.mend()
    assert state_of(cluster, worker) is WorkerState.LOST
    assert "survive the loss of any 2 workers" in cluster.pool.view().health


class FloodingVolume(MemoryVolume):
    """Shows what it has, and then what no honest worker has, for ever.

    A copy of another volume. Each page takes it ten seconds.
    """

    def __init__(self, cluster: Cluster, worker: Worker, flood: Flood) -> None:
        super().__init__(worker.volume.volume_id, cluster.wounds)
        self.records_by_key, self.durable = worker.volume.records_by_key, worker.volume.durable
        self._clock = cluster.clock
        self._flood = flood
        self.pages = 0

    def records(self, kinds: frozenset[Kind]) -> Iterator[list[Shard]]:
        true = [shard for page in super().records(kinds) for shard in page]
        yield true
        for page in batched(self._flood(true), 50):
            self.pages += 1
            assert self.pages < 2_000, "it is listened to for ever"
            self._clock.advance(10.0)
            yield page


Flood = Callable[[list[Shard]], Iterator[Shard]]


def record_of(kind: Kind, raw: bytes, identifier: bytes = b"") -> Shard:
    key = shard_key(metadata_stripe(kind, identifier or object_id(raw), 6), 0)
    return Shard(key, len(raw), digest(raw), raw)


def _ever_new_versions(true: list[Shard]) -> Iterator[Shard]:
    """All right but for the MAC, which there was none of once."""
    version = next(shard for shard in true if shard.key[ID_BYTES] == Kind.VERSION)
    stored = read_version(bytes(version.payload), version.key[:ID_BYTES])
    root_id, size = stored.record.root_id, stored.record.size
    for number in count():
        file_id, name = number.to_bytes(16, "big"), f"{number}"
        record = VersionRecord(RECORD_FORMAT, file_id, None, root_id, size, "u", name, 0, number, None, "")
        forged = seal(record, stored.root, encode_root(stored.root))
        yield record_of(Kind.VERSION, forged.raw, forged.version_id)


def _ever_new_tombstones(true: list[Shard]) -> Iterator[Shard]:
    for number in count():
        yield record_of(Kind.TOMBSTONE, encode_tombstone(Tombstone(RECORD_FORMAT, number.to_bytes(16, "big"), number)))


def _again_and_again(true: list[Shard]) -> Iterator[Shard]:
    return cycle(true)


def _malformed(true: list[Shard]) -> Iterator[Shard]:
    return (record_of(Kind.VERSION, b"%d" % number) for number in count())


def _a_huge_one(true: list[Shard]) -> Iterator[Shard]:
    yield record_of(Kind.TOMBSTONE, bytes(RECORD_BYTES_MAX + 1))


def _of_another_kind(true: list[Shard]) -> Iterator[Shard]:
    return (record_of(Kind.NODE, encode_node(0, number.to_bytes(32, "big"))) for number in count())


def _start_without_catalog(cluster: Cluster) -> None:
    former = cluster.pool.pool_id
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)


def _rebuild_until_finished(cluster: Cluster) -> list[RebuildReport]:
    """As an operator does; workers that went offline come back meanwhile."""
    reports: list[RebuildReport] = []
    while not reports or reports[-1].undecided:
        assert len(reports) < 5
        cluster.pass_time(4.0)
        reports.append(cluster.pool.store.rebuild())
    return reports


@pytest.mark.parametrize(
    ("flood", "named"),
    [
        (_ever_new_versions, "more than fits"),
        (_ever_new_tombstones, "more than fits"),
        (_again_and_again, "has not finished"),
        (_malformed, "has not finished"),
        (_a_huge_one, f"a record of {RECORD_BYTES_MAX + 1:,} bytes"),
        (_of_another_kind, "not asked for"),
    ],
)
@pytest.mark.parametrize("liars_count", [1, 2])
def test_workers_that_flood_a_rebuild_are_done_without(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, flood: Flood, named: str, liars_count: int
) -> None:
    """As many as may lie at once. They are named each time, and in the end not believed."""
    monkeypatch.setattr("storage.maintenance.agreement.room_bytes", lambda _: 50_000)
    monkeypatch.setattr("storage.maintenance.round_robin._SHOWING_MAX", liars_count)  # as if there were many more
    files = push_all(cluster)
    gone = cluster.pool.store.push(b"gone", filename="gone", user_id="u")
    cluster.pool.store.delete(gone.file_id, user_id="u")
    settle(cluster)
    liars, floods = cluster.workers[1 : 1 + liars_count], list[FloodingVolume]()
    for liar in liars:
        liar.volume = FloodingVolume(cluster, liar, flood)
        floods.append(liar.volume)
        liar.listen()
    _start_without_catalog(cluster)
    first, *_, last = _rebuild_until_finished(cluster)
    store = cluster.pool.store
    for liar in liars:
        assert any(liar.name in text and named in text for text in first.undecided)
        assert any(liar.name in text for text in last.skipped)
    assert not store.behind
    assert len(last.skipped) < 1200
    assert not [*store._catalog.nodes()]
    store.collect(grace_s=0)
    assert store.find("gone", user_id="u") is None
    for name, file_id in files.items():
        assert store.get(file_id, user_id="u") == CONTENTS[name]


def test_what_a_liar_shows_takes_no_room_from_honest_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two disks of a 2-of-4 pool lost, none of the others can be done without, and the secret is lost as well."""
    monkeypatch.setattr("tests.simulation.disk._RECORDS_TOGETHER", 10)
    monkeypatch.setattr("storage.maintenance.agreement.room_bytes", lambda _: 3_000)  # for 30 records
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(2, 4), 4, zones=1)
        contents = {f"f{number}": b"content %d" % number for number in range(200)}
        files = {name: cluster.pool.store.push(data, filename=name, user_id="u") for name, data in contents.items()}
        settle(cluster)
        for worker in cluster.workers[2:]:
            worker.stop()
            cluster.workers.remove(worker)
        _start_without_catalog(cluster)
        cluster.pass_time(4.0)
        report = cluster.pool.store.rebuild()
        assert (report.files, report.skipped, report.undecided) == (200, [], [])
        for name, version in files.items():
            assert cluster.pool.store.get(version.file_id, user_id="u") == contents[name]
