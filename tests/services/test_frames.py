"""Data frames are protobuf: what one writes the other reads, and nothing else is taken for a frame."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from storage import FileStorage
from taskworker import Client
from taskworker.protos import store_pb2
from taskworker.rpc.data_frames import data_frame, data_of_frame
from tests.services.conftest import CHUNK, Raw


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_a_frame_is_a_message_of_data(pieces: list[bytes]) -> None:
    frame = data_frame(*pieces)
    data = b"".join(pieces)
    assert store_pb2.PushPart.FromString(frame) == store_pb2.PushPart(data=data)
    assert store_pb2.GetPart.FromString(frame) == store_pb2.GetPart(data=data)
    view = data_of_frame(frame)
    assert view is not None
    assert bytes(view) == data


@pytest.mark.parametrize("size", [1, 127, 128, 16383, 16384, (1 << 21) - 1, 1 << 21])
def test_lengths_around_the_steps_of_their_encoding(size: int) -> None:
    message = store_pb2.PushPart(data=bytes(size)).SerializeToString()
    assert data_frame(bytes(size)) == message
    view = data_of_frame(message)
    assert view is not None
    assert view.nbytes == size


def test_messages_that_hold_more_than_data_are_left_to_protobuf() -> None:
    part = store_pb2.PushPart(data=b"abc", commit=store_pb2.PushCommit(size=3))
    assert data_of_frame(part.SerializeToString()) is None
    assert data_of_frame(store_pb2.PushPart(header=store_pb2.PushHeader(filename="a")).SerializeToString()) is None
    assert data_of_frame(b"") is None
    assert data_of_frame(data_frame(b"abc") * 2) is None


@given(st.binary(max_size=40) | st.builds(lambda tail: b"\x12" + tail, st.binary(max_size=40)))
def test_whatever_is_read_as_a_frame_protobuf_reads_the_same(raw: bytes) -> None:
    data = data_of_frame(raw)
    if data is not None:
        try:
            assert store_pb2.PushPart.FromString(raw) == store_pb2.PushPart(data=bytes(data))
        except DecodeError:  # protobuf refuses lengths written with more bytes than needed past ten
            pytest.fail(f"{raw!r} was taken for a frame")


def parts(data: bytes, step: int) -> Iterator[store_pb2.PushPart]:
    yield store_pb2.PushPart(header=store_pb2.PushHeader(filename="a", user_id="u1"))
    for start in range(0, len(data), step):
        yield store_pb2.PushPart(data=data[start : start + step])
    yield store_pb2.PushPart(commit=store_pb2.PushCommit(size=len(data)))


def test_a_plain_client_pushes_to_and_gets_from_the_server(raw: Raw, client: Client) -> None:
    data = bytes(range(256)) * 9000
    version = raw.store.PushStream(parts(data, 100_001)).version
    assert client.get(version.file_id, user_id="u1") == data
    messages = list(raw.store.GetStream(store_pb2.GetStreamRequest(file_id=version.file_id, user_id="u1")))
    assert messages[0].version == version
    assert not any(message.HasField("version") for message in messages[1:])
    assert b"".join(message.data for message in messages) == data


class PlainServer:
    """A server made of protobuf alone, that the client must understand."""

    def __init__(self, store: FileStorage) -> None:
        self.store = store
        self.received: list[store_pb2.PushPart] = []

    def handler(self) -> grpc.GenericRpcHandler:
        message = store_pb2.PushStreamResponse
        return grpc.method_handlers_generic_handler(
            "taskworker.store.StoreService",
            {
                "PushStream": grpc.stream_unary_rpc_method_handler(
                    self.push,
                    request_deserializer=store_pb2.PushPart.FromString,
                    response_serializer=message.SerializeToString,
                ),
                "GetStream": grpc.unary_stream_rpc_method_handler(
                    self.get,
                    request_deserializer=store_pb2.GetStreamRequest.FromString,
                    response_serializer=store_pb2.GetPart.SerializeToString,
                ),
            },
        )

    def push(self, parts: Iterator[store_pb2.PushPart], _context: grpc.ServicerContext) -> store_pb2.PushStreamResponse:
        self.received = list(parts)
        return store_pb2.PushStreamResponse(version=self.version())

    def get(self, _request: store_pb2.GetStreamRequest, _context: grpc.ServicerContext) -> Iterator[store_pb2.GetPart]:
        yield store_pb2.GetPart(version=self.version())
        data = b"".join(part.data for part in self.received)
        for start in range(0, len(data), 70_000):
            yield store_pb2.GetPart(data=data[start : start + 70_000])

    def version(self) -> store_pb2.Version:
        size = sum(len(part.data) for part in self.received)
        return store_pb2.Version(
            file_id="f", version_id="v", size=size, chunk_size=CHUNK, profile=store_pb2.ErasureProfile(k=1, n=1)
        )


def test_the_client_understands_a_plain_server(store: FileStorage) -> None:
    from concurrent.futures import ThreadPoolExecutor

    plain = PlainServer(store)
    data = bytes(range(256)) * 9000
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads, handlers=[plain.handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with Client(f"127.0.0.1:{port}") as client:
                version = client.push(
                    (data[at : at + 999] for at in range(0, len(data), 999)), filename="a", user_id="u"
                )
                assert version.size == len(data)
                assert plain.received[0].header.filename == "a"
                assert plain.received[-1].commit.size == len(data)
                assert client.get("f", user_id="u") == data
                assert client.push(b"small", filename="b", user_id="u").size == 5, (
                    "by a stream, as it offers nothing else"
                )
        finally:
            server.stop(None).wait()
