"""Reads that lack shards because workers went away a moment ago: they wait for them, but not for those long gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from random import Random

import pytest

from storage import ErasureProfile
from storage.errors import InsufficientWorkers
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

CONTENT = Random(1).randbytes(300_000)
LONG_S = 60.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)
        cluster.pool.store.push(CONTENT, filename="f", user_id="u")
        yield cluster


def lose(cluster: Cluster, count: int) -> list[Worker]:
    """Workers end, and the pool notices."""
    away = cluster.workers[:count]
    for worker in away:
        worker.stop()
    cluster.pass_time(5.0)
    return away


def read(cluster: Cluster) -> bytes:
    version = cluster.pool.store.find("f", user_id="u")
    assert version is not None
    return cluster.pool.store.get(version.file_id, user_id="u")


def later(cluster: Cluster, after_s: float, worker: Worker) -> threading.Timer:
    """A worker is started again, and joins, in a while."""

    def come_back() -> None:
        worker.start()
        worker.beat(cluster.pool)

    timer = threading.Timer(after_s, come_back)
    timer.start()
    return timer


def test_a_read_waits_for_a_worker_that_went_away_a_moment_ago(cluster: Cluster) -> None:
    away = lose(cluster, 3)
    cluster.pool.store.read_patience_s = LONG_S
    back = later(cluster, 0.2, away[0])
    assert read(cluster) == CONTENT
    back.join()


def test_a_read_waits_on_if_it_needs_more_than_the_first_that_is_back(cluster: Cluster) -> None:
    away = lose(cluster, 4)
    cluster.pool.store.read_patience_s = LONG_S
    back = [later(cluster, 0.2 * number, worker) for number, worker in enumerate(away[:2], 1)]
    assert read(cluster) == CONTENT
    for timer in back:
        timer.join()


def test_a_read_does_not_wait_for_workers_that_are_long_gone(cluster: Cluster) -> None:
    lose(cluster, 3)
    for patience_s in (0.0, 0.1):
        cluster.pool.store.read_patience_s = patience_s
        with pytest.raises(InsufficientWorkers, match="3 more are not: w2: its heartbeats stopped"):
            read(cluster)


def test_a_read_that_waits_ends_with_the_pool(cluster: Cluster) -> None:
    lose(cluster, 3)
    cluster.pool.store.read_patience_s = LONG_S
    closing = threading.Timer(0.2, cluster.pool.fleet.close)
    closing.start()
    with pytest.raises(InsufficientWorkers):
        read(cluster)
    closing.join()
