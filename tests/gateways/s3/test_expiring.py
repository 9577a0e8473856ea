"""Passes of lifecycle rules: how old something is, what counts as a version, and who is waited for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from storage import Version
from storage.errors import QuotaExceeded
from taskworker.client import Client
from taskworker.client.users import AccessKey, UserClient
from taskworker.errors import SecretDamaged
from taskworker.gateways.s3 import expiring, lifecycle_passes
from taskworker.gateways.s3.accounts import Account, FileAccounts, PoolAccounts
from taskworker.gateways.s3.buckets import Bucket
from taskworker.gateways.s3.expiring import Lifecycles
from taskworker.gateways.s3.lifecycle_passes import Expired, pages_below
from taskworker.gateways.s3.metadata import Metadata, metadata_of
from taskworker.gateways.s3.names import settings_name
from taskworker.gateways.s3.times import DAY_MS
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import OTHER_USER, Apply
from tests.gateways.s3.test_lifecycle import NewBucket, keys, put_rules, rule, versions


@pytest.fixture(scope="module")
def s3(other_s3: Any) -> Any:
    """A client of a user who has no other buckets, through all of which each pass goes."""
    return other_s3


# -- how old something is, and what counts ------------------------------------------------------------------


def test_what_is_old_goes_by_the_clock_of_the_pool(
    s3: Any, new_bucket: NewBucket, apply: Apply, accounts: FileAccounts
) -> None:
    bucket, plain = new_bucket(), new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 30}}))
    put_rules(s3, plain, rule({"Expiration": {"Days": 30}}))
    precious = s3.put_object(Bucket=bucket, Key="k", Body=b"precious")["VersionId"]
    client = next(accounts.every()).client
    for name in (bucket, plain):
        client.push(b"new", user_id=OTHER_USER, filename=f"{name}/k", time_ms=1_000_000_000_000)
    assert apply(0) == Expired()
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=precious)["Body"].read() == b"precious"
    assert keys(s3, plain) == ["k"]
    assert apply(31.1) == Expired(objects=1, versions=1)


def test_other_tags_make_no_version_that_counts(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    noncurrent = {"NoncurrentDays": 1, "NewerNoncurrentVersions": 1}
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": noncurrent}))
    made = [s3.put_object(Bucket=bucket, Key="k", Body=bytes([n]))["VersionId"] for n in range(3)]
    for value in "ab":
        s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "k", "Value": value}]})
    assert apply(2.1) == Expired(versions=1)
    left = versions(s3, bucket)[0]
    assert (left[2:], len(left)) == (made[:0:-1], 4)
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}))
    assert apply(2.1) == Expired(versions=3)


def test_other_tags_do_not_make_an_object_young(
    s3: Any, new_bucket: NewBucket, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they had been changed much later."""
    stored_ms = lifecycle_passes._stored_ms
    monkeypatch.setattr(
        lifecycle_passes, "_stored_ms", lambda one: stored_ms(one) + 10 * DAY_MS * bool(metadata_of(one).tags)
    )
    bucket = new_bucket()
    put_rules(s3, bucket, rule({"Expiration": {"Days": 1}}))
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})
    assert apply(2.1) == Expired(objects=1)


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_gateway_whose_clock_is_wrong_lets_nothing_expire(
    s3: Any, new_bucket: NewBucket, accounts: FileAccounts, caplog: pytest.LogCaptureFixture, hours: int
) -> None:
    bucket = new_bucket()
    put_rules(s3, bucket, rule({"Expiration": {"Date": datetime(2020, 1, 1, tzinfo=UTC)}}))
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    assert Lifecycles(accounts, now_ms=lambda: int((time.time() + hours * 3600) * 1000)).apply() == Expired()
    assert "clock" in caplog.text
    assert Lifecycles(accounts).apply() == Expired(objects=1)
    assert next(accounts.every()).client.find(".s3/clock", user_id=OTHER_USER) is None


