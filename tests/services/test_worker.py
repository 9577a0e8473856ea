"""TaskWorker: standalone and with a pool."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import storage
from storage import ConflictError, FileNotFound, FileStorage, InvalidArgument, StoreLocked
from taskworker import Client, TaskWorker
from taskworker.errors import FunctionNotFound, StorageUnavailable, Unauthenticated
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.worker.places import default_store

PUSH = taskworker_pb2.PushRequest(file_data=b"content", filename="a.txt", user_id="u1")


def test_in_process_without_a_server(tmp_path: Path) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", store=tmp_path / "store") as worker:
            pushed = await worker.storage.Push(PUSH)
            assert (pushed.status, bool(pushed.message)) == (True, True)
            got = await worker.storage.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u1"))
            assert (got.status, got.file_data, got.version_id) == (True, b"content", pushed.version_id)
            diff = store_pb2.ManifestDiff(base_version=pushed.version_id, new_size=0, chunk_size=1 << 20)
            revised = await worker.storage.Revise(
                taskworker_pb2.ReviseRequest(file_id=pushed.file_id, user_id="u1", difference=diff.SerializeToString())
            )
            assert revised.status
            state = store_pb2.SyncState(version_id=pushed.version_id, user_id="u1")
            answer = await worker.storage.Synchronous(
                taskworker_pb2.SynchronousRequest(file_id=pushed.file_id, difference=state.SerializeToString())
            )
            assert (answer.status, answer.version_id) == (True, revised.version_id)

    asyncio.run(run())


@pytest.mark.parametrize("remote", [False, True])
def test_errors_are_the_engines_in_process_and_through_a_pool(remote: bool, tmp_path: Path) -> None:
    async def run() -> None:
        async with TaskWorker("pool", store=tmp_path / "store") as pool:
            await pool.start_server(port=0)
            worker = TaskWorker("worker_001", node_pool_address=pool.address) if remote else pool
            pushed = await worker.storage.Push(PUSH)
            with pytest.raises(FileNotFound):
                await worker.storage.Get(taskworker_pb2.GetRequest(file_id="0" * 32, user_id="u1"))
            with pytest.raises(FileNotFound):
                await worker.storage.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u2"))
            with pytest.raises(InvalidArgument, match="filename"):
                await worker.storage.Push(taskworker_pb2.PushRequest(filename="..", user_id="u1"))
            with pytest.raises(InvalidArgument, match="difference"):
                await worker.storage.Synchronous(taskworker_pb2.SynchronousRequest(file_id=pushed.file_id))
            newer = await worker.storage.Push(
                taskworker_pb2.PushRequest(file_data=b"newer", filename="a.txt", user_id="u1")
            )
            diff = store_pb2.ManifestDiff(base_version=pushed.version_id, chunk_size=1 << 20)
            with pytest.raises(ConflictError) as conflict:
                await worker.storage.Revise(
                    taskworker_pb2.ReviseRequest(
                        file_id=pushed.file_id, user_id="u1", difference=diff.SerializeToString()
                    )
                )
            assert conflict.value.head == newer.version_id
            await worker.close()

    asyncio.run(run())


def test_no_pool_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", node_pool_address="127.0.0.1:1") as worker:
            with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1"):
                await worker.storage.Push(PUSH)

    asyncio.run(run())


def test_the_server_and_the_process_share_the_store(tmp_path: Path) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", store=tmp_path / "store") as worker:
            port = await worker.start_server(port=0)
            assert worker.address == f"127.0.0.1:{port}"
            pushed = await worker.storage.Push(PUSH)

            def fetch() -> bytes:
                with Client(worker.address or "") as client:
                    return client.get(pushed.file_id, user_id="u1")

            assert await asyncio.to_thread(fetch) == b"content"
            with pytest.raises(InvalidArgument, match="already"):
                await worker.start_server(port=0)
            await worker.stop_server()
            assert not worker.address
            with FileStorage.open(tmp_path / "store") as released:
                assert released.get(pushed.file_id, user_id="u1") == b"content"
            again = await worker.storage.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u1"))
            assert again.file_data == b"content"
            await worker.start_server(port=0)
            await worker.stop_server()
            await worker.stop_server()
            await worker.wait_for_termination()

    asyncio.run(run())


def test_a_store_that_was_given_open_stays_open(store: FileStorage) -> None:
    async def run() -> str:
        async with TaskWorker("worker_001", store=store) as worker:
            await worker.start_server(port=0)
            return (await worker.storage.Push(PUSH)).file_id

    assert store.get(asyncio.run(run()), user_id="u1") == b"content"


def test_a_store_another_has_open(store: FileStorage) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", store=store.path) as worker:
            with pytest.raises(StoreLocked):
                await worker.start_server(port=0)

    asyncio.run(run())


@pytest.mark.parametrize("worker_id", ["", ".", "..", "a/b", "a b", "x" * 65, "\0", "é"])
def test_ids_no_worker_may_have(worker_id: str) -> None:
    with pytest.raises(InvalidArgument, match="worker_id"):
        TaskWorker(worker_id)


def test_a_port_others_can_reach_is_refused(store: FileStorage) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", store=store, host="0.0.0.0") as worker:
            with pytest.raises(InvalidArgument, match="not be encrypted"):
                await worker.start_server(port=0)

    asyncio.run(run())


def test_where_a_store_is_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_store("worker_001") == tmp_path / "taskworker" / "worker_001"

    async def run() -> None:
        async with TaskWorker("worker_001") as worker:
            await worker.storage.Push(PUSH)

    asyncio.run(run())
    assert (tmp_path / "taskworker" / "worker_001").is_dir()
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store("w") == tmp_path / "home" / ".local" / "share" / "taskworker" / "w"


def test_names_of_the_package_are_loaded_when_used() -> None:
    code = (
        "import sys, taskworker; assert not {'grpc', 'storage'} & set(sys.modules); "
        "from taskworker import TaskWorker, Client, AsyncClient, FileStorage; "
        "from taskworker import taskworker_pb2; assert 'Client' in dir(taskworker)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import taskworker

    assert taskworker.FileStorage is storage.FileStorage
    with pytest.raises(AttributeError):
        _ = taskworker.Nothing


@pytest.mark.parametrize("no_auth", [False, True])
def test_a_standalone_worker_serves_its_owner_and_strangers_only_if_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_auth: bool
) -> None:
    async def run() -> None:
        async with TaskWorker("worker_001", store=tmp_path / "store", no_auth=no_auth) as worker:
            await worker.start_server(port=0)
            address = worker.address or ""

            def use() -> None:
                with Client(address) as client:
                    client.stats()
                    with pytest.raises(FunctionNotFound):
                        client.call("absent", user_id="u1")

            await asyncio.to_thread(use)
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
            if no_auth:
                await asyncio.to_thread(use)
                return
            with Client(address) as client:
                for call in (client.stats, lambda: client.call("absent", user_id="u1")):
                    with pytest.raises(Unauthenticated):
                        await asyncio.to_thread(call)

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "owner"))
    asyncio.run(run())
