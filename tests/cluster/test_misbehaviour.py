"""Workers that lie or let nothing through, as real processes: nobody reads a wrong byte, and liars are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.campaign.command import status_command
from tests.cluster.processes import Cluster
from tests.cluster.test_cluster import MIB, USER, content

_MISFIT = "tests.cluster.campaign.misfit"


@pytest.mark.campaign
def test_workers_that_lie_or_swallow(tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=4) as cluster:
        for name in ("w4", "w5"):
            cluster.start_worker(name, module=_MISFIT)
        cluster.await_status(lambda status: all(worker.share > 0 for worker in status.workers))
        cluster.await_survivable(2)
        data = content(6 * MIB)
        file_id = cluster.client.push(data, filename="a", user_id=USER).file_id
        for name, conduct in (("w4", "wrong-bytes"), ("w5", "other-chunks")):
            cluster.workers[name].tell(conduct)
            while not _lies(cluster, name):  # one that is slow to answer may not be needed
                assert cluster.client.get(file_id, user_id=USER) == data
            cluster.workers[name].tell("honest")
        told = status_command(cluster.address)
        assert {line.split()[1] for line in told.splitlines() if line.startswith("! ")} == {"w4", "w5"}
        cluster.await_survivable(2)
        cluster.workers["w4"].tell("swallow")
        for _ in range(60):  # more than there are threads for one worker
            assert cluster.client.get(file_id, user_id=USER, offset=MIB, length=MIB) == data[MIB : 2 * MIB]
        cluster.client.push(data[::-1], filename="b", user_id=USER)


def _lies(cluster: Cluster, name: str) -> int:
    return next(worker.lies for worker in cluster.status().workers if worker.worker_id == name)
