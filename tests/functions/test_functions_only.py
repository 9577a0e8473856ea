"""Workers without a volume, and workers with labels, as real processes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from storage.errors import InvalidArgument, StorageError
from taskworker.calls.labels import labels_from_texts
from taskworker.client.pool import PoolClient, PoolStatus
from taskworker.errors import FunctionsUnavailable
from taskworker.sandbox import Limits
from tests import forked
from tests.cluster.processes import Process
from tests.functions.processes import USER, WAIT_S, FunctionPool

MODULE = """
import time
from taskworker.inside import worker


def slowly(seconds, mark):
    worker.storage.push(b"begun", mark)
    time.sleep(seconds)
    return "done"


def until(go_on, mark):
    worker.storage.push(b"begun", mark)
    while go_on not in [file.filename for file in worker.storage.list()]:
        time.sleep(0.02)
    return mark
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FunctionPool]:
    directory = tmp_path_factory.mktemp("functions-only")
    (directory / "app.py").write_text(MODULE)
    with FunctionPool(directory, pool_options=["--user-calls", "few=1", "--user-queue", "few=1"]) as pool:
        pool.await_whole()
        pool.start_worker("runner", "--no-volume", "--label", "gpu=none", "--label", "disk=fast")
        pool.deploy("slowly", "app:slowly", directory, needs={"gpu": "none"})
        yield pool


