"""The server: where it listens, health, reflection, bounds, stopping, maintenance."""

from __future__ import annotations

import itertools
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from storage import FileStorage, InvalidArgument, StoreUnavailable
from storage.catalog import Counters
from taskworker import Client
from taskworker.errors import ServerBusy, StorageUnavailable
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.rpc.admission import ServerLimits
from taskworker.rpc.serving import Server
from taskworker.services.file_server import FileServer
from tests.services.conftest import CHUNK, Raw, Serve

USER = "u1"
MIB = 1024 * 1024
SERVING = health_pb2.HealthCheckResponse.SERVING
Part = store_pb2.PushPart


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "8.8.8.8:50051", "[2001:db8::1]:0", "no.such.host.invalid:0"],
)
def test_addresses_others_can_reach_are_refused(address: str) -> None:
    server = Server({})
    with pytest.raises(InvalidArgument, match=r"not be encrypted|not a known host"):
        server.start(address)
    server.stop(0)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:port", "127.0.0.1:99999", "unix:"])
def test_what_is_no_address_is_refused(address: str) -> None:
    server = Server({})
    with pytest.raises(InvalidArgument, match="address"):
        server.start(address)
    server.stop(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_loopback_is_served(host: str, store: FileStorage) -> None:
    server = FileServer(store)
    port = server.start(f"{host}:0")
    try:
        with Client(f"{host}:{port}") as client:
            assert client.stats().files == 0
    finally:
        server.stop(0)


def test_a_socket_file_is_its_owners_and_goes_with_the_server(store: FileStorage, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = FileServer(store)
    assert server.start(f"unix:{path}") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Client(f"unix:{path}") as client:
        version = client.push(b"x", filename="a", user_id=USER)
        assert client.get(version.file_id, user_id=USER) == b"x"
    server.stop(0)
    assert not path.exists()


def test_a_taken_port_is_told(address: str) -> None:
    server = Server({})
    with pytest.raises(StorageUnavailable, match="another server"):
        server.start(address)
    server.stop(0)


def health_of(channel: grpc.Channel, service: str = "") -> object:
    check: grpc.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return check(health_pb2.HealthCheckRequest(service=service)).status


def test_health(raw: Raw) -> None:
    for service in ("", "taskworker.FileService", "taskworker.store.StoreService"):
        assert health_of(raw.channel, service) == SERVING
    with pytest.raises(grpc.RpcError) as unknown:
        health_of(raw.channel, "taskworker.RPCService")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(raw: Raw) -> None:
    ask: grpc.StreamStreamMultiCallable[
        reflection_pb2.ServerReflectionRequest, reflection_pb2.ServerReflectionResponse
    ] = raw.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = iter(
        [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="taskworker.store.StoreService"),
        ]
    )
    services, described = ask(requests)
    assert {service.name for service in services.list_services_response.service} == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "taskworker.FileService",
        "taskworker.store.StoreService",
    }
    assert described.file_descriptor_response.file_descriptor_proto


def test_without_a_store_only_health_and_reflection_are_served(serve: Serve) -> None:
    address = serve(None)
    with grpc.insecure_channel(address) as channel:
        assert health_of(channel) == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            StoreServiceStub(channel).Stats(store_pb2.StatsRequest())
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


class HeldPush:
    """A push that waits in mid-stream until told to go on."""

    def __init__(self, stub: StoreServiceStub, name: str) -> None:
        self._name = name
        self._go_on = threading.Event()
        self.begun = threading.Event()
        self.call = stub.PushStream.future(self._messages())

    def _messages(self) -> Iterator[store_pb2.PushPart]:
        yield Part(header=store_pb2.PushHeader(filename=self._name, user_id=USER))
        yield Part(data=bytes(CHUNK))
        self.begun.set()
        self._go_on.wait(60)
        yield Part(commit=store_pb2.PushCommit(size=CHUNK))

    def finish(self) -> store_pb2.Version:
        self._go_on.set()
        return self.call.result().version


def test_stopping_lets_calls_end_and_takes_no_new_ones(store: FileStorage) -> None:
    server = FileServer(store)
    port = server.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, ThreadPoolExecutor(1) as threads:
        stub = StoreServiceStub(channel)
        held = HeldPush(stub, "a")
        assert held.begun.wait(30)
        stub.Stats(store_pb2.StatsRequest())  # the push's messages before it have arrived
        stopping = threads.submit(server.stop, 60.0)
        refused = False
        while not refused:
            try:
                stub.Stats(store_pb2.StatsRequest(), timeout=10)
            except grpc.RpcError as error:
                refused = error.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        version = held.finish()
        stopping.result(60)
    assert server.wait(0)
    assert store.find("a", user_id=USER) is not None
    assert store.get(version.file_id, user_id=USER) == bytes(CHUNK)


def test_what_does_not_end_in_time_is_cancelled_and_leaves_nothing(store: FileStorage) -> None:
    server = FileServer(store)
    port = server.start("127.0.0.1:0")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        held = HeldPush(StoreServiceStub(channel), "a")
        assert held.begun.wait(30)
        StoreServiceStub(channel).Stats(store_pb2.StatsRequest())
        server.stop(0.1)
        with pytest.raises(grpc.RpcError):
            held.finish()
    assert store.find("a", user_id=USER) is None


