"""More users than a pool takes on at once do not keep its workers from their leases."""

from __future__ import annotations

import threading
from pathlib import Path

from taskworker import Client
from taskworker.errors import StorageUnavailable
from tests.cluster.processes import Cluster

USERS = 120
SECONDS = 6.0  # twice a lease


def test_a_crowd_of_users_costs_no_worker_its_lease(tmp_path: Path) -> None:
    stop = threading.Event()
    served = 0

    def use(client: Client, number: int) -> None:
        nonlocal served
        while not stop.is_set():
            try:
                client.push(b"%d" % number, filename=str(number), user_id="ann")
                served += 1
            except StorageUnavailable:
                stop.wait(0.05)  # turned away: too many at once

    with Cluster(tmp_path) as cluster:
        threads = [threading.Thread(target=use, args=(cluster.client, number)) for number in range(USERS)]
        for thread in threads:
            thread.start()
        stop.wait(SECONDS)
        stop.set()
        for thread in threads:
            thread.join()
        status = cluster.status()
    assert served
    assert {worker.state for worker in status.workers} == {"alive"}
    assert not [event for event in status.events if event.kind == "suspect"]
