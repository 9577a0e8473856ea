"""The public contract: numbers, usage text, generated code."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor

from storage import FileStorage, ManifestDiff, Patch
from taskworker import TaskWorker
from taskworker.apps.pool_server import PoolServer
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2, taskworker_pb2
from tests.services.conftest import CHUNK, Raw

REPOSITORY = Path(__file__).parents[2]

# Design, section 6: numbers and types that every client ever made relies on.
CONTRACT = {
    "PushRequest": "file_data=1 bytes, filename=2 string, user_id=3 string",
    "PushResponse": "file_id=1 string, status=2 bool, message=3 string",
    "GetRequest": "file_id=1 string, user_id=2 string",
    "GetResponse": "file_data=1 bytes, status=2 bool, message=3 string",
    "ReviseRequest": "file_id=1 string, sha256=2 string, time=3 int64, user_id=4 string, difference=5 bytes",
    "ReviseResponse": "file_id=1 string, status=2 bool, message=3 string",
    "SynchronousRequest": "file_id=1 string, difference=2 bytes",
    "SynchronousResponse": "file_id=1 string, status=2 bool, message=3 string",
    "FunctionCallRequest": "function_name=1 string, args=2 string, kwargs=3 message, user_id=4 string",
    "FunctionCallResponse": "result=1 string, status=2 bool, error=3 string",
    "DNSRequest": "domain=1 string, request_type=2 string",
    "DNSResponse": "resolved_ip=1 string, status=2 bool, message=3 string",
}
SERVICES = {
    "FileService": ["Push", "Get", "Revise", "Synchronous"],
    "RPCService": ["CallFunction"],
    "DNSService": ["ResolveDomain"],
}
TYPES = {3: "int64", 8: "bool", 9: "string", 11: "message", 12: "bytes"}


def fields(message: Descriptor) -> list[str]:
    return [f"{field.name}={field.number} {TYPES[field.type]}" for field in message.fields]


@pytest.mark.parametrize("name", CONTRACT)
def test_numbers_of_fields_are_fixed(name: str) -> None:
    promised = CONTRACT[name].split(", ")
    message = taskworker_pb2.DESCRIPTOR.message_types_by_name[name]
    assert fields(message)[: len(promised)] == promised
    assert all(field.number > len(promised) for field in message.fields[len(promised) :])


def test_repeated_and_map_fields_are_as_promised() -> None:
    request = taskworker_pb2.FunctionCallRequest(args=["1"], kwargs={"b": "2"})
    assert list(request.args) == ["1"]
    assert dict(request.kwargs) == {"b": "2"}


def test_services_are_as_promised_and_unary() -> None:
    assert taskworker_pb2.DESCRIPTOR.package == "taskworker"
    for name, methods in SERVICES.items():
        service = taskworker_pb2.DESCRIPTOR.services_by_name[name]
        assert [method.name for method in service.methods] == methods
        assert not any(method.client_streaming or method.server_streaming for method in service.methods)


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("generate", REPOSITORY / "protos" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for path in module.generate(tmp_path):
        checked_in = REPOSITORY / path.relative_to(tmp_path)
        assert checked_in.read_text() == path.read_text(), f"{checked_in.name} is stale: run python protos/generate.py"


def test_usage_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True))  # this one worker has to do
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"

    async def run() -> None:
        worker = TaskWorker("worker_001", node_pool_address=address)
        await worker.start_server(port=0)
        response = await worker.storage.Push(
            taskworker_pb2.PushRequest(file_data=b"content", filename="a.txt", user_id="u1")
        )
        assert response.status
        assert response.file_id
        response_ = await worker.storage.Get(taskworker_pb2.GetRequest(file_id=response.file_id, user_id="u1"))
        assert response_.file_data == b"content"
        await worker.stop_server()
        await worker.close()

    try:
        asyncio.run(run())
    finally:
        pool.stop(0.0)


def push(raw: Raw, data: bytes, name: str = "a") -> taskworker_pb2.PushResponse:
    return raw.files.Push(taskworker_pb2.PushRequest(file_data=data, filename=name, user_id="u1"))


def get(raw: Raw, file_id: str, version_id: str = "") -> bytes:
    request = taskworker_pb2.GetRequest(file_id=file_id, user_id="u1", version_id=version_id)
    return raw.files.Get(request).file_data


@pytest.mark.parametrize("data", [b"", b"x", bytes(CHUNK), bytes(5 * CHUNK + 1)])
def test_push_and_get(raw: Raw, data: bytes) -> None:
    pushed = push(raw, data)
    assert pushed.status
    assert pushed.message
    answer = raw.files.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id="u1"))
    assert (answer.status, answer.file_data, answer.version_id) == (True, data, pushed.version_id)


def test_push_of_an_existing_name_makes_a_version_of_the_same_file(raw: Raw) -> None:
    first, second = push(raw, b"one"), push(raw, b"two")
    assert first.file_id == second.file_id
    assert get(raw, first.file_id) == b"two"
    assert get(raw, first.file_id, first.version_id) == b"one"
    assert push(raw, b"two").version_id == second.version_id


def revise(raw: Raw, file_id: str, diff: ManifestDiff, time: int) -> taskworker_pb2.ReviseResponse:
    from taskworker.rpc.conversion import diff_to_proto

    request = taskworker_pb2.ReviseRequest(
        file_id=file_id, user_id="u1", difference=diff_to_proto(diff).SerializeToString(), time=time
    )
    return raw.files.Revise(request)


def test_revise_applies_a_diff_and_keeps_the_authors_time(raw: Raw, store: FileStorage) -> None:
    pushed = push(raw, bytes(3 * CHUNK))
    changed = bytes(CHUNK) + b"\1" * CHUNK + bytes(CHUNK)
    diff = store.diff(pushed.file_id, changed, user_id="u1")
    answer = revise(raw, pushed.file_id, diff, time=123)
    assert answer.status
    assert get(raw, pushed.file_id) == changed
    assert store.stat(pushed.file_id, user_id="u1").time_ms == 123
    assert store.stat(pushed.file_id, user_id="u1").version_id == answer.version_id


def synchronize(
    raw: Raw, file_id: str, version_id: str, diff: store_pb2.ManifestDiff | None = None
) -> taskworker_pb2.SynchronousResponse:
    state = store_pb2.SyncState(version_id=version_id, user_id="u1", diff=diff)
    return raw.files.Synchronous(
        taskworker_pb2.SynchronousRequest(file_id=file_id, difference=state.SerializeToString())
    )


def one_patch(base: str, index: int, data: bytes, size: int) -> store_pb2.ManifestDiff:
    from blake3 import blake3

    patch = Patch(index, blake3(data).digest(), data)
    return store_pb2.ManifestDiff(
        base_version=base,
        new_size=size,
        chunk_size=CHUNK,
        patches=[store_pb2.Patch(index=patch.index, chunk_id=patch.chunk_id, data=patch.data)],
    )


def test_synchronous_of_equal_copies(raw: Raw) -> None:
    pushed = push(raw, b"one")
    answer = synchronize(raw, pushed.file_id, pushed.version_id)
    assert answer.status
    assert (answer.difference, answer.version_id) == (b"", pushed.version_id)


def test_synchronous_of_a_copy_left_behind(raw: Raw) -> None:
    old = push(raw, bytes(4 * CHUNK))
    new = push(raw, bytes(2 * CHUNK) + b"\1" * CHUNK + bytes(CHUNK))
    answer = synchronize(raw, old.file_id, old.version_id)
    diff = store_pb2.ManifestDiff.FromString(answer.difference)
    assert answer.version_id == diff.target_version == new.version_id
    assert diff.base_version == old.version_id
    assert [(patch.index, patch.data) for patch in diff.patches] == [(2, b"\1" * CHUNK)]


def test_synchronous_takes_the_callers_change(raw: Raw) -> None:
    pushed = push(raw, bytes(2 * CHUNK))
    diff = one_patch(pushed.version_id, 1, b"\2" * CHUNK, 2 * CHUNK)
    answer = synchronize(raw, pushed.file_id, pushed.version_id, diff)
    assert answer.status
    assert answer.version_id != pushed.version_id
    assert get(raw, pushed.file_id) == bytes(CHUNK) + b"\2" * CHUNK


def test_synchronous_repeated_after_a_lost_answer_is_equal(raw: Raw) -> None:
    pushed = push(raw, bytes(2 * CHUNK))
    diff = one_patch(pushed.version_id, 1, b"\2" * CHUNK, 2 * CHUNK)
    first = synchronize(raw, pushed.file_id, pushed.version_id, diff)
    again = synchronize(raw, pushed.file_id, pushed.version_id, diff)
    assert (again.status, again.version_id, again.difference) == (True, first.version_id, b"")
