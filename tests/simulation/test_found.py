"""Bugs that the simulator found in the pool, each reproduced in the shortest way."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from random import Random

import pytest

from storage import ErasureProfile
from storage.errors import FormatError, InsufficientWorkers
from storage.keys import ID_BYTES, Kind, StripeKey, shard_key
from storage.reports import RepairState
from storage.shards import VolumeFailed
from storage.stripes.stripes import metadata_stripe
from taskworker.pool.membership import WorkerLoad
from tests.simulation.catalog import Database
from tests.simulation.invariants import check_spread, shard_keys
from tests.simulation.meanwhile import Meanwhile
from tests.simulation.model import chunks_of
from tests.simulation.pool import GRACE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

CONTENT = Random(1).randbytes(100_000)


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    with simulated_surroundings():
        yield


def cluster_of(count: int, k: int = 4, n: int = 6) -> Cluster:
    return Cluster(Random(1), ErasureProfile(k, n), count, zones=1)


def cut_off(worker: Worker, *, cut: bool = True) -> None:
    worker.cut_off = cut
    worker.listen()


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def test_a_delete_that_no_worker_can_be_told_of_holds() -> None:
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    for worker in cluster.workers:
        cut_off(worker)
    cluster.pool.store.delete(version.file_id, user_id="u")
    assert cluster.pool.store.find("f", user_id="u") is None


def test_workers_being_drained_do_not_count_towards_what_a_push_needs() -> None:
    cluster = cluster_of(6)
    for worker in cluster.workers[1:]:
        cluster.pool.drain(worker.name)
    with pytest.raises(InsufficientWorkers, match="1 of 1 worker"):
        cluster.pool.store.push(b"small", filename="f", user_id="u")


def test_shards_on_a_worker_that_no_layout_knows_any_more_are_read() -> None:
    cluster = cluster_of(5, 2, 3)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    stripe = chunks_of(CONTENT, cluster.profile)[0]
    holders = [cluster.pool.fleet.name(slot) for slot in cluster.pool.fleet.holders(stripe)]
    away = next(worker for worker in cluster.workers if worker.name == holders[0])
    cut_off(away)
    cluster.pass_time(2 * GRACE_S)
    settle(cluster)
    assert len(cluster.pool.layouts) == 1
    cut_off(away, cut=False)
    away.beat(cluster.pool)  # it joins, but is not in a layout yet
    others = [worker for worker in cluster.workers if worker is not away and stripe_slots(worker, stripe)]
    for worker in others[1:]:
        cut_off(worker)
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def stripe_slots(worker: Worker, stripe: StripeKey) -> list[int]:
    return [slot for slot in range(stripe[34] + 1) if worker.volume.is_good(shard_key(stripe, slot))]


def test_a_lost_worker_is_done_without_once_enough_others_are_there() -> None:
    cluster = cluster_of(3, 2, 3)
    for worker in cluster.workers[1:]:
        cut_off(worker)
    cluster.pass_time(2 * GRACE_S)
    assert len(cluster.pool.membership.members()) == 3, "one is too few"
    for _ in range(2):
        cluster.add_worker()
    cluster.pass_time(5.0)
    assert {member.worker for member in cluster.pool.layouts[0].members} == {"w0", "w3", "w4"}


def test_a_small_push_whose_worker_goes_away_is_spread_anew() -> None:
    for seed in range(200):
        cluster = Cluster(Random(seed), ErasureProfile(4, 6), 6, zones=1)
        for worker in cluster.workers[4:]:
            cut_off(worker)
        cluster.pass_time(5.0)
        calls = Random(seed).randint(1, 12)
        cluster.network.after_calls(calls, lambda worker=cluster.workers[3]: cut_off(worker))  # type: ignore[misc]
        data = Random(seed).randbytes(100)
        cluster.pool.store.push(data, filename="f", user_id="u")
        (stripe,) = chunks_of(data, cluster.profile)
        for lost in cluster.workers:
            others = [worker.volume for worker in cluster.workers if worker is not lost]
            left = sum(any(volume.is_durable(shard_key(stripe, slot)) for volume in others) for slot in range(6))
            assert left >= 4, f"seed {seed}: not without {lost.name}"


def test_a_liar_in_the_padding_makes_no_liars_of_good_shards() -> None:
    cluster = cluster_of(6)
    cluster.pool.store.push(b"x", filename="f", user_id="u")
    (stripe,) = chunks_of(b"x", cluster.profile)
    by_name = {worker.name: worker for worker in cluster.workers}
    holders = [by_name[cluster.pool.fleet.name(slot)] for slot in cluster.pool.fleet.holders(stripe)]
    holders[3].volume.lie(shard_key(stripe, 3), Random(1), None)  # a shard that consists of padding
    assert cluster.pool.store._parts.stripes.read(stripe) == b"x"
    for slot in (0, 1, 2, 4, 5):
        assert holders[slot].volume.is_good(shard_key(stripe, slot))


def test_a_stand_in_keeps_its_copy_while_the_proper_one_is_rotten() -> None:
    cluster = cluster_of(6)
    cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    stripe = chunks_of(CONTENT, cluster.profile)[0]
    by_name = {worker.name: worker for worker in cluster.workers}
    holder = by_name[cluster.pool.fleet.name(cluster.pool.fleet.holders(stripe)[0])]
    cut_off(holder)
    cluster.pass_time(GRACE_S + 5)
    settle(cluster)
    key = shard_key(stripe, 0)
    assert sum(worker.volume.is_durable(key) for worker in cluster.workers) == 2, "somebody stands in"
    holder.volume.rot(key, Random(1))
    cut_off(holder, cut=False)
    cluster.pass_time(2.0)
    cluster.pool.repair_scheduler.mend()
    assert any(worker.volume.is_durable(key) for worker in cluster.workers), "the only good copy was dropped"
    settle(cluster)
    assert [worker.name for worker in cluster.workers if key in worker.volume.records_by_key] == [holder.name]
    assert holder.volume.is_durable(key)


@pytest.mark.parametrize("calls", range(1, 25))
def test_a_reader_finds_shards_that_are_moved_while_it_looks(calls: int) -> None:
    cluster = cluster_of(6, 2, 3)
    data = CONTENT[:1000]
    version = cluster.pool.store.push(data, filename="f", user_id="u")
    (stripe,) = chunks_of(data, cluster.profile)
    for slot in cluster.pool.fleet.holders(stripe):
        cluster.pool.drain(cluster.pool.fleet.name(slot))
    Meanwhile(cluster).after_calls(calls, "repair_scheduler", cluster.pool.repair_scheduler.mend)
    assert cluster.pool.store.get(version.file_id, user_id="u") == data


@pytest.mark.parametrize("calls", range(5, 40, 5))
def test_a_mender_in_the_midst_of_a_repair_comes_to_its_turn(calls: int) -> None:
    """A stripe is restored by one thread at a time; nobody may wait for the thread that the simulator has paused."""
    cluster = cluster_of(7)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    cut_off(cluster.workers[0])
    cluster.pass_time(GRACE_S + 5)
    mended: list[bool] = []
    repair_scheduler = cluster.pool.repair_scheduler
    Meanwhile(cluster).after_calls(calls, "repair_scheduler", lambda: mended.append(repair_scheduler.mend()))
    cluster.pool.store.repair()
    settle(cluster)
    assert mended
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_metadata_that_no_worker_has_any_more_is_made_again_from_the_catalog() -> None:
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    stripe = metadata_stripe(Kind.VERSION, bytes.fromhex(version.version_id), cluster.profile.n)
    keys = [shard_key(stripe, slot) for slot in range(cluster.profile.n)]
    for worker in cluster.workers:
        worker.volume.remove(keys)
    report = cluster.pool.store.repair()
    assert report.complete
    assert report.shards_rebuilt == len(keys)
    assert all(any(worker.volume.is_durable(key) for worker in cluster.workers) for key in keys)


def test_repair_tells_what_is_missing_from_what_is_in_the_wrong_place() -> None:
    cluster = cluster_of(7)
    cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    cluster.pool.drain("w3")
    moved: list[RepairState] = []
    report = cluster.pool.store.repair(watch=moved.append)
    assert (moved[-1].repaired, moved[-1].moved) == (0, max(state.misplaced for state in moved))
    assert report.shards_moved == report.shards_rebuilt > 0
    assert not any(state.endangered for state in moved)
    cut_off(cluster.workers[0])
    cluster.pass_time(GRACE_S + 5)
    made: list[RepairState] = []
    report = cluster.pool.store.repair(watch=made.append)
    assert (made[-1].moved, made[-1].repaired) == (0, max(state.missing for state in made))
    assert report.shards_rebuilt > report.shards_moved == 0


def test_what_only_moves_is_read_where_it_is() -> None:
    """Three of six holders are drained, so that the shards in their places alone are too few for reading."""
    cluster = cluster_of(9)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    for name in ("w1", "w3", "w5"):
        cluster.pool.drain(name)
    calls = cluster.network.calls_of_pool
    report = cluster.pool.store.repair()
    assert report.shards_moved == report.shards_rebuilt > 0
    assert cluster.network.calls_of_pool - calls < 60, "stripe after stripe was looked for everywhere"
    settle(cluster)
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT
    drained = [worker.volume for worker in cluster.workers if worker.name in ("w1", "w3", "w5")]
    assert not [key for volume in drained for key in volume.records_by_key if key[32] != Kind.MARK]


def lose_catalog(cluster: Cluster) -> None:
    """Lose the pool's directory, and start a new pool in its place."""
    former = cluster.pool.pool_id
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)
    cluster.pass_time(3.0)


