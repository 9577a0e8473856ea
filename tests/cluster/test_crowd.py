"""More users than a pool takes on at once, or more connections than a worker needs, keep nothing from its work."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import psutil

from taskworker import Client
from taskworker.client.users import UserClient
from taskworker.errors import StorageUnavailable
from tests.cluster.campaign.flooder import FLOODS
from tests.cluster.campaign.floods import Flooder, User
from tests.cluster.campaign.shards import volume_at
from tests.cluster.processes import Cluster
from tests.transport.peers import caller

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


def test_a_thousand_idle_connections_cost_a_worker_little(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=("--allow-fragile",), workers=1) as cluster, ExitStack() as peers:
        worker = cluster.workers["w0"]
        for _ in range(1000):
            peers.enter_context(caller(worker.shard_address))
        cluster.client.push(bytes(1 << 20), filename="a", user_id="ann")
        with volume_at(worker.shard_address) as volume:
            assert volume.usage().shards > 0
        assert psutil.Process(worker.pid).memory_info().rss <= 200 << 20
        assert {each.state for each in cluster.status().workers} == {"alive"}


def test_a_user_who_takes_all_there_is_keeps_nothing_from_others(tmp_path: Path) -> None:
    with Cluster(tmp_path, options=("--quota", "bytes=16MiB")) as cluster, UserClient(cluster.address) as users:
        for name in ("mallory", "ann"):
            users.add(name)
        token = users.create_token("mallory")[0]
        ann = User(cluster.address, users.create_token("ann")[0])
        floods = [Flooder(cluster.address, token, kind, tmp_path) for kind in FLOODS]
        served = ann.times(SECONDS)
        told = [flood.end() for flood in floods]
        status = cluster.status()
        (taken,) = [one for one in users.users() if one.user == "mallory"]
    assert served
    assert ann.failures == [], told
    assert taken.bytes <= 16 << 20
    assert {worker.state for worker in status.workers} == {"alive"}
    assert not [event for event in status.events if event.kind == "suspect"]
