"""Whatever bytes come, a call ends with a status this server means: never INTERNAL or UNKNOWN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FileStorage, Version
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.services.file_server import FileServer
from tests.services.conftest import CHUNK

USER = "u1"
OK = grpc.StatusCode.OK
MEANT = {
    OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
NOT_OFFERED = {"PrepareChunks", "PlaceChunks", "SettleChunks"}
"""Calls about workers, which a store on this machine does not have."""
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(FUZZ, max_examples=50)  # for each of some thirty methods
LONG = settings(FUZZ, max_examples=5_000)
ANY_BYTES = st.lists(st.binary(max_size=200), min_size=1, max_size=3)


class Served:
    """A server with one file in it, and untyped calls on it."""

    def __init__(self, channel: grpc.Channel, store: FileStorage, version: Version) -> None:
        self.channel = channel
        self.store = store
        self.version = version

    def code_of(
        self, method: str, messages: list[bytes], *, streamed: bool, answered_by_stream: bool
    ) -> grpc.StatusCode:
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(method)
        sending: grpc.StreamUnaryMultiCallable[bytes, bytes] = self.channel.stream_unary(method)
        receiving: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(method)
        try:
            if streamed:
                sending(iter(messages))
            elif answered_by_stream:
                list(receiving(messages[0]))
            else:
                unary(messages[0])
        except grpc.RpcError as error:
            return error.code()
        return OK


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with (
        TemporaryDirectory() as directory,
        FileStorage.open(Path(directory) / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as store,
    ):
        version = store.push(bytes(3 * CHUNK + 1), filename="a", user_id=USER)
        server = FileServer(store)
        port = server.start("127.0.0.1:0")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(channel, store, version)
        server.stop(1.0)


METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in (
        taskworker_pb2.DESCRIPTOR.services_by_name["FileService"],
        store_pb2.DESCRIPTOR.services_by_name["StoreService"],
    )
    for method in service.methods
}


@pytest.mark.parametrize("method", METHODS)
@FEW
@given(messages=ANY_BYTES)
def test_any_bytes(method: str, messages: list[bytes], served: Served) -> None:
    check_answer(method, messages, served)


@pytest.mark.campaign
@pytest.mark.parametrize("method", METHODS)
@LONG
@given(messages=ANY_BYTES)
def test_any_bytes_for_long(method: str, messages: list[bytes], served: Served) -> None:
    check_answer(method, messages, served)


def check_answer(method: str, messages: list[bytes], served: Served) -> None:
    described = METHODS[method]
    code = served.code_of(
        method, messages, streamed=described.client_streaming, answered_by_stream=described.server_streaming
    )
    assert code in MEANT or (code is grpc.StatusCode.UNIMPLEMENTED and described.name in NOT_OFFERED)


sizes = st.sampled_from([0, 1, CHUNK, 3 * CHUNK, 3 * CHUNK + 1, 10 * CHUNK, 1 << 62, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
some_data = st.sampled_from([b"", b"x", bytes(CHUNK), b"\1" * CHUNK])


@st.composite
def some_patches(draw: st.DrawFn) -> store_pb2.Patch:
    from blake3 import blake3

    data = draw(some_data)
    chunk_id = draw(st.just(blake3(data).digest()) | st.binary(max_size=33))
    return store_pb2.Patch(
        index=draw(st.integers(0, 4) | sizes), chunk_id=chunk_id, data=data if draw(st.booleans()) else None
    )


@st.composite
def some_diffs(draw: st.DrawFn, bases: list[str]) -> store_pb2.ManifestDiff:
    return store_pb2.ManifestDiff(
        base_version=draw(st.sampled_from(bases) | st.text(max_size=70)),
        new_size=draw(sizes),
        chunk_size=draw(st.just(CHUNK) | sizes),
        patches=draw(st.lists(some_patches(), max_size=4)),
        target_version=draw(st.text(max_size=5)),
    )


@FUZZ
@given(data=st.data())
def test_likely_differences(served: Served, data: st.DataObject) -> None:
    head = served.store.stat(served.version.file_id, user_id=USER)
    diff = data.draw(some_diffs([head.version_id, served.version.version_id]))
    how = data.draw(st.sampled_from(["Revise", "Synchronous", "ReviseStream"]))
    if how == "Revise":
        request = taskworker_pb2.ReviseRequest(
            file_id=head.file_id,
            user_id=data.draw(st.sampled_from([USER, "u2", ""])),
            time=data.draw(st.integers(-(1 << 63), (1 << 63) - 1)),
            sha256=data.draw(st.just("") | st.text(max_size=70)),
            difference=diff.SerializeToString(),
        )
        code = served.code_of(
            "/taskworker.FileService/Revise", [request.SerializeToString()], streamed=False, answered_by_stream=False
        )
    elif how == "Synchronous":
        state = store_pb2.SyncState(version_id=diff.base_version, user_id=USER, diff=diff)
        message = taskworker_pb2.SynchronousRequest(file_id=head.file_id, difference=state.SerializeToString())
        code = served.code_of(
            "/taskworker.FileService/Synchronous",
            [message.SerializeToString()],
            streamed=False,
            answered_by_stream=False,
        )
    else:
        header = store_pb2.ReviseHeader(
            file_id=head.file_id,
            user_id=USER,
            base_version=diff.base_version,
            new_size=diff.new_size,
            chunk_size=diff.chunk_size,
        )
        part = store_pb2.RevisePart(
            header=header, patches=diff.patches, commit=store_pb2.ReviseCommit(patch_count=len(diff.patches))
        )
        code = served.code_of(
            "/taskworker.store.StoreService/ReviseStream",
            [part.SerializeToString()],
            streamed=True,
            answered_by_stream=False,
        )
    assert code in MEANT
    # Whatever was taken in, it is a file that can be read.
    version = served.store.stat(served.version.file_id, user_id=USER)
    with served.store.open_file(version.file_id, user_id=USER) as reader:
        reader.seek(max(0, reader.size - 3 * CHUNK))
        assert len(reader.read()) == min(reader.size, 3 * CHUNK)


some_parts = st.builds(
    store_pb2.PushPart,
    header=st.none()
    | st.builds(
        store_pb2.PushHeader,
        filename=st.text(max_size=5),
        user_id=st.sampled_from([USER, ""]),
        chunk_size=st.sampled_from([0, 1, CHUNK, CHUNK + 1, 1 << 63]),
        profile=st.none() | st.builds(store_pb2.ErasureProfile, k=st.integers(0, 3), n=st.integers(0, 3)),
        time_ms=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        sha256=st.sampled_from(["", "x", "0" * 64]),
        note=st.text(max_size=5),
        size_hint=sizes,
    ),
    data=some_data,
    reuse=st.none()
    | st.builds(store_pb2.ChunkList, chunk_ids=st.lists(st.binary(max_size=33) | st.just(bytes(32)), max_size=3)),
    commit=st.none() | st.builds(store_pb2.PushCommit, size=sizes),
)


@FUZZ
@given(parts=st.lists(some_parts, max_size=4))
def test_likely_pushes(served: Served, parts: list[store_pb2.PushPart]) -> None:
    code = served.code_of(
        "/taskworker.store.StoreService/PushStream",
        [part.SerializeToString() for part in parts],
        streamed=True,
        answered_by_stream=False,
    )
    assert code in MEANT
