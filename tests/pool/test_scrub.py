"""A scrub of a pool: what it counts as missing, and what is only on another worker than it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest

from storage import ErasureProfile
from storage.keys import ShardKey, StripeKey
from storage.stripes.shard_map import ShardMap, ShardMapper
from tests.simulation.model import chunks_of
from tests.simulation.pool import LEASE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

CONTENT = Random(7).randbytes(300_000)
HOME = 0  # the worker that is away during a push


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A pool whose worker ``HOME`` came back after a push, and no repair has moved its shards to it."""
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)
        settle(cluster)
        cluster.workers[HOME].stop()
        cluster.pass_time(LEASE_S + 1)
        cluster.pool.store.push(CONTENT, filename="f", user_id="u")
        cluster.workers[HOME].start()
        cluster.pass_time(0.1)
        yield cluster


def settle(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def held_for_another(cluster: Cluster) -> list[tuple[Worker, ShardKey]]:
    """Shards of chunks with the worker that stands in for ``HOME``."""
    fleet = cluster.pool.fleet
    stripes = set(chunks_of(CONTENT, cluster.profile))
    return [
        (worker, key)
        for number, worker in enumerate(cluster.workers)
        for key in worker.volume.records_by_key
        if key[:-1] in stripes and fleet.targets(StripeKey(key[:-1]))[key[-1]] != number
    ]


def test_shards_with_a_stand_in_are_misplaced_and_not_missing(cluster: Cluster) -> None:
    chunks = len(chunks_of(CONTENT, cluster.profile))
    assert len(held_for_another(cluster)) == chunks
    report = cluster.pool.store.scrub()
    assert (report.missing, report.rotten, report.unavailable) == (0, 0, 0)
    assert report.misplaced >= chunks
    assert report.shards_checked >= 6 * chunks
    assert report.clean
    assert not report.damaged
    settle(cluster)
    settled = cluster.pool.store.scrub()
    assert settled.clean
    assert not settled.misplaced
    assert settled.shards_checked == report.shards_checked


def test_shards_that_nobody_has_are_missing(cluster: Cluster) -> None:
    before = cluster.pool.store.scrub().misplaced
    worker, key = held_for_another(cluster)[0]
    worker.volume.remove([key])
    report = cluster.pool.store.scrub()
    assert (report.missing, report.misplaced) == (1, before - 1)
    assert not report.clean
    (damage,) = report.damaged
    assert (damage.kind, damage.slot, damage.volume) == ("missing", key[-1], HOME)


def test_damaged_shards_of_a_stand_in_are_rotten(cluster: Cluster) -> None:
    before = cluster.pool.store.scrub().misplaced
    worker, key = held_for_another(cluster)[0]
    worker.volume.rot(key, Random(1))
    report = cluster.pool.store.scrub()
    assert (report.rotten, report.missing, report.misplaced) == (1, 0, before - 1)
    assert not report.clean
    (damage,) = report.damaged
    assert (damage.kind, damage.volume) == ("rotten", cluster.workers.index(worker))
    assert key not in worker.volume.records_by_key


def test_shards_with_a_slow_stand_in_are_not_missing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = frozenset(range(len(cluster.workers)))
    monkeypatch.setattr(cluster.pool.fleet, "slow", lambda: everybody)
    report = cluster.pool.store.scrub()
    assert report.misplaced
    assert report.clean


def test_shards_that_are_moved_while_they_are_looked_for_are_not_missing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    look: Callable[..., dict[int, ShardMap]] = ShardMapper.shard_maps
    looks = 0

    def shard_maps(mapper: ShardMapper, stripes: Sequence[StripeKey], **options: bool) -> dict[int, ShardMap]:
        nonlocal looks
        looks += 1
        found = look(mapper, stripes, **options)
        if looks == 1:
            monkeypatch.setattr(ShardMapper, "shard_maps", look)
            settle(cluster)
        return found

    monkeypatch.setattr(ShardMapper, "shard_maps", shard_maps)
    report = cluster.pool.store.scrub()
    assert looks == 1
    assert (report.missing, report.misplaced) == (0, 0)
    assert report.clean
