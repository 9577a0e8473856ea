"""What a pool repairs and moves goes from worker to worker, and not through the pool."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskworker import Client
from tests.cluster.counted_pool import COUNTED, counted
from tests.cluster.processes import WAIT_S, Cluster

MIB = 1 << 20
USER = "user"
SIZE = 128 * MIB
WORKERS = 8
# A worker's shards, and what they would cost the pool if it read the objects, sent the shards, and read those back.
HELD = SIZE * 6 // 4 // WORKERS
THROUGH_POOL = HELD * (4 + 1 + 1)


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Path]]:
    path = tmp_path / "counted"
    monkeypatch.setenv(COUNTED, str(path))
    with Cluster(tmp_path, workers=WORKERS, grace_s=3.0, pool_module="tests.cluster.counted_pool") as cluster:
        yield cluster, path


def test_bytes_of_repair_and_moves_pass_from_worker_to_worker(counting: tuple[Cluster, Path]) -> None:
    cluster, path = counting
    data = random.Random(1).randbytes(SIZE)
    with Client(cluster.address, timeout_s=WAIT_S, direct=False) as client:
        file_id = client.push(data, filename="a", user_id=USER).file_id
    pushed = counted(path)
    assert pushed > 1.5 * SIZE  # all shards of the file

    cluster.kill("w1")
    cluster.await_status(lambda status: status.workers_survivable < 2 or status.is_mending)
    cluster.await_survivable(2)
    repaired = counted(path) - pushed
    assert repaired < THROUGH_POOL / 4, f"the pool sent and received {repaired / MIB:.1f} MiB for a repair"
    assert cluster.client.get(file_id, user_id=USER) == data

    read = counted(path)
    version = cluster.status().layout_version
    cluster.drain("w2")
    cluster.await_moved(version + 1)
    cluster.await_survivable(2)
    moved = counted(path) - read
    assert moved < THROUGH_POOL / 4, f"the pool sent and received {moved / MIB:.1f} MiB for a move"
    cluster.kill("w2", "w0", "w3")
    assert cluster.client.get(file_id, user_id=USER) == data
