"""Functions of a user's own program: on a worker of its own, and on a worker of a pool."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.errors import InvalidArgument
from taskworker import AsyncClient, Limits, TaskWorker
from taskworker.errors import FunctionFailed, FunctionNotFound
from taskworker.protos import taskworker_pb2
from tests.functions.processes import USER, FunctionPool

FACTOR = 10


def scaled(value: float) -> float:
    return value * FACTOR


@contextlib.asynccontextmanager
async def serving(worker: TaskWorker) -> AsyncIterator[AsyncClient]:
    async with worker:
        await worker.start_server(port=0)
        async with AsyncClient(str(worker.address), timeout_s=60.0) as client:
            yield client


def test_a_worker_on_its_own_serves_its_functions(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path / "store")

    @worker.function("calculate")
    def calculate(a: int, b: int) -> int:
        return a + b

    @worker.function()
    async def pause(seconds: float = 0.01) -> str:
        await asyncio.sleep(seconds)
        return "rested"

    @worker.function(limits=Limits(memory_bytes=64 << 20))
    def stored(text: str) -> list[str]:
        worker.storage.push(text.encode(), "from inside")  # type: ignore[attr-defined]  # inside, it is another worker
        return [file.filename for file in worker.storage.list()]  # type: ignore[attr-defined]

    worker.register_function("scaled", scaled)

    async def scenario() -> None:
        async with serving(worker) as client:
            assert await client.call("calculate", [3, 4], user_id=USER) == 7
            assert await client.call("pause", user_id=USER) == "rested"
            assert await client.call("scaled", [1.5], user_id=USER) == 15.0
            assert await client.call("stored", ["深"], user_id=USER) == ["from inside"]
            response = await worker.storage.Push(
                taskworker_pb2.PushRequest(file_data=b"outside", filename="a.txt", user_id=USER)
            )
            assert response.status
            with pytest.raises(FunctionNotFound):
                await client.call("absent", user_id=USER)
            worker.register_function("late", lambda: "late")
            assert await client.call("late", user_id=USER) == "late"

    asyncio.run(scenario())


def test_what_cannot_be_sent_into_a_sandbox_is_refused_when_it_is_declared(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path / "store")
    with socket.socket() as connection, pytest.raises(InvalidArgument, match="'connection', a socket"):

        @worker.function("talk")
        def talk() -> int:
            return connection.fileno()

    with pytest.raises(InvalidArgument, match="name"):
        worker.register_function("no good", scaled)
    worker.register_function("scaled", scaled)
    with pytest.raises(InvalidArgument, match="already"):
        worker.register_function("scaled", scaled)
    with pytest.raises(InvalidArgument, match=r"no option .speed.; there are limits, cache_ttl, idempotent"):
        worker.register_function("other", scaled, speed=9)
    for limits in ({"speed": 1}, {"wall_s": "long"}, {"wall_s": 1e9}, 5):
        with pytest.raises(InvalidArgument, match="limit"):
            worker.register_function("other", scaled, limits=limits)
    with pytest.raises(InvalidArgument, match="config"):
        worker.register_function("other", scaled, config={"key": 1})


def test_what_an_operator_does_not_allow_is_not_served(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path / "store", limits_max=Limits(wall_s=60))
    worker.register_function("scaled", scaled, limits={"wall_s": 61})
    with pytest.raises(InvalidArgument, match=r"wall_s is 61.*at most 60.*--limits-max"):
        asyncio.run(worker.start_server(port=0))


def test_limits_and_configuration_are_given_where_a_function_is_declared(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path / "store")

    @worker.function(limits={"wall_s": 5, "memory": 64 << 20}, config={"rate": "0.5"})
    def left() -> tuple[float, str]:
        return worker.caller.deadline_left, worker.config["rate"]  # type: ignore[attr-defined]

    worker.register_function("scaled", scaled, limits=Limits(wall_s=5))

    async def scenario() -> None:
        async with serving(worker) as client:
            left_s, rate = await client.call("left", user_id=USER)
            assert left_s <= 5
            assert rate == "0.5"

    asyncio.run(scenario())


def test_functions_may_refer_to_what_is_defined_after_them(tmp_path: Path) -> None:
    worker = TaskWorker("alone", store=tmp_path / "store")

    @worker.function()
    def first() -> str:
        return second()

    def second() -> str:
        return "second"

    async def scenario() -> None:
        async with serving(worker) as client:
            assert await client.call("first", user_id=USER) == "second"

    asyncio.run(scenario())


def test_a_pool_s_worker_brings_functions_and_runs_deployed_ones(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def deployed(): return 'deployed'\n")
    with FunctionPool(tmp_path, workers=2) as pool:
        worker = TaskWorker("program", node_pool_address=pool.address, volume=tmp_path / "program", capacity=10 << 30)

        @worker.function("calculate", idempotent=False)
        def calculate(a: int, b: int) -> int:
            return a + b

        @worker.function()
        def fails() -> None:
            raise KeyError("深")

        @worker.function()
        def both(a: int) -> list[object]:
            return [worker.call("calculate", a, 1), worker.call("deployed")]  # type: ignore[attr-defined]

        async def scenario() -> None:
            async with worker:
                await worker.start_server(port=0)
                status = await asyncio.to_thread(pool.await_workers, "calculate", 1)
                assert (status.workers, status.version_id, status.idempotent) == (["program"], "", False)
                async with AsyncClient(pool.address, timeout_s=60.0) as client:
                    assert await client.call("calculate", [3, 4], user_id=USER) == 7
                    with pytest.raises(FunctionFailed, match=r"KeyError: .深.\n  test_worker_program.py:\d+ in fails"):
                        await client.call("fails", user_id=USER)
                    await asyncio.to_thread(pool.deploy, "deployed", "app:deployed", tmp_path)
                    assert await client.call("both", [1], user_id=USER) == [2, "deployed"]
            await asyncio.to_thread(pool.await_gone, "calculate")

        asyncio.run(scenario())


USAGE = """
import asyncio
import grpc
from taskworker import TaskWorker
from taskworker.protos import taskworker_pb2, taskworker_pb2_grpc
from taskworker.rpc.dialling import dial_async