def test_what_is_locked_meanwhile_does_not_expire(
    s3: Any, new_bucket: NewBucket, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions and a lock come when it was decided that all of a file is deleted."""
    bucket = new_bucket()
    put_rules(s3, bucket, rule({"Expiration": {"Days": 1}}))
    version = s3.put_object(Bucket=bucket, Key="k", Body=b"held")
    call = lifecycle_passes.BucketPass._call

    def lock_it(self: Any, *arguments: str) -> Any:
        monkeypatch.undo()
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
        s3.put_object_legal_hold(Bucket=bucket, Key="k", LegalHold={"Status": "ON"})
        return call(self, *arguments)

    monkeypatch.setattr(lifecycle_passes.BucketPass, "_call", lock_it)
    assert apply(2.1) == Expired()
    assert s3.head_object(Bucket=bucket, Key="k")["ETag"] == version["ETag"]
    s3.delete_bucket_lifecycle(Bucket=bucket)


def test_rules_make_room_for_a_user_who_may_store_nothing(pool: FunctionPool) -> None:
    with UserClient(pool.address) as people:
        people.add("s3-quota")
        key = people.create_access_key("s3-quota")
        with Client(pool.address, token=key.token) as client:
            old = Bucket(created_ms=1, lifecycle=({"ID": "a", "Status": "Enabled", "Expiration": {"Days": 1}},))
            client.push(old.encoded(), user_id="s3-quota", filename=settings_name("books"))
            client.push(b"x" * 1000, user_id="s3-quota", filename="books/k")
            people.set_quota("s3-quota", bytes_=1)
            with pytest.raises(QuotaExceeded):
                client.push(b"y" * 1000, user_id="s3-quota", filename="books/l")
            accounts = PoolAccounts(pool.address)
            later = lambda: int(time.time() * 1000 + 2.1 * DAY_MS)  # noqa: E731
            try:
                Lifecycles(accounts, now_ms=later, skew_max_ms=3 * DAY_MS).apply()
            finally:
                accounts.close()
            assert client.find("books/k", user_id="s3-quota") is None


# -- several buckets and users ------------------------------------------------------------------------------


def test_a_bucket_that_fails_stops_no_others(
    s3: Any,
    new_bucket: NewBucket,
    accounts: FileAccounts,
    apply: Apply,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    buckets = sorted(new_bucket() for _ in range(2))
    for bucket in buckets:
        put_rules(s3, bucket, rule({"Expiration": {"Days": 1}}))
        s3.put_object(Bucket=bucket, Key="k", Body=b"")

    def failing(version: Version) -> Metadata:
        if version.filename.startswith(buckets[0]):
            raise RecursionError("too deep")
        return metadata_of(version)

    monkeypatch.setattr(lifecycle_passes, "metadata_of", failing)
    assert apply(2.1) == Expired(objects=1)
    assert [keys(s3, bucket) for bucket in buckets] == [["k"], []]
    assert buckets[0] in caplog.text
    assert "Traceback" in caplog.text
    s3.delete_bucket_lifecycle(Bucket=buckets[0])


def test_a_user_who_fails_stops_no_others(pool: FunctionPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the key that would be used first is lost: another one of the user is."""
    users = [f"s3-turn-{name}" for name in "ab"]
    with UserClient(pool.address) as people:
        for user in users:
            people.add(user)
        keys = [[people.create_access_key(user) for _ in range(2)] for user in users]
    lost = min(one.access_key_id for one in keys[1])
    for (key, _), user in zip(keys, users, strict=True):
        with Client(pool.address, token=key.token) as client:
            old = Bucket(created_ms=1, lifecycle=({"ID": "a", "Status": "Enabled", "Expiration": {"Days": 1}},))
            client.push(old.encoded(), user_id=user, filename=settings_name("books"))
            client.push(b"", user_id=user, filename="books/k")
    looked_up = UserClient.access_key

    def failing(account: Callable[[], Account], prefix: str) -> Iterator[Sequence[Version]]:
        if account().user == users[0]:
            raise RecursionError("too deep")
        return pages_below(account, prefix)

    def damaged(self: UserClient, access_key_id: str) -> AccessKey:
        if access_key_id == lost:
            raise SecretDamaged(lost)
        return looked_up(self, access_key_id)

    monkeypatch.setattr(expiring, "pages_below", failing)
    monkeypatch.setattr(UserClient, "access_key", damaged)
    accounts = PoolAccounts(pool.address)
    try:
        later = lambda: int(time.time() * 1000 + 2.1 * DAY_MS)  # noqa: E731
        Lifecycles(accounts, now_ms=later, skew_max_ms=3 * DAY_MS).apply()
    finally:
        accounts.close()
    assert [pool.client.find("books/k", user_id=user) is None for user in users] == [False, True]


def test_users_take_turns(pool: FunctionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has many pages does not delay who comes next."""
    monkeypatch.setattr(lifecycle_passes, "PAGE", 2)
    monkeypatch.setattr(expiring, "_TURN_STEPS", 1)
    users = ["s3-turns-1", "s3-turns-2"]
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({f"TW{user}": {"secret": "s" * 43, "user": user} for user in users}))
    accounts = FileAccounts(path, Client(pool.address))
    bucket = Bucket(created_ms=1, lifecycle=({"ID": "a", "Status": "Enabled", "Expiration": {"Days": 1}},))
    for user, count in zip(users, (7, 1), strict=True):
        pool.client.push(bucket.encoded(), user_id=user, filename=settings_name("books"))
        for number in range(count):
            pool.client.push(b"", user_id=user, filename=f"books/{number}")
    order: list[str] = []
    sifted = lifecycle_passes.BucketPass._expire

    def noted(self: Any, version: Version, *more: Any) -> None:
        order.append(version.user_id)
        sifted(self, version, *more)

    monkeypatch.setattr(lifecycle_passes.BucketPass, "_expire", noted)
    later = lambda: int(time.time() * 1000 + 2.1 * DAY_MS)  # noqa: E731
    try:
        assert Lifecycles(accounts, now_ms=later, skew_max_ms=3 * DAY_MS).apply() == Expired(objects=8)
    finally:
        accounts.close()
    assert order == [*[users[0]] * 2, users[1], *[users[0]] * 5]
