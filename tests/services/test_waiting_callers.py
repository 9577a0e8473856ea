"""Callers who keep a server waiting, or want all of it, get an error; everybody else is served."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from storage import FileStorage
from taskworker import Client
from taskworker.auth.user_tokens import new_token
from taskworker.errors import ServerBusy
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc.admission import ServerLimits
from tests.services.conftest import LONG_S, MIB_PLENTY, Guarded, Serve, Shown, first_ended, text_of

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
USER = "u1"
ANN = "ann"


def header(name: str) -> store_pb2.PushPart:
    return store_pb2.PushPart(header=store_pb2.PushHeader(filename=name, user_id=USER))


def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        call.result(timeout=LONG_S)
    return failed.value.code(), text_of(failed.value)


@pytest.mark.parametrize("path", ["/taskworker.FileService/Get", "/taskworker.store.StoreService/Stat"])
def test_a_call_whose_message_never_comes_ends(store: FileStorage, serve: Serve, silent: Any, path: str) -> None:
    address = serve(store, ServerLimits(message_s=0.2))
    with grpc.insecure_channel(address) as channel:
        code, text = failure(channel.stream_unary(path).future(iter(silent())))
    assert code is EXHAUSTED
    assert "nothing came for 0.2 s" in text


def test_health_checks_of_anybody_end_and_are_few(guarded: Any, silent: Any) -> None:
    site: Guarded = guarded(ServerLimits(calls=100, message_s=0.2))
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        check: Any = channel.stream_unary("/grpc.health.v1.Health/Check")
        code, text = failure(check.future(iter(silent())))
        assert (code, "nothing came" in text) == (EXHAUSTED, True)
        stub: Any = HealthStub(channel)
        watched = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(33)]
        refused = []
        for one in watched:
            try:
                assert next(one).status == health_pb2.HealthCheckResponse.SERVING
            except grpc.RpcError as error:
                refused.append(text_of(error))
        assert [text.partition(",")[0] for text in refused] == ["32 callers watch the health"]
        ann.push(b"x", filename="b", user_id=ANN)
        for one in watched:
            one.cancel()


def test_a_stream_that_falls_silent_ends_and_frees_its_place(store: FileStorage, serve: Serve, silent: Any) -> None:
    address = serve(store, ServerLimits(streams=1, idle_s=0.2))
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        code, text = failure(StoreServiceStub(channel).PushStream.future(iter(silent(header("a")))))
        assert (code, "nothing came for 0.2 s" in text) == (EXHAUSTED, True)
        client.push(bytes(MIB_PLENTY), filename="b", user_id=USER)
        assert client.find("a", user_id=USER) is None


def test_a_caller_who_does_not_read_loses_the_call(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(streams=1, idle_s=0.3))
    version = store.push(os.urandom(64 << 20), filename="a", user_id=USER)
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        unread = StoreServiceStub(channel).GetStream(store_pb2.GetStreamRequest(file_id=version.file_id, user_id=USER))
        assert next(unread).version.size == version.size
        client.push(bytes(MIB_PLENTY), filename="b", user_id=USER)  # waits until the place is free
        unread.cancel()


def test_a_caller_with_many_unfinished_calls_loses_the_oldest(store: FileStorage, serve: Serve, silent: Any) -> None:
    address = serve(store, ServerLimits(unfinished=2))
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.stream_unary("/taskworker.FileService/Get")
        calls = [call.future(iter(silent())) for _ in range(3)]
        code, text = failure(first_ended(calls)[0])
        assert code is EXHAUSTED
        assert "more than 2 calls of this caller wait for a message" in text
        for one in calls:
            one.cancel()


def test_idle_streams_of_one_user_leave_half_of_the_places_to_others(guarded: Any, silent: Any) -> None:
    site: Guarded = guarded(ServerLimits(streams=4))
    mallory = site.shown("mallory")
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        stub = StoreServiceStub(channel)
        own = store_pb2.PushPart(header=store_pb2.PushHeader(filename="a"))
        held = [stub.PushStream.future(iter(silent(own)), metadata=mallory) for _ in range(3)]
        refused = next(one for one in first_ended(held))
        code, text = failure(refused)
        assert (code, "2 transfers of this user are under way" in text) == (EXHAUSTED, True)
        version = ann.push(bytes(MIB_PLENTY), filename="b", user_id=ANN)
        assert ann.get(version.file_id, user_id=ANN) == bytes(MIB_PLENTY)
        for one in held:
            one.cancel()


@pytest.mark.parametrize("path", ["/taskworker.FileService/Get", "/taskworker.store.StoreService/Stat"])
def test_calls_of_one_user_leave_half_of_the_threads_to_others(guarded: Any, silent: Any, path: str) -> None:
    site: Guarded = guarded(ServerLimits(calls=4, reserved=0, unfinished=100))
    mallory = site.shown("mallory")
    with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
        call: Any = channel.stream_unary(path)
        held = [call.future(iter(silent()), metadata=mallory) for _ in range(40)]
        texts = [failure(one)[1] for one in first_ended(held, 38)]
        assert len(texts) == 38
        assert all("2 calls of this user are under way" in text for text in texts)
        version = ann.push(b"x", filename="b", user_id=ANN)
        assert ann.get(version.file_id, user_id=ANN) == b"x"
        for one in held:
            one.cancel()


@pytest.mark.parametrize("path", ["/taskworker.FileService/Get", "/taskworker.store.StoreService/Stat"])
def test_callers_without_a_token_hold_nothing(guarded: Any, silent: Any, path: str) -> None:
    site: Guarded = guarded(ServerLimits(calls=4, reserved=0))
    stranger: Shown = (("authorization", f"Bearer {new_token()}"),)
    for metadata in ((), stranger):
        with grpc.insecure_channel(site.address) as channel, site.client(ANN) as ann:
            call: Any = channel.stream_unary(path)
            held = [call.future(iter(silent()), metadata=metadata) for _ in range(40)]
            assert {failure(one)[0] for one in held} <= {grpc.StatusCode.UNAUTHENTICATED, EXHAUSTED}
            ann.push(b"x", filename="b", user_id=ANN)


def test_a_busy_user_is_told_as_by_a_busy_server(guarded: Any, silent: Any) -> None:
    site: Guarded = guarded(ServerLimits(streams=2))
    with grpc.insecure_channel(site.address) as channel, site.client("mallory") as client:
        own = store_pb2.PushPart(header=store_pb2.PushHeader(filename="a"))
        held = StoreServiceStub(channel).PushStream.future(iter(silent(own)), metadata=site.shown("mallory"))
        with pytest.raises(ServerBusy, match="1 transfers of this user"):
            client.push(bytes(MIB_PLENTY), filename="b", user_id="mallory", timeout_s=2)
        held.cancel()


def test_a_large_message_is_refused_with_what_to_do(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits())
    with grpc.insecure_channel(address) as channel:
        for size, said in ((5 << 20, "push it with PushStream"), (40 << 20, "larger than max")):
            with pytest.raises(grpc.RpcError) as refused:
                FileServiceStub(channel).Push(
                    taskworker_pb2.PushRequest(file_data=bytes(size), filename="a", user_id=USER)
                )
            assert refused.value.code() is EXHAUSTED
            assert said in text_of(refused.value)
    assert store.find("a", user_id=USER) is None


def test_an_operator_may_allow_larger_messages(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(message_bytes=8 << 20))
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        files, data = FileServiceStub(channel), os.urandom(7 << 20)
        pushed = files.Push(taskworker_pb2.PushRequest(file_data=data, filename="a", user_id=USER))
        got = files.Get(taskworker_pb2.GetRequest(file_id=pushed.file_id, user_id=USER))
    assert got.file_data == data


def test_an_address_has_half_of_the_connections(store: FileStorage, serve: Serve) -> None:
    address = serve(store, ServerLimits(connections=20))
    host, _, port = address.rpartition(":")
    with ExitStack() as stack:
        greedy = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(15)]
        for one in greedy:
            one.settimeout(LONG_S)
            one.sendall(PREFACE)
        ended = 0
        for one in greedy[10:]:
            while data := one.recv(4096):
                del data
            ended += 1
        assert ended == 5


def test_connections_leave_descriptors_for_the_store(tmp_path: Path) -> None:
    program = (sys.executable, "-m", "taskworker", "--store", str(tmp_path / "store"), "serve", "--no-auth", "--json")
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -n 200 && exec "$@"', "sh", *program, "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        address = json.loads(os.read(process.stdout.fileno(), 4096))["address"]
        host, _, port = address.rpartition(":")
        with ExitStack() as stack, Client(address) as client:
            client.push(b"1", filename="a", user_id=USER)
            for one in [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(220)][60:]:
                one.settimeout(LONG_S)
                with suppress(ConnectionError):
                    one.sendall(PREFACE)
                    while data := one.recv(4096):
                        del data
            assert client.push(b"2", filename="b", user_id=USER).size == 1
    finally:
        process.terminate()
        process.communicate(timeout=LONG_S)
