"""Policies, ACLs and what is said about the public: what is more or else than grants of the store is refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from storage.errors import StorageError
from taskworker.client import Client
from taskworker.client.users import UserClient
from taskworker.gateways.s3 import access
from taskworker.gateways.s3.bucket_policies import GRANTS_MAX, Grant, grants_in
from taskworker.gateways.s3.calls import Call
from taskworker.gateways.s3.errors import S3Error
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import OTHER_USER, USER, connect, send
from tests.gateways.s3.test_objects import refused

NewBucket = Callable[[], str]
READS = ["s3:GetObject", "s3:GetObjectVersion"]
LISTS = ["s3:ListBucket", "s3:ListBucketVersions"]


def statement(actions: list[str], *resources: str, user: Any = "guest", **more: Any) -> dict[str, Any]:
    named = [f"arn:aws:s3:::{one}" for one in resources]
    return {"Effect": "Allow", "Principal": {"AWS": user}, "Action": actions, "Resource": named, **more}


def policy(*statements: Any, **more: Any) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [*statements], **more})


def folder(prefix: str, user: Any = "guest", bucket: str = "b") -> list[dict[str, Any]]:
    """Statements that let a user read what is below a prefix."""
    condition = {"Condition": {"StringLike": {"s3:prefix": f"{prefix}*"}}} if prefix else {}
    return [
        statement(READS, f"{bucket}/{prefix}*", user=user),
        statement(LISTS, bucket, user=user, **condition),
    ]


# -- what a policy may say ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "grants"),
    [
        (policy(statement(READS, "b/k")), {("guest", "b/k")}),
        (policy(statement(READS, "b/k", user="owner")), set()),
        (policy(statement([*READS, *LISTS, "s3:GetBucketLocation"], "b", "b/*")), {("guest", "b/")}),
        (policy(*folder("a/")), {("guest", "b/a/")}),
        (policy(*folder("a/"), *folder("", "other")), {("guest", "b/a/"), ("other", "b/")}),
        (policy(*(statement([one], "b/k") for one in READS)), {("guest", "b/k")}),
        (policy(statement(READS, "b/k", user=["x", "y"])), {("x", "b/k"), ("y", "b/k")}),
        (policy(statement(READS, "b/k", user="arn:aws:iam::ann:root")), {("ann", "b/k")}),
        (policy(statement(READS, "b/k", user="arn:aws:iam::1:user/path/ann")), {("ann", "b/k")}),
        (policy(statement(READS, "b/k", Principal={"CanonicalUser": "ann"}), Id="x"), {("ann", "b/k")}),
        (json.dumps({"Statement": statement(READS, "b/k")}), {("guest", "b/k")}),
    ],
)
def test_what_policies_grant(given: str, grants: set[tuple[str, str]]) -> None:
    assert grants_in(given.encode(), "b", "owner") == {Grant(*one) for one in grants}


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("", "MalformedPolicy"),
        ("[]", "MalformedPolicy"),
        ("[" * 15_000, "MalformedPolicy"),
        (" " * 30_000, "MalformedPolicy"),
        (policy(), "MalformedPolicy"),
        (policy("x"), "MalformedPolicy"),
        (policy(statement(READS, "b/k"), Version="2020-01-01"), "MalformedPolicy"),
        (policy(statement(READS, "b/k"), More=1), "MalformedPolicy"),
        (policy(statement(READS, "b/k", More=1)), "MalformedPolicy"),
        (policy(statement(READS, "b/k", Effect="Maybe")), "MalformedPolicy"),
        (policy(statement(READS, "other/k")), "MalformedPolicy"),
        (policy(statement(READS, "b/")), "MalformedPolicy"),
        (policy(statement(READS, "b")), "MalformedPolicy"),
        (policy(statement(LISTS, "b/*")), "MalformedPolicy"),
        (policy(statement(READS, "b/k", "b")), "MalformedPolicy"),
        (policy(statement([], "b/k")), "MalformedPolicy"),
        (policy(statement(READS, "b/k", Action=1)), "MalformedPolicy"),
        (policy(statement(READS, "b/k", Principal={})), "MalformedPolicy"),
        (policy(statement(READS, "b/k", user="arn:aws:sts::1:x")), "MalformedPolicy"),
        (policy(statement(READS, "b/k", user="")), "MalformedPolicy"),
        (policy(statement(READS, "b/k", user="\ud800")), "MalformedPolicy"),
        (policy(statement(READS, "b/k", Effect="Deny")), "NotImplemented"),
        (policy(statement(READS, "b/k", Principal="*")), "NotImplemented"),
        (policy(statement(READS, "b/k", user="*")), "NotImplemented"),
        (policy(statement(READS, "b/k", Principal={"Service": "x"})), "NotImplemented"),
        (policy(statement(READS, "b/k", NotPrincipal={"AWS": "x"})), "NotImplemented"),
        (policy(statement(["s3:*"], "b/k")), "NotImplemented"),
        (policy(statement(["s3:PutObject"], "b/k")), "NotImplemented"),
        (policy(statement(["s3:GetObject"], "b/k")), "NotImplemented"),
        (policy(statement(READS, "b/*")), "NotImplemented"),
        (policy(statement(LISTS, "b")), "NotImplemented"),
        (policy(statement(["s3:ListBucket", *READS], "b", "b/*")), "NotImplemented"),
        (policy(statement(READS, "b/a/*"), statement(LISTS, "b")), "NotImplemented"),
        (policy(statement(READS, "b/a*"), statement(LISTS, "b")), "NotImplemented"),
        (policy(statement(READS, "b/a?c")), "NotImplemented"),
        (policy(statement(READS, "b/${aws:username}")), "NotImplemented"),
        (policy(statement(READS, "b/a/")), "NotImplemented"),
        (policy(statement(READS, "b/k", Condition={"Bool": {"aws:SecureTransport": "true"}})), "NotImplemented"),
        (policy(folder("")[0], statement(LISTS, "b", Condition={"IpAddress": {"x": "y"}})), "NotImplemented"),
        (
            policy(folder("a/")[0], statement(LISTS, "b", Condition={"StringLike": {"s3:prefix": "a"}})),
            "NotImplemented",
        ),
    ],
)
def test_policies_that_are_refused(given: str, code: str) -> None:
    with pytest.raises(S3Error) as raised:
        grants_in(given.encode(), "b", "owner")
    assert raised.value.code == code


def test_a_policy_is_for_so_many_users_and_objects() -> None:
    users, names = [f"u{number}" for number in range(40)], [f"b/{number}" for number in range(25)]
    assert len(grants_in(policy(statement(READS, *names, user=users)).encode(), "b", "owner")) == GRANTS_MAX
    for more in (
        statement(READS, *names, "b/more", user=users),
        statement(LISTS, "b", user=[f"u{n}" for n in range(1001)]),
    ):
        with pytest.raises(S3Error, match="1,000"):
            grants_in(policy(more).encode(), "b", "owner")


# -- what comes of it -----------------------------------------------------------------------------------


def given(pool: FunctionPool, bucket: str) -> set[tuple[str, str]]:
    found = pool.client.shares(user_id=USER).given
    assert not [one for one in found if one.write]
    return {(one.with_user, one.name) for one in found if one.name.startswith(f"{bucket}/")}


def test_a_share_that_ends_is_not_changed_by_a_policy(s3: Any, new_bucket: NewBucket, pool: FunctionPool) -> None:
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    pool.client.share(f"{bucket}/k", with_user="guest", user_id=USER, write=True, ttl_s=3600.0)
    text = policy(statement(READS, f"{bucket}/k"))
    assert refused(lambda: s3.put_bucket_policy(Bucket=bucket, Policy=text)) == ("InvalidRequest", 400)
    (share,) = [one for one in pool.client.shares(user_id=USER).given if one.name == f"{bucket}/k"]
    assert (share.write, share.expires_ms is not None) == (True, True)
    pool.client.unshare(f"{bucket}/k", user_id=USER)
    s3.put_bucket_policy(Bucket=bucket, Policy=text)


def test_policies_become_grants_and_end_with_them(s3: Any, new_bucket: NewBucket, pool: FunctionPool) -> None:
    bucket = new_bucket()
    assert refused(lambda: s3.get_bucket_policy(Bucket=bucket)) == ("NoSuchBucketPolicy", 404)
    assert refused(lambda: s3.get_bucket_policy_status(Bucket=bucket)) == ("NoSuchBucketPolicy", 404)
    first = policy(*folder("a/", ["x", OTHER_USER], bucket))
    s3.put_bucket_policy(Bucket=bucket, Policy=first)
    assert json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"]) == json.loads(first)
    assert s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"] is False
    assert given(pool, bucket) == {("x", f"{bucket}/a/"), (OTHER_USER, f"{bucket}/a/")}
    s3.put_bucket_policy(Bucket=bucket, Policy=policy(*folder("a/", "x", bucket), *folder("b/", "y", bucket)))
    assert given(pool, bucket) == {("x", f"{bucket}/a/"), ("y", f"{bucket}/b/")}
    no_more = policy(statement(["s3:PutObject"], f"{bucket}/k"))
    assert refused(lambda: s3.put_bucket_policy(Bucket=bucket, Policy=no_more)) == ("NotImplemented", 501)
    assert len(given(pool, bucket)) == 2
    s3.delete_bucket_policy(Bucket=bucket)
    s3.delete_bucket_policy(Bucket=bucket)
    assert given(pool, bucket) == set()
    s3.put_bucket_policy(Bucket=bucket, Policy=first)
    s3.delete_bucket(Bucket=bucket)
    assert given(pool, bucket) == set()


def test_a_name_that_no_user_has(s3: Any, new_bucket: NewBucket, pool: FunctionPool) -> None:
    bucket = new_bucket()
    nobody = policy(*folder("a/", "ann", bucket), *folder("", "not a name", bucket))
    assert refused(lambda: s3.put_bucket_policy(Bucket=bucket, Policy=nobody)) == ("MalformedPolicy", 400)
    assert refused(lambda: s3.get_bucket_policy(Bucket=bucket))[1] == 404
    former = policy(*folder("b/", "ben", bucket))
    s3.put_bucket_policy(Bucket=bucket, Policy=former)
    assert refused(lambda: s3.put_bucket_policy(Bucket=bucket, Policy=nobody)) == ("MalformedPolicy", 400)
    assert s3.get_bucket_policy(Bucket=bucket)["Policy"] == former
    assert given(pool, bucket) == {("ben", f"{bucket}/b/")}


def test_what_was_granted_before_a_gateway_ended_can_be_taken_back(
    s3: Any, new_bucket: NewBucket, pool: FunctionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket()

    def ended(_call: Call, _grants: set[Grant]) -> None:
        share(_call, _grants)
        raise RuntimeError("no error that is expected")

    share = access._share
    monkeypatch.setattr(access, "_share", ended)
    with pytest.raises(ClientError, match="InternalError"):
        s3.put_bucket_policy(Bucket=bucket, Policy=policy(*folder("a/", "ann", bucket)))
    monkeypatch.undo()
    assert given(pool, bucket) == {("ann", f"{bucket}/a/")}
    s3.delete_bucket_policy(Bucket=bucket)
    assert given(pool, bucket) == set()


def test_what_the_owner_shared_by_other_means_stays(s3: Any, new_bucket: NewBucket, pool: FunctionPool) -> None:
    bucket = new_bucket()
    pool.client.share(f"{bucket}/a/", with_user="ann", user_id=USER)
    s3.put_bucket_policy(Bucket=bucket, Policy=policy(*folder("a/", ["ann", "ben"], bucket)))
    assert given(pool, bucket) == {("ann", f"{bucket}/a/"), ("ben", f"{bucket}/a/")}
    s3.delete_bucket(Bucket=bucket)
    assert given(pool, bucket) == {("ann", f"{bucket}/a/")}


@pytest.fixture(scope="module")
def users(pool: FunctionPool, pool_url: str) -> dict[str, Any]:
    """Clients of an owner and two others, through a gateway with keys of the pool, by their names."""
    made = {f"s3-{role}-{uuid.uuid4().hex[:8]}": role for role in ("owner", "guest", "stranger")}
    clients: dict[str, Any] = {}
    with UserClient(pool.address) as operator:
        for name, role in made.items():
            operator.add(name)
            key = operator.create_access_key(name)
            clients[role] = connect(pool_url, key.access_key_id, key.secret)
            clients[f"{role}'s name"] = name
            clients[f"{role}'s token"] = key.token
    return clients


def test_a_guest_reads_what_is_granted_and_no_more(pool: FunctionPool, users: dict[str, Any]) -> None:
    owner, guest, stranger = users["owner"], users["guest"], users["stranger"]
    named = {"ExpectedBucketOwner": users["owner's name"]}
    owner.create_bucket(Bucket="shared")
    owner.put_bucket_versioning(Bucket="shared", VersioningConfiguration={"Status": "Enabled"})
    old = owner.put_object(Bucket="shared", Key="open/1", Body=b"old")["VersionId"]
    for key in ("open/1", "open/2", "closed/1"):
        owner.put_object(Bucket="shared", Key=key, Body=key.encode())
    assert refused(lambda: guest.get_object(Bucket="shared", Key="open/1", **named)) == ("AccessDenied", 403)
    owner.put_bucket_policy(Bucket="shared", Policy=policy(*folder("open/", users["guest's name"], "shared")))

    assert guest.get_object(Bucket="shared", Key="open/1", **named)["Body"].read() == b"open/1"
    assert guest.head_object(Bucket="shared", Key="open/1", **named)["ContentLength"] == 6
    listed = guest.list_objects_v2(Bucket="shared", Prefix="open/", **named)
    assert [one["Key"] for one in listed["Contents"]] == ["open/1", "open/2"]
    guest.head_bucket(Bucket="shared", **named)
    shown = guest.list_object_versions(Bucket="shared", Prefix="open/1", **named)["Versions"]
    assert [(one["IsLatest"], one["VersionId"] == old) for one in shown] == [(True, False), (False, True)]
    assert guest.get_object(Bucket="shared", Key="open/1", VersionId=old, **named)["Body"].read() == b"old"
    hidden: list[Callable[[], object]] = [
        lambda: guest.get_object(Bucket="shared", Key="closed/1", **named),
        lambda: guest.list_objects_v2(Bucket="shared", **named),
        lambda: guest.list_objects_v2(Bucket="shared", Prefix="closed/", **named),
        lambda: guest.get_object(Bucket="shared", Key="open/1"),
        lambda: guest.get_object(Bucket=".s3", Key="buckets/shared", **named),
        lambda: stranger.get_object(Bucket="shared", Key="open/1", **named),
    ]
    for call in hidden:
        with pytest.raises(ClientError) as raised:
            call()
        assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404)
    assert refused(hidden[1]) == ("AccessDenied", 403)
    assert refused(lambda: guest.list_object_versions(Bucket="shared", **named)) == ("AccessDenied", 403)
    for refused_call in (
        lambda: guest.put_object(Bucket="shared", Key="open/1", Body=b"", **named),
        lambda: guest.delete_object(Bucket="shared", Key="open/1", **named),
        lambda: guest.get_bucket_policy(Bucket="shared", **named),
        lambda: guest.delete_bucket_policy(Bucket="shared", **named),
        lambda: guest.get_object_acl(Bucket="shared", Key="open/1", **named),
        lambda: guest.create_multipart_upload(Bucket="shared", Key="open/1", **named),
        lambda: guest.copy_object(
            Bucket="shared", Key="k", CopySource="shared/open/1", ExpectedSourceBucketOwner=users["owner's name"]
        ),
    ):
        assert refused(refused_call) in (("AccessDenied", 403), ("NoSuchBucket", 404))
    owner.delete_bucket_policy(Bucket="shared")
    assert refused(lambda: guest.get_object(Bucket="shared", Key="open/1", **named)) == ("AccessDenied", 403)
    assert owner.get_object(Bucket="shared", Key="open/1", **named)["Body"].read() == b"open/1"
    with Client(pool.address, token=users["guest's token"]) as client, pytest.raises(StorageError):
        client.find("shared/open/1", user_id=users["owner's name"])


def test_a_gateway_with_keys_of_its_own_lets_nobody_visit(s3: Any, other_s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    s3.put_bucket_policy(Bucket=bucket, Policy=policy(*folder("", OTHER_USER, bucket)))
    for call in (
        lambda: other_s3.get_object(Bucket=bucket, Key="k", ExpectedBucketOwner=USER),
        lambda: other_s3.list_objects_v2(Bucket=bucket, ExpectedBucketOwner=USER),
        lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"", ExpectedBucketOwner="somebody"),
    ):
        assert refused(call) == ("AccessDenied", 403)
    s3.delete_bucket_policy(Bucket=bucket)


# -- ACLs, the public, owners ---------------------------------------------------------------------------


def test_acls_say_what_is_so(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"", ACL="bucket-owner-full-control")
    s3.put_bucket_acl(Bucket=bucket, ACL="private")
    s3.put_object_acl(Bucket=bucket, Key="k", ACL="private")
    assert refused(lambda: s3.put_object_acl(Bucket=bucket, Key="none", ACL="private")) == ("NoSuchKey", 404)
    for acl in (
        {"ACL": "public-read"},
        {"ACL": "authenticated-read"},
        {"GrantRead": f"id={OTHER_USER}"},
        {"GrantFullControl": f"id={USER}"},
    ):
        assert refused(lambda acl=acl: s3.put_object_acl(Bucket=bucket, Key="k", **acl))[0] == "NotImplemented"  # type: ignore[misc]
        assert refused(lambda acl=acl: s3.put_bucket_acl(Bucket=bucket, **acl))[0] == "NotImplemented"  # type: ignore[misc]
        assert refused(lambda acl=acl: s3.put_object(Bucket=bucket, Key="k", Body=b"", **acl))[1] == 501  # type: ignore[misc]
        assert refused(lambda acl=acl: s3.create_bucket(Bucket="not-made", **acl))[1] == 501  # type: ignore[misc]
    other = {"Owner": {"ID": OTHER_USER}, "Grants": s3.get_bucket_acl(Bucket=bucket)["Grants"]}
    assert refused(lambda: s3.put_bucket_acl(Bucket=bucket, AccessControlPolicy=other)) == ("NotImplemented", 501)


def test_an_acl_that_says_nothing(url: str, bucket: str) -> None:
    status, answer = send(url, "PUT", f"/{bucket}?acl")
    assert (status, b"MissingSecurityHeader" in answer) == (400, True)
    assert send(url, "PUT", f"/{bucket}?acl", b"<AccessControlPolicy>")[0] == 400


def test_what_is_said_about_the_public(s3: Any, url: str, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    blocked = {
        "BlockPublicAcls": True,
        "IgnorePublicAcls": False,
        "BlockPublicPolicy": True,
        "RestrictPublicBuckets": True,
    }
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=blocked)
    assert s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"] == blocked
    for inner in ("<Other>true</Other>", "<BlockPublicAcls>maybe</BlockPublicAcls>"):
        document = f"<PublicAccessBlockConfiguration>{inner}</PublicAccessBlockConfiguration>".encode()
        assert send(url, "PUT", f"/{bucket}?publicAccessBlock", document)[0] == 400
    s3.delete_public_access_block(Bucket=bucket)
    assert refused(lambda: s3.get_public_access_block(Bucket=bucket))[1] == 404


def test_what_is_said_about_owners(s3: Any, url: str, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    for ownership in ("BucketOwnerEnforced", "BucketOwnerPreferred"):
        controls = {"Rules": [{"ObjectOwnership": ownership}]}
        s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=controls)
        assert s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"] == controls
    s3.delete_bucket_ownership_controls(Bucket=bucket)
    assert refused(lambda: s3.get_bucket_ownership_controls(Bucket=bucket))[1] == 404
    writer = {"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
    assert refused(lambda: s3.put_bucket_ownership_controls(Bucket=bucket, OwnershipControls=writer))[1] == 501
    for inner in ("", "<Rule/>", "<Rule><ObjectOwnership>X</ObjectOwnership></Rule>"):
        document = f"<OwnershipControls>{inner}</OwnershipControls>".encode()
        assert send(url, "PUT", f"/{bucket}?ownershipControls", document)[0] == 400
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name, ObjectOwnership="BucketOwnerEnforced")
    found = s3.get_bucket_ownership_controls(Bucket=name)["OwnershipControls"]
    assert found == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert refused(lambda: s3.create_bucket(Bucket="not-made", ObjectOwnership="ObjectWriter"))[1] == 501
