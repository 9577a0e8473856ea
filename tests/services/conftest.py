"""A real server on loopback, around a real store with small chunks."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from storage import ErasureProfile, FileStorage
from taskworker import Client
from taskworker.auth.contexts import Context, Contexts
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc.admission import DEFAULT_LIMITS, ServerLimits
from taskworker.rpc.serving import Server
from taskworker.services.file_server import FileServer
from taskworker.services.store_server import StoreServer

CHUNK = 64 * 1024
MIB_PLENTY = 1 << 20  # too much for one message
RECEIVE_MAX = 256 * 1024 * 1024
LONG_S = 60.0
Shown = tuple[tuple[str, str | bytes], ...]


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


class Silent:
    """The messages of a call that sends some, and then no more."""

    def __init__(self, *first: Any) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()
        for one in first:
            self._queue.put(one)

    def __iter__(self) -> Iterator[Any]:
        while (item := self._queue.get()) is not None:
            yield item

    def end(self) -> None:
        self._queue.put(None)


@pytest.fixture
def silent() -> Iterator[Any]:
    """Makes messages of silent callers, who go home at the end."""
    with ExitStack() as stack:

        def make(*first: Any) -> Silent:
            made = Silent(*first)
            stack.callback(made.end)
            return made

        yield make


class Guarded:
    """A server whose users show tokens."""

    def __init__(self, store: FileStorage, limits: ServerLimits) -> None:
        self.server = StoreServer(store, limits=limits)
        self.address = f"127.0.0.1:{self.server.start('127.0.0.1:0')}"

    def shown(self, user: str) -> Shown:
        """What the calls of a user show."""
        return (("authorization", f"Bearer {self._token(user)}"),)

    def client(self, user: str) -> Client:
        """A client of a user, who is the one that this process runs for from now on."""
        Contexts().put(Context(self.address, self._token(user), user))
        return Client(self.address)

    def _token(self, user: str) -> str:
        if user not in [one.name for one in self.server.users.users()]:
            self.server.users.add(user)
        return self.server.users.create_token(user).text


@pytest.fixture
def guarded(store: FileStorage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "contexts"))
    with ExitStack() as stack:

        def start(limits: ServerLimits) -> Guarded:
            made = Guarded(store, limits)
            stack.callback(made.server.stop, 1.0)
            return made

        yield start


def first_ended(calls: list[Any], count: int = 1) -> list[Any]:
    """The first calls of many to end, without those that go on."""
    done: queue.Queue[Any] = queue.Queue()
    for one in calls:
        one.add_done_callback(done.put)
    return [done.get(timeout=LONG_S) for _ in range(count)]
