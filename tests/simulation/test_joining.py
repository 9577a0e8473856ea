"""What a worker that joins is given, and what that costs the others."""

from __future__ import annotations

from random import Random

import pytest

from storage import ErasureProfile
from storage.keys import Kind, kind_of
from storage.sealing.master_keys import MasterKey, MasterKeys
from tests.simulation.pool import Cluster


@pytest.fixture(params=[None, MasterKeys(MasterKey(bytes(32)))], ids=["plain", "encrypted"])
def keys(request: pytest.FixtureRequest) -> MasterKeys | None:
    found: MasterKeys | None = request.param
    return found


def calls_of_a_join(workers: int, keys: MasterKeys | None) -> int:
    """Return how many calls the pool makes for a worker that comes back to a pool of so many."""
    cluster = Cluster(Random(1), ErasureProfile(2, 4), workers, zones=1, keys=keys)
    cluster.pool.store.push(b"some content", filename="f", user_id="u")
    cluster.pass_time(2.0)
    worker = cluster.workers[0]
    worker.stop()
    cluster.pass_time(5.0)
    worker.start()
    before = cluster.network.calls_of_pool
    worker.beat(cluster.pool)
    assert worker.joined
    return cluster.network.calls_of_pool - before


def test_a_worker_that_joins_costs_as_many_calls_in_a_large_pool(keys: MasterKeys | None) -> None:
    assert calls_of_a_join(10, keys) == calls_of_a_join(5, keys)


def test_a_worker_that_joins_is_given_the_keys_of_users_that_were_made_meanwhile() -> None:
    cluster = Cluster(Random(1), ErasureProfile(2, 4), 5, zones=1, keys=MasterKeys(MasterKey(bytes(32))))
    worker = cluster.workers[0]
    worker.stop()
    cluster.pass_time(5.0)
    cluster.pool.store.push(b"some content", filename="f", user_id="u")
    there = [{key for key in other.volume.durable if kind_of(key) == Kind.MARK} for other in cluster.workers[1:]]
    (shared,) = set.intersection(*there)
    worker.start()
    worker.beat(cluster.pool)
    assert worker.joined
    assert shared in worker.volume.durable
