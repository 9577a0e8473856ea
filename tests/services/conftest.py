"""A real server on loopback, around a real store with small chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from storage import ErasureProfile, FileStorage
from taskworker import Client
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc.admission import DEFAULT_LIMITS, ServerLimits
from taskworker.rpc.serving import Server
from taskworker.services.file_server import FileServer

CHUNK = 64 * 1024
MIB_PLENTY = 1 << 20  # too much for one message
RECEIVE_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Raw:
    """Plain generated stubs on a plain channel: what a stranger's client is."""

    channel: grpc.Channel
    files: FileServiceStub
    store: StoreServiceStub


def text_of(error: grpc.RpcError) -> str:
    """What a failed call says."""
    return error.details() or ""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStorage]:
    with FileStorage.open(tmp_path / "store", profile=ErasureProfile(2, 3), chunk_size=CHUNK) as opened:
        yield opened


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server around a store and returns its address; stops it at the end."""
    with ExitStack() as stack:

        def start(store: FileStorage | None, limits: ServerLimits = DEFAULT_LIMITS) -> str:
            server = Server({}) if store is None else FileServer(store, limits=limits)
            port = server.start("127.0.0.1:0")
            stack.callback(server.stop, 1.0)
            return f"127.0.0.1:{port}"

        yield start


@pytest.fixture
def address(store: FileStorage, serve: Serve) -> str:
    return serve(store)


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as connected:
        yield connected


@pytest.fixture
def raw(address: str) -> Iterator[Raw]:
    options = [("grpc.max_receive_message_length", RECEIVE_MAX), ("grpc.max_send_message_length", RECEIVE_MAX)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield Raw(channel, FileServiceStub(channel), StoreServiceStub(channel))
