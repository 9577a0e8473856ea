"""Quick calls get a thread once their message has come, whenever that is, and end as other calls do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from storage import FileStorage
from taskworker import Client
from taskworker.protos import store_pb2
from taskworker.rpc import early_messages
from taskworker.rpc.admission import ServerLimits
from taskworker.rpc.quick_threads import QuickThreads
from taskworker.rpc.waits import WAITS
from tests.services.conftest import LONG_S, Guarded, Serve

STAT = "/taskworker.store.StoreService/Stat"
USER = "u1"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which versions are looked up."""
    names: list[str] = []
    stat = FileStorage.stat

    def noting(self: FileStorage, *arguments: Any, **options: Any) -> Any:
        names.append(threading.current_thread().name)
        return stat(self, *arguments, **options)

    monkeypatch.setattr(FileStorage, "stat", noting)
    return names


class Late(Iterator[bytes]):
    """The message of a call, which is sent when it is let go."""

    def __init__(self, message: bytes) -> None:
        self._messages = iter([message])
        self.may_go = threading.Event()

    def __next__(self) -> bytes:
        self.may_go.wait(LONG_S)
        return next(self._messages)


def stat_of(file_id: str) -> bytes:
    return store_pb2.StatRequest(file_id=file_id, user_id=USER).SerializeToString()


def test_calls_whose_message_is_late_hold_no_thread_at_first(
    store: FileStorage, serve: Serve, started: list[str]
) -> None:
    address = serve(store, ServerLimits(unfinished=100))
    file_id = store.push(b"x", filename="a", user_id=USER).file_id
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        call: Any = channel.stream_unary(STAT)
        late = [Late(stat_of(file_id)) for _ in range(20)]
        calls = [call.future(one) for one in late]
        assert client.stat(file_id, user_id=USER).size == 1
        for one in late:
            one.may_go.set()
        versions = [store_pb2.Version.FromString(one.result(timeout=LONG_S)) for one in calls]
    assert [version.size for version in versions] == [1] * 20
    assert all(name.startswith("quick") for name in started)


def test_a_message_that_comes_after_the_call_got_a_thread_is_taken(
    store: FileStorage, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = threading.Event()
    put = QuickThreads.put

    def noting(self: Any, work: Any) -> None:
        put(self, work)
        went_on.set()

    monkeypatch.setattr(QuickThreads, "put", noting)
    address = serve(store)
    file_id = store.push(b"x", filename="a", user_id=USER).file_id
    with grpc.insecure_channel(address) as channel:
        stat: Any = channel.stream_unary(STAT)
        late = Late(stat_of(file_id))
        call = stat.future(late)
        assert went_on.wait(LONG_S)  # although nothing has come
        late.may_go.set()
        assert store_pb2.Version.FromString(call.result(timeout=LONG_S)).size == 1


@pytest.mark.parametrize("count", [0, 2])
def test_the_number_of_messages_does_not_matter_to_others(store: FileStorage, serve: Serve, count: int) -> None:
    address = serve(store)
    file_id = store.push(b"x", filename="a", user_id=USER).file_id
    with grpc.insecure_channel(address) as channel, Client(address) as client:
        stat: Any = channel.stream_unary(STAT)
        call = stat.future(iter([stat_of(file_id)] * count))
        if count:
            assert store_pb2.Version.FromString(call.result(timeout=LONG_S)).size == 1
        else:
            with pytest.raises(grpc.RpcError) as failed:
                call.result(timeout=LONG_S)
            assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert client.stat(file_id, user_id=USER).size == 1


def test_callers_who_leave_before_their_message_came_leave_nothing(store: FileStorage, serve: Serve) -> None:
    address = serve(store)
    file_id = store.push(b"x", filename="a", user_id=USER).file_id
    with Client(address) as client:
        with grpc.insecure_channel(address) as channel:
            stat: Any = channel.stream_unary(STAT)
            late = [Late(stat_of(file_id)) for _ in range(50)]
            for one in [stat.future(one) for one in late]:
                one.cancel()
            for one in late:
                one.may_go.set()
        assert client.get(file_id, user_id=USER) == b"x"
    for _ in range(1000):
        if not WAITS.is_waited_for:
            break
        threading.Event().wait(0.01)
    assert not WAITS.is_waited_for


def test_messages_of_strangers_are_not_received_early(guarded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    begin = early_messages._Call.begin

    def noting(self: Any) -> bool:
        begun.append(begin(self))
        return begun[-1]

    monkeypatch.setattr(early_messages._Call, "begin", noting)
    site: Guarded = guarded(ServerLimits())
    with grpc.insecure_channel(site.address) as channel:
        stat: Any = channel.stream_unary(STAT)
        with pytest.raises(grpc.RpcError) as failed:
            stat(iter([stat_of("0" * 32)]), timeout=LONG_S)
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not begun
        with site.client("ann") as ann:
            assert ann.find("none", user_id="ann") is None
        assert begun
        assert all(begun)


@pytest.mark.parametrize("name", ["_RequestIterator", "_receive_message", "_RECEIVE_MESSAGE_TOKEN", "cygrpc"])
def test_calls_of_another_release_of_grpc_are_made_as_it_makes_them(
    store: FileStorage, serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Without:
        def __getattr__(self, wanted: str) -> Any:
            if wanted == name:
                raise AttributeError(wanted)
            return getattr(grpc_server, wanted)

    grpc_server = early_messages._grpc
    monkeypatch.setattr(early_messages, "_grpc", Without())
    file_id = store.push(b"x", filename="a", user_id=USER).file_id
    with Client(serve(store)) as client:
        assert client.get(file_id, user_id=USER) == b"x"
        assert client.find("none", user_id=USER) is None
