"""The simulator's limits on faults: no stripe may lose more than n - k shards, including those that liars hold."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from storage import ErasureProfile
from storage.keys import ShardKey, StripeKey
from tests.simulation.invariants import Violation, bearable, can_do_without, check_durable, may_lie, shard_keys
from tests.simulation.liars import LyingVolume
from tests.simulation.model import chunks_of
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

PROFILE = ErasureProfile(2, 3)
CONTENT = Random(1).randbytes(65_536)
HALF_EMPTY = b"x" + bytes(65_535)  # the second of its shards is all zeros


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    with simulated_surroundings():
        yield


def stored(content: bytes) -> tuple[Cluster, StripeKey]:
    """Make a pool of four workers, with the first chunk of a file on three of them."""
    cluster = Cluster(Random(1), PROFILE, 4, zones=1)
    cluster.pool.store.push(content + b"y", filename="f", user_id="u")
    return cluster, chunks_of(content, PROFILE)[0]


def holder(cluster: Cluster, key: ShardKey) -> Worker:
    return next(worker for worker in cluster.workers if worker.volume.is_durable(key))


def copied(cluster: Cluster, key: ShardKey) -> Worker:
    """Copy a shard to a worker that has no shard of the stripe, and return that worker."""
    shard = holder(cluster, key).volume.read(key)
    keys = shard_keys(StripeKey(key[:-1]))
    idle = next(worker for worker in cluster.workers if not worker.volume.durable.intersection(keys))
    assert shard is not None
    idle.volume.append([shard])
    idle.volume.sync()
    return idle


def test_a_copy_in_a_liars_place_is_no_reason_for_one_more_fault() -> None:
    cluster, stripe = stored(CONTENT)
    first, second, _ = shard_keys(stripe)
    liar = holder(cluster, first)
    copied(cluster, first)
    assert may_lie(cluster, [liar], [stripe])
    liar.liar = True
    assert bearable(cluster, stripe, [liar]) == 0
    assert not can_do_without(cluster, [holder(cluster, second)], [stripe])


def test_who_may_come_to_hold_a_shard_does_not_lie_beside_what_was_lost() -> None:
    cluster, stripe = stored(CONTENT)
    first, second, _ = shard_keys(stripe)
    idle = copied(cluster, first)
    holder(cluster, second).volume.rot(second, Random(1))
    assert not may_lie(cluster, [holder(cluster, first)], [stripe])
    assert not may_lie(cluster, [idle], [stripe])


def test_without_liars_as_many_faults_are_bearable_as_shards_are_to_spare() -> None:
    cluster, stripe = stored(CONTENT)
    first, *_ = shard_keys(stripe)
    assert bearable(cluster, stripe, []) == 1
    holder(cluster, first).volume.rot(first, Random(1))
    assert bearable(cluster, stripe, []) == 0


@pytest.mark.parametrize(("content", "guessed"), [(HALF_EMPTY, True), (CONTENT, False)])
def test_a_copy_may_go_for_what_a_liar_guessed_rightly_only(content: bytes, guessed: bool) -> None:
    cluster, stripe = stored(content)
    key = shard_keys(stripe)[1]
    honest = holder(cluster, key)
    liar = next(worker for worker in cluster.workers if worker is not honest)
    liar.liar = True
    lying = LyingVolume(liar.volume, Random(1))
    for _ in range(20):
        lying.fetch(key, 65_536 // 2)
    honest.volume.remove([key])
    if guessed:
        check_durable_of_dropped(cluster, stripe)
    else:
        with pytest.raises(Violation, match="the last copy of shard 1"):
            check_durable_of_dropped(cluster, stripe)


def check_durable_of_dropped(cluster: Cluster, stripe: StripeKey) -> None:
    """Check the dropped copies with ``check_durable``; nobody lies, and missing shards count as lost by faults."""
    for worker in cluster.workers:
        worker.liar = False
    cluster.wounds.update(shard_keys(stripe))
    check_durable(cluster, [stripe])