worker = TaskWorker("worker_001", node_pool_address="{address}")

@worker.function("calculate")
def calculate(a: int, b: int) -> int: return a + b

def func(text: str) -> str: return text.upper()
worker.register_function("name", func)

async def main():
    await worker.start_server(port=50052)
    response = await worker.storage.Push(taskworker_pb2.PushRequest(file_data=b"hello", filename="a.txt", user_id="u1"))
    data = await worker.storage.Get(taskworker_pb2.GetRequest(file_id=response.file_id, user_id="u1"))
    assert data.file_data == b"hello"
    async with dial_async("{address}") as channel:
        rpc = taskworker_pb2_grpc.RPCServiceStub(channel)
        call = taskworker_pb2.FunctionCallRequest(function_name="calculate", args=["3", "4"], user_id="u1")
        for _ in range(100):
            try:
                answer = await rpc.CallFunction(call, timeout=30)
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() == grpc.StatusCode.NOT_FOUND, error
                await asyncio.sleep(0.1)
        print(answer.result, answer.status)
        call = taskworker_pb2.FunctionCallRequest(function_name="name", kwargs={{"text": "shout"}}, user_id="u1")
        print((await rpc.CallFunction(call, timeout=30)).result)
    await worker.stop_server()

asyncio.run(main())
"""


def test_the_usage_text_runs_as_a_program(tmp_path: Path) -> None:
    import subprocess
    import sys

    with FunctionPool(tmp_path, workers=2) as pool:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = USAGE.format(address=pool.address).replace("port=50052", f"port={port}")
        (tmp_path / "program.py").write_text(program)
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # has the sandboxes' root, made once
        done = subprocess.run(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(tmp_path),
                "XDG_CACHE_HOME": cache,
                "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"],  # has the token for the pool
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["7 True", json.dumps("SHOUT")]
