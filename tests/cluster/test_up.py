"""`taskworker up`, and workers inside other programs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskworker import Client, TaskWorker
from taskworker.protos import taskworker_pb2
from tests.cluster.processes import WAIT_S, Cluster

Start = Callable[..., tuple[subprocess.Popen[bytes], dict[str, object]]]


@pytest.fixture
def up() -> Iterator[Start]:
    """Starts `taskworker up`; whatever happens, it has ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(directory: Path, *more: str) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
        process, told = _up(directory, *more)
        started.append(process)
        return process, told

    yield start
    for process in started:
        if process.poll() is None:
            _end(process)


def _up(directory: Path, *more: str) -> tuple[subprocess.Popen[bytes], dict[str, object]]:
    arguments = ["up", "--dir", str(directory), "--workers", "4", "--listen", "127.0.0.1:0", "--json", *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "taskworker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    told = b""
    while piece := os.read(process.stdout.fileno(), 4096):
        told += piece
        try:
            return process, json.loads(told)
        except ValueError:
            continue
    raise AssertionError(process.communicate(timeout=WAIT_S)[1].decode())


def _end(process: subprocess.Popen[bytes]) -> str:
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=WAIT_S)[1].decode()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_ctrl_c_ends_all_and_the_data_stay(up: Start, tmp_path: Path) -> None:
    process, told = up(tmp_path / "data", "--k", "2", "--n", "4")
    processes = told["processes"]
    assert isinstance(processes, list)
    assert [one["name"] for one in processes] == ["pool", "worker_001", "worker_002", "worker_003", "worker_004"]
    with Client(str(told["pool"])) as client:
        file_id = client.push(b"kept", filename="a", user_id="ann").file_id
    _end(process)
    assert process.returncode == 0
    assert not [one for one in processes if _alive(one["pid"])]

    _, told = up(tmp_path / "data")
    with Client(str(told["pool"])) as client:
        assert client.get(file_id, user_id="ann") == b"kept"


def test_a_worker_that_dies_is_told_of_and_started_again_if_asked(up: Start, tmp_path: Path) -> None:
    process, told = up(tmp_path / "data", "--k", "2", "--n", "4", "--restart")
    processes = told["processes"]
    assert isinstance(processes, list)
    os.kill(processes[2]["pid"], signal.SIGKILL)
    assert process.stderr is not None
    said = ""
    while "is back" not in said:
        said += process.stderr.readline().decode()
    assert "worker_002" in said
    assert "by signal SIGKILL; it is started again" in said


def test_a_program_offers_a_volume_and_uses_the_pool(tmp_path: Path) -> None:
    async def run(address: str) -> None:
        worker = TaskWorker("mine", node_pool_address=address, volume=tmp_path / "mine", capacity=10 << 30)
        await worker.start_server(port=0)
        await asyncio.to_thread(cluster.await_status, lambda status: len(status.workers) == 4)
        push = taskworker_pb2.PushRequest(file_data=b"hello", filename="a.txt", user_id="u1")
        pushed = await worker.storage.Push(push)
        fetched = await worker.storage.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u1"))
        assert fetched.file_data == b"hello"
        await worker.stop_server()
        state = next(one.state for one in cluster.status().workers if one.worker_id == "mine")
        assert state == "left"
        await worker.close()

    with Cluster(tmp_path, workers=3) as cluster:
        asyncio.run(run(cluster.address))