def eventually(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def status_of(client: PoolClient) -> PoolStatus:
    status = client.status()
    assert status is not None
    return status


def hosts(pool: FunctionPool) -> dict[str, tuple[bool, dict[str, str]]]:
    return {host.worker_id: (host.has_volume, host.labels) for host in pool.functions.hosts()}


def test_a_function_runs_where_the_labels_are(pool: FunctionPool) -> None:
    eventually(lambda: len(hosts(pool)) == 4)
    assert hosts(pool)["runner"] == (False, {"gpu": "none", "disk": "fast"})
    assert hosts(pool)["w0"] == (True, {})
    assert pool.status("slowly").workers == ["runner"]
    assert pool.client.call("slowly", [0, "mark"], user_id=USER) == "done"
    needs = {"gpu": "none", "disk": "slow"}
    first = pool.client.deploy("elsewhere", "app:slowly", user_id=USER, directory=pool.directory, needs=needs)
    assert pool.status("elsewhere").workers == []
    assert first.unable["runner"] == "lacks disk=slow (it has disk=fast, gpu=none)"
    assert first.unable["w0"] == "lacks disk=slow, gpu=none (it has no labels)"
    with pytest.raises(FunctionsUnavailable, match=r"needs disk=slow, gpu=none .*runner: lacks disk=slow"):
        pool.client.deploy("elsewhere", "app:until", user_id=USER, directory=pool.directory, needs=needs)
    pool.deploy("anywhere", "app:slowly", pool.directory)
    assert pool.await_workers("anywhere", 4).workers == ["runner", "w0", "w1", "w2"]


def test_a_worker_without_a_volume_is_no_member_and_its_death_is_no_loss(pool: FunctionPool) -> None:
    eventually(lambda: "runner" in hosts(pool))
    with PoolClient(pool.address) as client, ThreadPoolExecutor(1) as callers:
        before = status_of(client)
        assert sorted(worker.worker_id for worker in before.workers) == ["w0", "w1", "w2"]
        call = callers.submit(pool.client.call, "slowly", [2, "before the death"], user_id=USER)
        eventually(lambda: pool.client.find("before the death", user_id=USER) is not None)
        pool.workers["runner"].kill()
        eventually(lambda: "runner" not in hosts(pool))
        after = status_of(client)
        assert after.health == before.health
        assert [(worker.worker_id, worker.state) for worker in after.workers] == [
            (worker.worker_id, worker.state) for worker in before.workers
        ]
        assert all(work.state == "idle" for work in after.work)
        pool.start_worker("runner", "--no-volume", "--label", "gpu=none", "--label", "disk=fast")
        assert call.result(WAIT_S) == "done"  # it was taken there again


def test_operators_see_a_worker_without_a_volume_and_cannot_take_it_for_a_member(
    pool: FunctionPool, tmp_path: Path
) -> None:
    eventually(lambda: "runner" in hosts(pool))
    shown = told(pool, "status")
    at = next(number for number, line in enumerate(shown) if line.startswith("RUNS FUNCTIONS"))
    assert [line.split()[0] for line in shown[at + 1 : shown.index("", at)]] == ["runner"]
    assert shown[at + 1].endswith("disk=fast, gpu=none")
    found = json.loads("\n".join(told(pool, "status", "--json")))
    assert {host["worker_id"]: host["labels"] for host in found["hosts"]}["runner"] == {"gpu": "none", "disk": "fast"}
    with PoolClient(pool.address) as client:
        with pytest.raises(InvalidArgument, match=r"runner only runs functions.*stop it"):
            client.drain("runner")
        with pytest.raises(InvalidArgument, match=r"runner only runs functions.*stop it"):
            client.forget("runner")
    with grpc.insecure_channel(pool.workers["runner"].address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        asked = stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert asked.status == health_pb2.HealthCheckResponse.SERVING
    arguments = ["worker", "--id", "runner", "--dir", str(tmp_path), "--listen", "127.0.0.1:0", "--pool", pool.address]
    with pytest.raises(AssertionError, match="already, which only runs functions"):
        Process(arguments, tmp_path / "log")


def told(pool: FunctionPool, *words: str) -> list[str]:
    """What a command prints."""
    command = [*words, "--pool", pool.address]
    done = forked.run(command, cwd=pool.directory, env=os.environ, timeout_s=WAIT_S)
    done.check_returncode()
    return done.stdout.decode().splitlines()


def test_an_id_is_one_worker_s(pool: FunctionPool, tmp_path: Path) -> None:
    for taken in ("w0", "runner"):
        eventually(lambda taken=taken: taken in hosts(pool))  # type: ignore[misc]
        arguments = ["worker", "--id", taken, "--dir", str(tmp_path / taken), "--listen", "127.0.0.1:0"]
        with pytest.raises(AssertionError, match="there is a worker with the id"):
            Process([*arguments, "--pool", pool.address, "--no-volume"], tmp_path / "log")


def test_a_worker_that_stops_is_gone_at_once_and_a_pool_that_restarts_finds_it_again(pool: FunctionPool) -> None:
    eventually(lambda: "runner" in hosts(pool))
    pool.restart_pool()
    pool.await_status("slowly", lambda status: status.workers == ["runner"])
    assert pool.client.call("slowly", [0, "after the restart"], user_id=USER) == "done"
    ended = threading.Thread(target=lambda: pool.workers["runner"].stop())
    ended.start()
    eventually(lambda: "runner" not in hosts(pool))
    ended.join()


def test_an_operator_says_how_many_calls_a_user_has_and_how_many_wait(pool: FunctionPool) -> None:
    pool.deploy("until", "app:until", pool.directory, limits=Limits(wall_s=300.0))
    client = pool.client
    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(client.call, "until", ["end", "first"], user_id="few")
        eventually(lambda: client.find("first", user_id="few") is not None)
        more = [callers.submit(client.call, "until", ["end", mark], user_id="few") for mark in ("second", "third")]
        eventually(lambda: any(call.done() for call in more))
        refused, waits = sorted(more, key=lambda call: not call.done())
        with pytest.raises(StorageError, match=r"1 calls under way and 1 waiting.*--user-queue.*try again"):
            refused.result()
        assert not waits.done()
        client.push(b"go", user_id="few", filename="end")
        assert first.result(WAIT_S) == "first"
        assert waits.result(WAIT_S) in ("second", "third")


def test_labels_are_bounded() -> None:
    assert labels_from_texts(["gpu=none", "a/b.c=1-2"]) == {"gpu": "none", "a/b.c": "1-2"}
    for text in ("gpu", "=x", "gpu=", "gpu=a b", "x" * 65 + "=1"):
        with pytest.raises(InvalidArgument, match="label"):
            labels_from_texts([text])
    with pytest.raises(InvalidArgument, match="given twice"):
        labels_from_texts(["gpu=none", "gpu=a100"])
    with pytest.raises(InvalidArgument, match="at most 32"):
        labels_from_texts(f"l{number}=1" for number in range(33))