def test_more_transfers_than_allowed_are_turned_away_and_short_calls_are_not(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(calls=8, streams=2))
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        stub = StoreServiceStub(channel)
        held = [HeldPush(stub, "a"), HeldPush(stub, "b")]
        assert all(push.begun.wait(30) for push in held)
        with pytest.raises(ServerBusy, match="2 transfers"):
            client.push(bytes(MIB), filename="c", user_id=USER, timeout_s=30)
        client.push(bytes(10), filename="small", user_id=USER)
        assert client.find("c", user_id=USER) is None
        for push in held:
            push.finish()
        client.push(bytes(MIB), filename="c", user_id=USER)


def test_a_client_waits_a_moment_for_a_busy_server(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(calls=8, streams=1))
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        held = HeldPush(StoreServiceStub(channel), "a")
        assert held.begun.wait(30)
        timer = threading.Timer(0.3, held.finish)
        timer.start()
        version = client.push(bytes(MIB), filename="c", user_id=USER)
        timer.join()
    assert store.get(version.file_id, user_id=USER) == bytes(MIB)


def test_calls_past_the_last_thread_are_turned_away(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(calls=2, streams=2))
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        held = [HeldPush(StoreServiceStub(channel), name) for name in "ab"]
        assert all(push.begun.wait(30) for push in held)
        with pytest.raises(ServerBusy):
            client.stats(timeout_s=30)
        for push in held:
            push.finish()


def test_small_gets_go_on_beside_big_pushes(store: FileStorage, address: str) -> None:
    small = store.push(b"s" * 4096, filename="small", user_id=USER)

    def big(number: int) -> int:
        with Client(address) as client:
            blocks = (bytes([number, block]) * (MIB // 2) for block in range(48))
            return client.push(blocks, filename=f"big {number}", user_id=USER).size

    gets = 0
    with ThreadPoolExecutor(4) as threads, Client(address) as client:
        pushes = [threads.submit(big, number) for number in range(4)]
        while not all(push.done() for push in pushes):
            assert client.get(small.file_id, user_id=USER) == b"s" * 4096
            gets += 1
        assert [push.result() for push in pushes] == [48 * MIB] * 4
    assert gets > 4
    for number in range(4):
        version = store.find(f"big {number}", user_id=USER)
        assert version is not None
        expected = b"".join(bytes([number, block]) * (MIB // 2) for block in range(48))
        assert store.get(version.file_id, user_id=USER) == expected


def test_upkeep_reports_what_the_engine_does(client: Client, store: FileStorage) -> None:
    version = client.push(bytes(range(256)) * 2048, filename="a", user_id=USER)
    seen: list[tuple[int, int]] = []
    assert client.scrub(progress=lambda done, total: seen.append((done, total))).clean
    assert seen
    assert client.repair().complete
    client.delete(version.file_id, user_id=USER)
    assert client.collect(grace_s=0).objects_removed > 0
    stats = client.stats()
    assert (stats.store_id, stats.files, len(stats.volumes)) == (store.stats().store_id, 0, 3)
    with pytest.raises(InvalidArgument, match="catalog"):
        client.rebuild()


def test_upkeep_runs_once_at_a_time_and_stops_with_its_caller(
    client: Client, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, stopped = threading.Event(), threading.Event()

    def endless(*, progress: object) -> None:
        try:
            for step in range(10**9):
                progress(step, 0)  # type: ignore[operator]
                running.set()
                stopped.wait(0.001)
        finally:
            stopped.set()

    monkeypatch.setattr(store, "scrub", endless)

    class Enough(Exception):
        """Raised by the progress callback."""

    def progress(done: int, _total: int) -> None:
        if done:
            with pytest.raises(ServerBusy, match="running already"):
                client.scrub()
            raise Enough

    with pytest.raises(Enough):
        client.scrub(progress=progress)
    assert running.is_set()
    assert stopped.wait(30)


def test_a_store_without_catalog_says_to_rebuild_and_can_be(store: FileStorage, serve: Serve, tmp_path: Path) -> None:
    import shutil

    version = store.push(b"x" * 100_000, filename="a", user_id=USER)
    store.close()
    shutil.rmtree(store.path / "catalog")
    with FileStorage.open(store.path) as broken:
        address = serve(broken)
        with Client(address) as client:
            with pytest.raises(Exception, match="rebuild"):
                client.get(version.file_id, user_id=USER)
            assert client.stats().needs_rebuild
            assert client.rebuild().files == 1
            assert client.get(version.file_id, user_id=USER) == b"x" * 100_000


def test_a_server_whose_catalog_stays_unusable_ends(store: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever supervises it starts it anew; a failure that passes is no reason to."""
    monkeypatch.setattr("taskworker.rpc.serving._LOOK_S", 0.01)
    monkeypatch.setattr("taskworker.rpc.serving._GIVE_UP_S", 0.1)
    failures: Iterator[bool] = itertools.chain([True, False] * 20, itertools.repeat(True))
    looks = itertools.count()
    counts = store.counts

    def failing() -> Counters:
        next(looks)
        if next(failures):
            raise StoreUnavailable("the database cannot be opened: Input/output error")
        return counts()

    monkeypatch.setattr(store, "counts", failing)
    server = FileServer(store)
    server.start("127.0.0.1:0")
    try:
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            server.wait()
    finally:
        server.stop(0)
    assert next(looks) > 40