def test_a_pool_that_is_to_be_rebuilt_touches_nothing_before() -> None:
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    lose_catalog(cluster)
    before = [dict(worker.volume.records_by_key) for worker in cluster.workers]
    cluster.clock.advance(10 * 86400.0)
    settle(cluster)
    cluster.pool.collector.collect_if_due()
    with pytest.raises(FormatError):
        cluster.pool.store.collect(grace_s=0)
    cluster.crash_pool()
    cluster.start_pool()  # as if the option had been forgotten
    settle(cluster)
    assert cluster.pool.store.needs_rebuild
    assert [worker.volume.records_by_key for worker in cluster.workers] == before
    cluster.pool.store.rebuild()
    settle(cluster)
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


@pytest.mark.parametrize("calls", range(1, 30, 3))
def test_a_worker_that_goes_away_during_a_rebuild_is_not_done_without(calls: int) -> None:
    cluster = cluster_of(6, 2, 3)
    ids = [cluster.pool.store.push(CONTENT[:size], filename=str(size), user_id="u").file_id for size in (100, 70_000)]
    away = cluster.workers[3]
    lose_catalog(cluster)
    cluster.network.after_calls(calls, lambda: cut_off(away))
    try:
        cluster.pool.store.rebuild()
    except (InsufficientWorkers, VolumeFailed):
        assert cluster.pool.store.needs_rebuild
        cluster.network.forget_due()
        cut_off(away, cut=False)
        settle(cluster)
        assert cluster.pool.store.rebuild().skipped == []
    cut_off(away, cut=False)
    settle(cluster)
    for file_id, size in zip(ids, (100, 70_000), strict=True):
        assert cluster.pool.store.get(file_id, user_id="u") == CONTENT[:size]


