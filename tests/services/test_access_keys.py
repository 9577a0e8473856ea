"""Access keys: made by operators, found by gateways, tokens of their users, and gone at once when they are revoked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import FileStorage, InvalidArgument, PermissionDenied
from taskworker import Client
from taskworker.apps.pool_server import PoolServer
from taskworker.auth.contexts import Access
from taskworker.auth.rights import Role, Scope
from taskworker.client.audit import AuditClient
from taskworker.client.secrets import SecretClient
from taskworker.client.users import AccessKey, UserClient
from taskworker.errors import AccessKeyInvalid, SecretsUnavailable, Unauthenticated
from taskworker.pool.options import PoolOptions
from taskworker.services.store_server import StoreServer


class Pool:
    """A pool with an operator, a user, and what a gateway has."""

    def __init__(self, directory: Path, *, authenticates: bool = True, encrypts: bool | None = None) -> None:
        self.directory = directory
        options = PoolOptions(allow_fragile=True, encrypts=encrypts)
        self.server = PoolServer(directory, options=options, authenticates=authenticates)
        self.address = f"127.0.0.1:{self.server.start('127.0.0.1:0')}"
        users = self.server.users
        if not users.users():
            users.add("root", Role.OPERATOR)
            users.add("ann")
            users.add("watcher", Role.AUDITOR)
        self.operator_token = users.create_token("root").text
        self.gateway_token = users.create_token("root", scopes=[Scope.parse("gateway")]).text

    @property
    def operator(self) -> UserClient:
        return UserClient(self.address, token=self.operator_token)

    @property
    def gateway(self) -> UserClient:
        return UserClient(self.address, token=self.gateway_token)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    made = Pool(tmp_path / "pool")
    yield made
    made.server.stop(0.0)


def test_a_gateway_gets_the_secret_and_acts_as_the_user_and_no_more(pool: Pool) -> None:
    with pool.operator as operator, pool.gateway as gateway:
        made = operator.create_access_key("ann", scopes=["files:read:a/", "files:write:a/"], label="laptop")
        assert re.fullmatch(r"TW[A-Z2-7]{18}", made.access_key_id)
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", made.secret)
        assert made.secret not in repr(made)
        assert gateway.access_key(made.access_key_id) == made
        with UserClient(pool.address, token=made.token) as ann:
            told = ann.who_am_i()
            assert (told.user, told.scopes, told.token_id) == ("ann", made.scopes, made.token_id)
            with pytest.raises(PermissionDenied):
                ann.access_key(made.access_key_id)
        with Client(pool.address, token=made.token) as files:
            assert files.list_files(user_id="ann", prefix="a/") == []
            with pytest.raises(PermissionDenied):
                files.list_files(user_id="ann", prefix="b/")
        for call in (gateway.users, gateway.tokens, lambda: gateway.create_token("root")):
            with pytest.raises(PermissionDenied):
                call()
        with Client(pool.address, token=pool.gateway_token) as files, pytest.raises(PermissionDenied):
            files.list_files(user_id="root")
        listed = {one.token_id: one.access_key_id for one in operator.tokens("ann")}
        assert listed == {made.token_id: made.access_key_id}


def test_an_access_key_ends_at_once(pool: Pool) -> None:
    def ended(key: AccessKey) -> None:
        with pytest.raises(AccessKeyInvalid, match=key.access_key_id):
            gateway.access_key(key.access_key_id)
        with UserClient(pool.address, token=key.token) as ann, pytest.raises(Unauthenticated):
            ann.who_am_i()

    with pool.operator as operator, pool.gateway as gateway:
        revoked, kept = operator.create_access_key("ann"), operator.create_access_key("ann")
        assert operator.revoke(revoked.token_id).access_key_id == revoked.access_key_id
        ended(revoked)
        assert gateway.access_key(kept.access_key_id) == kept
        operator.remove("ann")
        ended(kept)
        operator.add("ann")
        again = operator.create_access_key("ann", ttl_s=3600)
        ended(kept)
        assert gateway.access_key(again.access_key_id).expires_ms is not None
        for junk in ("", "TW", "access-key:x", "\0", "é" * 400):
            with pytest.raises(AccessKeyInvalid):
                gateway.access_key(junk)


def test_a_gateway_lists_the_valid_keys_without_secrets(pool: Pool) -> None:
    with pool.operator as operator, pool.gateway as gateway:
        keys = [operator.create_access_key("ann", scopes=["files:read:a/"]) for _ in range(53)]
        operator.revoke(keys[0].token_id)
        operator.create_access_key("root")
        listed = [*gateway.access_keys()]
        assert [one for one in listed if one.user == "ann"] == sorted(
            (key.access_key_id, "ann", ["files:read:a/"]) for key in keys[1:]
        )
        assert [one.scopes for one in listed if one.user == "root"] == [["files:read", "files:write"]]
        with UserClient(pool.address, token=keys[1].token) as ann, pytest.raises(PermissionDenied):
            next(ann.access_keys())


def test_without_scopes_it_is_for_all_files_and_for_nothing_else(pool: Pool) -> None:
    with pool.operator as operator:
        assert operator.create_access_key("root").scopes == ["files:read", "files:write"]
        for user, scope in (("root", "operate"), ("root", "gateway"), ("ann", "call")):
            with pytest.raises(InvalidArgument, match="for files only"):
                operator.create_access_key(user, scopes=[scope])
        with pytest.raises(InvalidArgument, match="no right"):
            operator.create_access_key("watcher")
        assert len(operator.tokens("watcher")) == 0


def test_the_secret_is_sealed_and_survives_restarts_and_new_master_keys(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool")
    with pool.operator as operator:
        made = operator.create_access_key("ann")
    with SecretClient(pool.address, access=Access(pool.operator_token)) as secrets:
        secrets.set("other", "value")
        assert [one.name for one in secrets.secrets()] == ["other"]
        assert secrets.rotate_master_key().secrets == 2
        assert [one.name for one in secrets.secrets()] == ["other"]
        with pytest.raises(InvalidArgument):
            secrets.remove(f"access-key:{made.access_key_id}")
    pool.server.stop(0.0)
    files = [path for path in pool.directory.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if made.secret.encode() in path.read_bytes()]
    pool = Pool(tmp_path / "pool")
    with pool.gateway as gateway:
        assert gateway.access_key(made.access_key_id) == made
    pool.server.stop(0.0)


def test_without_the_master_key_there_are_no_access_keys(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "pool", encrypts=False)
    with pool.operator as operator, pool.gateway as gateway:
        made = operator.create_access_key("ann")
        operator.create_token("ann")
    pool.server.stop(0.0)
    (pool.directory / "master.key").rename(pool.directory / "elsewhere")
    again = Pool(pool.directory, encrypts=False)
    try:
        with again.operator as operator, again.gateway as gateway:
            with pytest.raises(SecretsUnavailable):
                gateway.access_key(made.access_key_id)
            with pytest.raises(SecretsUnavailable):
                operator.create_access_key("ann")
            valid = [one for one in operator.tokens("ann") if one.revoked_ms is None]
            assert len(valid) == 2  # none is left of the key that could not be kept
            operator.revoke(made.token_id)
    finally:
        again.server.stop(0.0)


def test_the_trail_says_who_asked_for_which_key(pool: Pool) -> None:
    with pool.operator as operator, pool.gateway as gateway:
        made = operator.create_access_key("ann")
        gateway.access_key(made.access_key_id)
    with AuditClient(pool.address, access=Access(pool.operator_token)) as trail:
        records = [one for one in trail.records() if one.call == "AuthService.GetAccessKey"]
    (record,) = records
    assert record.who == "root"
    assert f"access_key_id={made.access_key_id}" in record.on
    assert "user=ann" in record.on
    assert made.secret not in repr(records)


def test_servers_that_have_none(tmp_path: Path, store: FileStorage) -> None:
    open_pool = Pool(tmp_path / "open", authenticates=False)
    try:
        with UserClient(open_pool.address) as anybody, pytest.raises(InvalidArgument, match="--no-auth"):
            anybody.access_key("TW" + "A" * 18)
    finally:
        open_pool.server.stop(0.0)
    server = StoreServer(store)
    address = f"127.0.0.1:{server.start('127.0.0.1:0')}"
    try:
        server.users.add("root", Role.OPERATOR)
        with UserClient(address, token=server.users.create_token("root").text) as operator:
            with pytest.raises(InvalidArgument, match="for pools"):
                operator.create_access_key("root")
            with pytest.raises(InvalidArgument, match="for pools"):
                operator.access_key("TW" + "A" * 18)
    finally:
        server.stop(0.0)
