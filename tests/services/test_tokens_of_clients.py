"""Clients find the token for a server in this user's contexts, and send it with every call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from storage import FileStorage, InvalidArgument, PermissionDenied
from taskworker import AsyncClient, Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.contexts import Context, Contexts
from taskworker.auth.owner_context import keep_owner_context, login_name
from taskworker.auth.rights import CANDIDATE_OWNER, Role, Scope
from taskworker.calls.bundle import packed
from taskworker.calls.spec import FunctionSpec
from taskworker.client.functions import FunctionClient
from taskworker.client.pool import PoolClient
from taskworker.client.users import UserClient
from taskworker.errors import Unauthenticated
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub
from taskworker.protos.taskworker_pb2_grpc import FileServiceStub
from taskworker.rpc.dialling import dial, dial_async
from taskworker.services.store_server import StoreServer
from taskworker.worker.volume import VolumeWorker


class Home:
    """Where a person keeps contexts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self._monkeypatch = monkeypatch
        self._root = root

    def be(self, person: str) -> Contexts:
        """Be another person; return the person's contexts."""
        self._monkeypatch.setenv("XDG_CONFIG_HOME", str(self._root / person))
        return Contexts()


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Home:
    found = Home(monkeypatch, tmp_path / "homes")
    found.be("owner")
    return found


@pytest.fixture
def server(store: FileStorage, home: Home) -> Iterator[StoreServer]:
    del home  # its owner's is the one that counts now
    running = StoreServer(store)
    yield running
    running.stop(0.0)


@pytest.fixture
def address(server: StoreServer) -> str:
    found = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    keep_owner_context(server.users, "s1", found)
    return found


def test_the_owners_clients_work_as_before(address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        large = bytes(300_000)
        version = client.push(large, filename="large", user_id="ann")
        assert client.get(version.file_id, user_id="ann") == large
        outcomes = list(client.push_many([("a", b"1"), ("b", large)], user_id="ann"))
        assert all(outcome.version for outcome in outcomes)
        path = tmp_path / "large"
        path.write_bytes(large[:-1] + b"x")
        assert client.revise(version.file_id, path.read_bytes(), user_id="ann").version_id != version.version_id
        assert len(list(client.list_files(user_id="ann"))) == 3
        client.delete(version.file_id, user_id="ann")
        client.stats()


def test_nobody_else_may_call(address: str, home: Home) -> None:
    home.be("stranger")
    with Client(address) as client, pytest.raises(Unauthenticated, match="taskworker login"):
        client.push(b"1", filename="a", user_id="ann")
    with Client(address) as client, pytest.raises(Unauthenticated):
        client.stats()


def test_programs_for_an_event_loop_send_tokens_too(address: str, home: Home) -> None:
    async def act() -> bytes:
        async with AsyncClient(address) as client:
            version = await client.push(b"1", filename="a", user_id="ann")
            assert await client.get(version.file_id, user_id="ann") == b"1"
        async with dial_async(address) as channel:
            request = taskworker_pb2.GetRequest(file_id=version.file_id, user_id="ann")
            answer = await FileServiceStub(channel).Get(request, metadata=(("x", "y"),))
        return answer.file_data

    assert asyncio.run(act()) == b"1"
    home.be("stranger")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        asyncio.run(_describe(address))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def _describe(address: str) -> None:
    async with dial_async(address) as channel:
        await StoreServiceStub(channel).Describe(store_pb2.DescribeRequest())


def test_a_channel_keeps_the_metadata_of_its_calls(address: str, server: StoreServer, home: Home) -> None:
    home.be("stranger")
    server.users.add("ann")
    text = server.users.create_token("ann").text
    with dial(address) as channel:
        describe = StoreServiceStub(channel).Describe
        request = store_pb2.DescribeRequest()
        metadata = (("authorization", f"Bearer {text}"),)
        assert describe(request, metadata=metadata).chunk_size
        assert describe.with_call(request, metadata=metadata)[0].chunk_size
        assert describe.future(request, metadata=metadata).result().chunk_size
        with pytest.raises(grpc.RpcError):
            describe(request)


def test_a_client_that_was_there_before_finds_a_token_that_comes_later(
    address: str, server: StoreServer, home: Home
) -> None:
    contexts = home.be("ann")
    server.users.add("ann")
    with Client(address) as client:
        with pytest.raises(Unauthenticated):
            client.stats()
        contexts.put(Context(address, server.users.create_token("ann").text))
        client.push(b"1", filename="a", user_id="ann")


def test_operators_manage_users_and_tokens(address: str, home: Home) -> None:
    with UserClient(address) as operator:
        assert operator.who_am_i().user == login_name()
        operator.add("ann")
        operator.add("aud", "auditor")
        assert {one.user: one.role for one in operator.users()} == {
            login_name(): "operator",
            "ann": "user",
            "aud": "auditor",
        }
        text, made = operator.create_token("ann", scopes=["files:read:a/"], ttl_s=60, label="viewer")
        contexts = home.be("ann")
        contexts.put(Context(address, text))
        with UserClient(address) as ann:
            who = ann.who_am_i()
            assert (who.user, who.role, who.scopes, who.token_id) == ("ann", "user", ["files:read:a/"], made.token_id)
        home.be("owner")
        (listed,) = operator.tokens("ann")
        assert (listed.label, listed.scopes, listed.revoked_ms) == ("viewer", ["files:read:a/"], None)
        assert listed.used_ms
        assert operator.revoke(made.token_id).revoked_ms
        home.be("ann")
        with UserClient(address) as ann, pytest.raises(Unauthenticated, match="revoked"):
            ann.who_am_i()
        home.be("owner")
        assert operator.remove("ann") == 1
        for name, role in (("system:x", "user"), ("bob", "king")):
            with pytest.raises(InvalidArgument):
                operator.add(name, role)
        with pytest.raises(InvalidArgument, match="no scope"):
            operator.create_token("aud", scopes=["everything"])


def test_users_are_there_after_a_restart(store: FileStorage, address: str, server: StoreServer) -> None:
    with UserClient(address) as operator:
        operator.add("ann")
    server.stop(0.0)
    again = StoreServer(store)
    try:
        found = f"127.0.0.1:{again.start('127.0.0.1:0')}"
        keep_owner_context(again.users, "s1", found)
        assert len(again.users.tokens()) == 1
        with UserClient(found) as operator:
            assert [one.user for one in operator.users()] == sorted(["ann", login_name()])
            assert operator.tokens()[0].used_ms
    finally:
        again.stop(0.0)


def test_a_worker_of_the_owner_joins_and_of_a_stranger_does_not(home: Home, tmp_path: Path) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True), authenticates=True)
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        keep_owner_context(pool.users, pool.pool.pool_id, address)
        worker = VolumeWorker("w1", address, tmp_path / "w1")
        worker.start("127.0.0.1:0")
        try:
            with PoolClient(address) as client:
                status = client.status()
                assert status is not None
                assert [one.worker_id for one in status.workers] == ["w1"]
            home.be("stranger")
            stranger = VolumeWorker("w2", address, tmp_path / "w2")
            with pytest.raises(Unauthenticated):
                stranger.start("127.0.0.1:0")
        finally:
            home.be("owner")
            worker.stop()
        assert pool.users.users()[0].role is Role.OPERATOR
    finally:
        pool.stop(0.0)