def test_a_late_request_to_join_of_a_former_process_is_refused() -> None:
    cluster = cluster_of(6)
    worker = cluster.workers[0]
    cut_off(worker)
    cluster.pass_time(10.0)
    former = worker.instance
    worker.start()
    cut_off(worker, cut=False)
    worker.say_late_join(cluster.pool, former)
    assert not cluster.pool.heartbeat(worker.name, former, WorkerLoad())
    cluster.pass_time(1.0)
    assert cluster.pool.heartbeat(worker.name, worker.instance, WorkerLoad())


@pytest.mark.parametrize("calls", range(1, 24))
def test_a_worker_that_comes_back_amid_healing_is_given_nothing_that_it_has(calls: int) -> None:
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT * 5, filename="f", user_id="u")
    settle(cluster)
    away = cluster.workers[0]
    kept = dict(away.volume.records_by_key)
    away.stop()
    cluster.pass_time(5.0)
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT * 5
    assert cluster.pool.store.healing().waiting

    def come_back() -> None:
        away.start()
        away.beat(cluster.pool)

    cluster.network.after_calls(calls, come_back)
    cluster.runtime.background.run()
    assert [key for key, record in kept.items() if away.volume.records_by_key[key] is not record] == []


def test_a_wrong_copy_on_one_worker_hides_no_right_one_on_another() -> None:
    cluster = cluster_of(5, 2, 3)
    data = CONTENT[:1000]
    version = cluster.pool.store.push(data, filename="f", user_id="u")
    (stripe,) = chunks_of(data, cluster.profile)
    fleet, by_name = cluster.pool.fleet, {worker.name: worker for worker in cluster.workers}
    first, second, _ = (by_name[fleet.name(slot)] for slot in fleet.holders(stripe))
    key = shard_key(stripe, 0)
    shard = first.volume.records_by_key[key].shard
    first.volume.remove([key])
    others = [
        by_name[fleet.name(slot)]
        for slot in fleet.elsewhere(stripe)
        if not stripe_slots(by_name[fleet.name(slot)], stripe)
    ]
    for worker in (others[0], others[-1]):
        worker.volume.append([shard])
    others[0].volume.lie(key, Random(1), None)
    cut_off(second)
    assert cluster.pool.store.get(version.file_id, user_id="u") == data


