"""What a pool's audit trail says of its calls, and what it does not say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from storage.errors import PermissionDenied
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.contexts import Access
from taskworker.auth.rights import Role
from taskworker.client.audit import AuditClient, TrailRecord
from taskworker.client.egress import EgressClient
from taskworker.client.secrets import SecretClient
from taskworker.client.users import UserClient
from taskworker.errors import Unauthenticated
from taskworker.pool.options import PoolOptions
from taskworker.protos import store_pb2
from taskworker.protos.store_pb2_grpc import StoreServiceStub

SECRET = "hunter2-value"
FILENAME = "salaries-of-ann.txt"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[PoolServer]:
    server = PoolServer(tmp_path / "pool", options=PoolOptions(allow_fragile=True), authenticates=True)
    server.address = f"127.0.0.1:{server.start('127.0.0.1:0')}"  # type: ignore[attr-defined]
    yield server
    server.stop(0.0)


def _token(pool: PoolServer, name: str, role: Role) -> str:
    if name not in {user.name for user in pool.users.users()}:
        pool.users.add(name, role)
    return pool.users.create_token(name).text


def _list_files(address: str, token: str, user: str) -> None:
    with grpc.insecure_channel(address) as channel:
        request = store_pb2.ListFilesRequest(user_id=user, prefix=FILENAME)
        StoreServiceStub(channel).ListFiles(request, metadata=(("authorization", f"Bearer {token}"),))


def _trail(pool: PoolServer, role: Role = Role.AUDITOR) -> list[TrailRecord]:
    with AuditClient(pool.address, access=Access(_token(pool, f"an-{role}", role))) as client:  # type: ignore[attr-defined]
        return list(client.records())


def test_changes_refusals_and_acts_for_others_are_recorded_and_no_values(pool: PoolServer, tmp_path: Path) -> None:
    address: str = pool.address  # type: ignore[attr-defined]
    operator, ann = _token(pool, "root", Role.OPERATOR), _token(pool, "ann", Role.USER)
    with UserClient(address, access=Access(operator)) as users:
        users.add("bob", "deployer")
        made, kept = users.create_token("bob", scopes=["call:f"], label="a label of bob")
        users.revoke(kept.token_id)
    with SecretClient(address, access=Access(operator)) as secrets:
        secrets.set("api-key", SECRET)
        secrets.grant("api-key", "f")
    with EgressClient(address, access=Access(operator)) as egress:
        egress.allow("f", "https://example.com")
    for token in (ann, made, "twu1." + "x" * 43):
        with UserClient(address, access=Access(token)) as users, pytest.raises((PermissionDenied, Unauthenticated)):
            users.add("eve")
    _list_files(address, operator, "ann")
    _list_files(address, ann, "ann")
    with pytest.raises(grpc.RpcError):
        _list_files(address, ann, "bob")
    header = store_pb2.PushHeader(filename=FILENAME, user_id="bob", note="a note of ann")
    part = store_pb2.PushPart(header=header, data=b"content-of-ann", commit=store_pb2.PushCommit(size=14))
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
        StoreServiceStub(channel).PushFile(part, metadata=(("authorization", f"Bearer {ann}"),))

    found = [(one.who, one.call, one.on, one.outcome) for one in _trail(pool)]
    assert ("root", "AuthService.AddUser", "user=bob role=deployer", "OK") in found
    assert ("root", "AuthService.CreateToken", f"user=bob scopes=call:f token_id={kept.token_id}", "OK") in found
    assert any(one[1] == "AuthService.RevokeToken" and kept.token_id in one[2] for one in found)
    assert ("root", "SecretService.SetSecret", "name=api-key", "OK") in found
    assert any(one[1:] == ("SecretService.GrantSecret", "name=api-key function_name=f", "OK") for one in found)
    assert any(one[1] == "EgressService.Allow" and "function_name=f" in one[2] for one in found)
    assert ("ann", "AuthService.AddUser", "", "PERMISSION_DENIED") in found
    assert sum(one[3] == "UNAUTHENTICATED" and not one[0] for one in found) == 1
    assert ("root", "StoreService.ListFiles", "user_id=ann", "OK") in found
    assert ("ann", "StoreService.ListFiles", "user_id=bob", "PERMISSION_DENIED") in found
    assert not any(one[:2] == ("ann", "StoreService.ListFiles") and one[3] == "OK" for one in found)
    assert all(one.peer.startswith("ipv4:127.0.0.1") for one in _trail(pool))
    raw = b"".join(path.read_bytes() for path in (tmp_path / "pool/audit").iterdir())
    for private in (SECRET, FILENAME, "content-of-ann", "a note of ann", operator[5:], ann[5:], made[5:]):
        assert private.encode() not in raw


def test_shares_and_their_use_are_recorded_without_names_of_files(pool: PoolServer, tmp_path: Path) -> None:
    address: str = pool.address  # type: ignore[attr-defined]
    ann, bob = _token(pool, "ann", Role.USER), _token(pool, "bob", Role.USER)
    with Client(address, token=ann) as client:
        made = client.share(FILENAME, with_user="bob")
        client.unshare(FILENAME)
        client.share(f"{FILENAME}/", with_user="bob")
    with Client(address, token=bob) as client:
        client.list_files(user_id="ann", prefix=f"{FILENAME}/")
    found = [(one.who, one.call, one.on) for one in _trail(pool)]
    assert [one[1] for one in found if one[0] == "ann"] == [
        f"SharingService.{c}" for c in ("Share", "Unshare", "Share")
    ]
    assert all(f"grant_id={made.grant_id}" in one[2] and "with_user=bob" in one[2] for one in found[:2])
    assert ("bob", "StoreService.ListFiles", "user_id=ann") in found
    assert FILENAME.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "pool/audit").iterdir())


def test_a_flood_of_refusals_is_one_record(pool: PoolServer) -> None:
    address: str = pool.address  # type: ignore[attr-defined]
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/taskworker.auth.AuthService/ListUsers")
        for _ in range(200):
            with pytest.raises(grpc.RpcError):
                call(b"")
    assert [one.count for one in _trail(pool) if one.call == "AuthService.ListUsers"] == [1]
    pool.stop(0.0)


@pytest.mark.parametrize("role", Role)
def test_auditors_and_operators_may_read_it(pool: PoolServer, role: Role) -> None:
    if role in (Role.AUDITOR, Role.OPERATOR):
        assert isinstance(_trail(pool, role), list)
        with AuditClient(pool.address, access=Access(_token(pool, "one", role))) as client:  # type: ignore[attr-defined]
            assert client.verify().problems == []
    else:
        with pytest.raises(PermissionDenied):
            _trail(pool, role)


def test_the_files_are_lines_of_json(pool: PoolServer, tmp_path: Path) -> None:
    with UserClient(pool.address, access=Access(_token(pool, "root", Role.OPERATOR))) as users:  # type: ignore[attr-defined]
        users.add("bob")
    (path,) = (tmp_path / "pool/audit").iterdir()
    record = json.loads(path.read_text().splitlines()[1].partition(" ")[2])
    assert (record["n"], record["who"], record["call"], record["outcome"]) == (1, "root", "AuthService.AddUser", "OK")