def test_workers_of_the_owner_show_a_token_that_lets_them_do_no_more(home: Home, tmp_path: Path) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True), authenticates=True)
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        for _ in range(2):  # as at a restart
            keep_owner_context(pool.users, pool.pool.pool_id, address, has_workers=True)
        by_scopes = {one.scopes: one for one in pool.users.tokens()}
        assert sorted(by_scopes) == [(), (Scope.parse("join"),)]
        worker = VolumeWorker("w1", address, tmp_path / "w1")
        worker.start("127.0.0.1:0")
        worker.stop()
        used = {one.scopes: one.used_ms for one in pool.users.tokens()}
        assert used[(Scope.parse("join"),)]
        with PoolClient(address) as client:
            client.status()
        with dial(address, as_worker=True) as channel, pytest.raises(grpc.RpcError) as refused:
            StoreServiceStub(channel).Stats(store_pb2.StatsRequest())
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        contexts = home.be("ann")  # somebody else on this machine, who was given such a token
        contexts.put(Context(address, pool.users.create_token(login_name(), scopes=[Scope.parse("join")]).text))
        worker = VolumeWorker("w2", address, tmp_path / "w2")
        worker.start("127.0.0.1:0")
        worker.stop()
    finally:
        pool.stop(0.0)


def test_a_large_bundle_of_a_function_that_a_token_is_not_for_is_dropped(home: Home, tmp_path: Path) -> None:
    pool = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True, lease_s=600.0), authenticates=True)
    address = f"127.0.0.1:{pool.start('127.0.0.1:0')}"
    try:
        keep_owner_context(pool.users, pool.pool.pool_id, address)
        worker = VolumeWorker("w1", address, tmp_path / "w1")
        worker.start("127.0.0.1:0")
        try:
            with PoolClient(address) as client:
                while not client.layout().members:
                    time.sleep(0.01)
            pool.users.add("dee", Role.DEPLOYER)
            token = pool.users.create_token("dee", scopes=[Scope.parse("deploy:team-")]).text
            # The worker of this process would use this context, too, but its next heartbeat is in minutes.
            home.be("dee").put(Context(address, token))
            with FunctionClient(address) as deployer:
                with pytest.raises(PermissionDenied, match="other names than 'other'"):
                    deployer.deploy(_large_bundle("other"), user_id="dee")
                assert deployer.deploy(_large_bundle("team-f"), user_id="dee").function == "team-f"
        finally:
            home.be("owner")
            worker.stop()
        assert [one.name for one, _head in pool.functions.deployed.all()] == ["team-f"]
        assert not pool.pool.store.list_files(user_id=CANDIDATE_OWNER)
    finally:
        pool.stop(0.0)


def _large_bundle(name: str) -> bytes:
    """A bundle that is too large for one message."""
    files = {"app/app.py": b"def f(): ...", "app/data": random.Random(name).randbytes(5 << 20)}
    return packed(FunctionSpec(name=name, entry="app:f"), files).bundle