@pytest.mark.parametrize("full", range(7))
def test_what_a_collect_took_from_a_push_is_made_up_for_though_a_worker_is_full(full: int) -> None:
    cluster = cluster_of(7)
    cluster.network.lazy = True
    before = cluster.pool.store.push(CONTENT, filename="before", user_id="u")
    cluster.pool.store.delete(before.file_id, user_id="u")
    data = Random(2).randbytes(14 * cluster.pool.store.chunk_size)
    stripes = chunks_of(data, cluster.profile)
    worker = cluster.workers[full]

    def pieces() -> Iterator[bytes]:
        yield data
        cluster.pool.store.collect(grace_s=0)
        cluster.pool.fleet.sync_each()
        worker.volume.remove([key for stripe in stripes for key in shard_keys(stripe)])
        worker.volume.full = True

    version = cluster.pool.store.push(pieces(), filename="f", user_id="u")
    for key in (key for stripe in stripes for key in shard_keys(stripe)):
        assert any(other.volume.is_durable(key) for other in cluster.workers)
    assert cluster.pool.store.get(version.file_id, user_id="u") == data


@pytest.mark.parametrize("calls", range(20))
@pytest.mark.parametrize("collected", [False, True])
def test_a_push_made_while_others_were_away_is_spread_if_they_are_back_for_its_commit(
    calls: int, collected: bool
) -> None:
    """Only one worker was there for its chunks. With only this one, the commit would be refused."""
    cluster = cluster_of(4, 2, 4)
    cluster.network.lazy = True
    data = Random(2).randbytes(3 * cluster.pool.store.chunk_size)
    former = cluster.pool.store.push(CONTENT, filename="former", user_id="u")
    cluster.pool.store.delete(former.file_id, user_id="u")
    upload = cluster.pool.store.upload(filename="f", user_id="u")
    others = cluster.workers[1:]
    for worker in others:
        worker.leave(cluster.pool)
    upload.write(data)
    upload.claim()
    if collected:
        cluster.pool.store.collect(grace_s=0)

    def back() -> None:
        for worker in others:
            worker.start()
            worker.beat(cluster.pool)

    cluster.network.after_calls(calls, back)
    try:
        version = upload.commit()
    except InsufficientWorkers:
        return
    check_spread(cluster, chunks_of(data, cluster.profile))
    assert cluster.pool.store.get(version.file_id, user_id="u") == data


@pytest.mark.parametrize("calls", range(1, 30, 2))
def test_threads_that_mark_the_same_workers_leave_each_a_mark(calls: int) -> None:
    """A mark contains the worker's share of the store's secret, which a rebuild of the catalog needs."""
    cluster = cluster_of(6)
    cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    lineage = cluster.pool.store._parts.lineage
    cluster.network.after_calls(calls, lambda: lineage.plant(range(6), anew=True))
    lineage.plant(range(6), anew=True)
    for worker in cluster.workers:
        assert any(key[ID_BYTES] == Kind.MARK for key in worker.volume.durable), worker.name
    cluster.pool.close()
    cluster.database = Database()
    cluster.start_pool(cluster.pool.pool_id)
    cluster.pass_time(4.0)
    assert cluster.pool.store.rebuild().files == 1


