"""What a worker is given when it joins."""

from __future__ import annotations

from random import Random

from storage import ErasureProfile
from storage.keys import Kind, kind_of
from storage.sealing.master_keys import MasterKey, MasterKeys
from tests.simulation.pool import Cluster


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
