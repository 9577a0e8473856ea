"""A pool whose catalog is lost: what its status promises about a rebuild."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from storage import ErasureProfile
from tests.simulation.catalog import Database
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings

WORKERS = 6


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(4, 6), WORKERS, zones=1)


def test_workers_count_as_joined_once_a_rebuild_can_read_from_them(cluster: Cluster) -> None:
    """Scripts wait for this line and then rebuild at once."""
    file_id = cluster.pool.store.push(b"content", filename="name", user_id="u").file_id
    former = cluster.pool.pool_id
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)
    waited = 0
    while f"{WORKERS} workers have joined" not in cluster.pool.view().health:
        waited += 1
        assert waited < 1_000, cluster.pool.view().health
        cluster.pass_time(0.05)
    assert cluster.pool.store.rebuild().undecided == []
    assert cluster.pool.store.get(file_id, user_id="u") == b"content"