@pytest.mark.parametrize(("seed", "calls"), [(15, 7), (16, 9), (24, 7), (31, 7)])
def test_a_push_between_a_liar_and_a_worker_that_goes_away_asks_for_more_workers(seed: int, calls: int) -> None:
    """Shards that are out of reach at the commit count neither as lost nor as removed."""
    cluster = Cluster(Random(seed), ErasureProfile(2, 3), 3, zones=1)
    upload = cluster.pool.store.upload(filename="f", user_id="u")
    upload.write(Random(2).randbytes(200_000))
    former = cluster.pool.store.push(CONTENT, filename="former", user_id="u")
    cluster.pool.store.delete(former.file_id, user_id="u")
    cluster.pool.store.collect(grace_s=0)
    cluster.workers[2].liar = True
    cluster.workers[2].listen()
    cluster.network.after_calls(calls, lambda: cut_off(cluster.workers[1]))
    with pytest.raises(InsufficientWorkers):
        upload.commit()
    assert cluster.pool.store.find("f", user_id="u") is None


def behind_a_delete() -> Cluster:
    """Make a pool whose catalog is older than a file's deletion, which only the first worker knows of."""
    cluster = cluster_of(4, 2, 4)
    deleted = cluster.pool.store.push(CONTENT, filename="deleted", user_id="u")
    copy = deepcopy(cluster.database)
    for worker in cluster.workers[1:]:
        cut_off(worker)
    cluster.pool.store.delete(deleted.file_id, user_id="u")
    for worker in cluster.workers:
        cut_off(worker, cut=False)
    cluster.crash_pool()
    cluster.database = copy
    cluster.start_pool("")
    cluster.pass_time(4.0)
    return cluster


def test_a_rebuild_believes_what_is_signed_of_a_worker_that_is_distrusted() -> None:
    """Otherwise it would report the same record again once it is trusted, and the store would be behind again."""
    cluster = behind_a_delete()
    fleet, store = cluster.pool.fleet, cluster.pool.store
    assert store.behind
    (teller,) = (slot for slot in fleet.slots if fleet.name(slot) == cluster.workers[0].name)
    while fleet.trusts(teller):
        fleet.note_lie(teller, b"", "lies")
    assert not store.rebuild().undecided
    assert store.find("deleted", user_id="u") is None
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(4.0)
    assert not cluster.pool.store.behind


def test_a_worker_that_withholds_a_commit_from_a_rebuild_does_not_stop_writing_by_showing_it_later() -> None:
    cluster = behind_a_delete()
    withholding = cluster.workers[0]
    shown = withholding.volume.records
    withholding.volume.records = lambda kinds: shown(kinds - {Kind.TOMBSTONE})  # type: ignore[method-assign]
    assert not cluster.pool.store.rebuild().undecided
    del withholding.volume.records
    withholding.stop()
    withholding.start()
    cluster.pass_time(4.0)
    assert withholding.joined
    assert not cluster.pool.store.behind
    cluster.pool.store.push(CONTENT, filename="new", user_id="u")
    assert any(damage.kind == "lie" for damage in cluster.pool.fleet.recent_damage)


def test_a_right_shard_under_a_wrong_length_of_its_object_hides_no_other_copy() -> None:
    cluster = cluster_of(4, 2, 3)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    for stripe in chunks_of(CONTENT, cluster.profile):
        fleet = cluster.pool.fleet
        by_name = {worker.name: worker for worker in cluster.workers}
        liar, _, away = (by_name[fleet.name(slot)] for slot in fleet.holders(stripe))
        (other,) = (worker for name, worker in by_name.items() if name not in map(fleet.name, fleet.holders(stripe)))
        first = liar.volume.records_by_key[shard_keys(stripe)[0]].shard
        other.volume.append([first])
        liar.volume.append([first._replace(object_length=first.object_length - 1)])
        liar.volume.fetch = lambda key, length: None  # type: ignore[method-assign]
        cut_off(away)
        assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT
        del liar.volume.fetch
        cut_off(away, cut=False)
        cluster.pass_time(4.0)
