"""Large files that clients write to workers themselves, while processes are stopped, killed and restarted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskworker import Client
from taskworker.client.direct import pace
from taskworker.client.direct.writes import DirectWrites
from taskworker.client.pushing import _Push
from taskworker.errors import StorageUnavailable
from tests.cluster.processes import WAIT_S, Cluster
from tests.forked import Command

MIB = 1 << 20
SIZE = 24 * MIB
OPTIONS = ("--k", "2", "--n", "4", "--encryption")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with (
        Cluster(tmp_path_factory.mktemp("cluster"), workers=5, options=OPTIONS) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(pace, "_WORTHWHILE_BYTES_PER_S", 0)  # however busy this machine is
        yield running


class Pages:
    """The pages that a client writes; what to do before one of them, and which chunks of each were taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, acts: dict[int, Callable[[], object]] | None = None) -> None:
        self.taken: list[list[bool]] = []
        lock, begun, write = threading.Lock(), list[int](), DirectWrites.write

        def written(writes: DirectWrites, *arguments: Any) -> list[bool]:
            with lock:
                begun.append(len(begun))
                act = (acts or {}).get(len(begun))
                if act is not None:
                    act()
            taken = write(writes, *arguments)
            self.taken.append(taken)
            return taken

        monkeypatch.setattr(DirectWrites, "write", written)

    @property
    def chunks(self) -> int:
        """How many chunks were taken."""
        return sum(map(sum, self.taken))


def noise(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """Who has not been told yet that workers take nothing."""
    with Client(cluster.address, timeout_s=WAIT_S) as client:
        yield client


def test_a_worker_that_stops_and_one_that_is_killed_fail_no_push(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, killed = cluster.workers["w0"], cluster.workers["w1"]
    for seed, act in ((1, lambda: stopped.signal(signal.SIGSTOP)), (2, lambda: cluster.kill("w1"))):
        with Client(cluster.address, timeout_s=WAIT_S) as client, monkeypatch.context() as patch:
            pages, data = Pages(patch, {2: act}), noise(seed)
            try:
                version = client.push(data, filename=f"file-{seed}", user_id="ann")
            finally:
                stopped.signal(signal.SIGCONT)
            assert len(pages.taken) > 1
            assert bytes(client.get(version.file_id, user_id="ann")) == data
    assert not killed.alive
    cluster.start_worker("w1")
    cluster.await_status(lambda status: sum(worker.state == "alive" for worker in status.workers) == 5)


def test_what_a_pool_that_is_killed_before_the_commit_had_is_not_stored(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.collect(grace_s=0)
    last = _Push._last

    def killed_before(push: _Push, *arguments: Any, **more: Any) -> bytes:
        cluster.pool_process.kill()
        return last(push, *arguments, **more)

    with monkeypatch.context() as patch:
        pages = Pages(patch)
        patch.setattr(_Push, "_last", killed_before)
        patch.setattr("taskworker.client.file_calls.RETRIES", 0)
        with pytest.raises(StorageUnavailable):
            client.push(noise(3), filename="uncommitted", user_id="ann")
    assert pages.chunks == SIZE // MIB
    cluster.restart_pool()
    cluster.await_status(lambda status: sum(worker.state == "alive" for worker in status.workers) == 5)
    assert client.find("uncommitted", user_id="ann") is None
    assert client.collect(grace_s=0).objects_removed >= SIZE // MIB
    version = client.push(noise(3), filename="uncommitted", user_id="ann")
    assert bytes(client.get(version.file_id, user_id="ann")) == noise(3)


def test_a_pool_that_writes_to_workers_itself_from_now_on_fails_no_push(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.push(noise(4, 9 * MIB), filename="before", user_id="ann")
    cluster.pool_process.stop()
    cluster.options = (*OPTIONS, "--no-direct-pushes")
    cluster.restart_pool()
    cluster.await_status(lambda status: sum(worker.state == "alive" for worker in status.workers) == 5)
    pages = Pages(monkeypatch)
    version = client.push(noise(5), filename="after", user_id="ann")
    assert not pages.chunks
    assert bytes(client.get(version.file_id, user_id="ann")) == noise(5)
    cluster.pool_process.stop()
    cluster.options = OPTIONS
    cluster.restart_pool()
    cluster.await_status(lambda status: sum(worker.state == "alive" for worker in status.workers) == 5)


def test_what_a_client_that_is_killed_wrote_is_collected(cluster: Cluster, client: Client, tmp_path: Path) -> None:
    cluster.await_survivable(2)  # a busy worker may have been too slow for other files, which are repaired later
    client.collect(grace_s=0)
    path, before = tmp_path / "large", stored_bytes(cluster)
    path.write_bytes(noise(6, 3 * SIZE))
    arguments = ["push", str(path), "--pool", cluster.address, "--user", "ann"]
    with (tmp_path / "push.log").open("wb") as log:
        pushing = Command(arguments, cwd=tmp_path, env=os.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    give_up = time.monotonic() + WAIT_S
    while stored_bytes(cluster) < before + SIZE // 2:
        assert pushing.poll() is None, (tmp_path / "push.log").read_text()
        assert time.monotonic() < give_up
        time.sleep(0.01)
    pushing.send_signal(signal.SIGKILL)
    pushing.wait()
    assert client.find("large", user_id="ann") is None
    while client.collect(grace_s=0).objects_removed == 0:  # once the pool has noticed
        assert time.monotonic() < give_up
        time.sleep(0.1)
    cluster.await_survivable(2)
    scrubbed = client.scrub()
    assert (scrubbed.missing, scrubbed.rotten) == (0, 0), scrubbed.damaged


def stored_bytes(cluster: Cluster) -> int:
    """The bytes in all workers' volumes."""
    return sum(path.stat().st_size for path in cluster.directory.glob("w*/volume/*.seg"))
