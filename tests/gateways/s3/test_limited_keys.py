"""Access keys for some of a user's files: what they may set for buckets, and uploads in parts with few scopes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskworker.auth.contexts import Context, Contexts
from taskworker.client.users import UserClient
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import connect
from tests.gateways.s3.test_objects import refused

Keys = Callable[..., list[Any]]
DENIED = ("AccessDenied", 403)


@pytest.fixture
def keys_of(pool: FunctionPool, pool_url: str) -> Keys:
    """Clients of a new user, one for each list of scopes; an empty one: all files."""

    def make(*scopes: list[str]) -> list[Any]:
        user = f"s3-{uuid.uuid4().hex[:8]}"
        with UserClient(pool.address) as users:
            users.add(user)
            keys = [users.create_access_key(user, scopes=some) for some in scopes]
        return [connect(pool_url, key.access_key_id, key.secret) for key in keys]

    return make


def both(*prefixes: str) -> list[str]:
    return [f"files:{right}:{prefix}" for prefix in prefixes for right in ("read", "write")]


def test_who_may_not_change_all_files_of_a_bucket_sets_nothing_for_it(keys_of: Keys) -> None:
    owner, other, part, whole = keys_of(
        [], both("uploads/", ".s3/"), both("books/in/", ".s3/"), both("books/", ".s3/buckets/books")
    )
    owner.create_bucket(Bucket="books")
    owner.put_object(Bucket="books", Key="k", Body=b"kept")
    expire = {"ID": "x", "Status": "Enabled", "Filter": {}, "Expiration": {"Date": datetime(2020, 1, 1, tzinfo=UTC)}}
    rules = {"Bucket": "books", "LifecycleConfiguration": {"Rules": [expire]}}
    cors = {"CORSRules": [{"AllowedOrigins": ["*"], "AllowedMethods": ["GET"]}]}
    lock = {"ObjectLockEnabled": "Enabled"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    block = {"BlockPublicAcls": True}
    owned = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    for key in (other, part):
        for setting in (
            lambda key: key.put_bucket_lifecycle_configuration(**rules),
            lambda key: key.put_bucket_versioning(Bucket="books", VersioningConfiguration={"Status": "Enabled"}),
            lambda key: key.put_object_lock_configuration(Bucket="books", ObjectLockConfiguration=lock),
            lambda key: key.put_bucket_cors(Bucket="books", CORSConfiguration=cors),
            lambda key: key.put_bucket_tagging(Bucket="books", Tagging={"TagSet": []}),
            lambda key: key.put_public_access_block(Bucket="books", PublicAccessBlockConfiguration=block),
            lambda key: key.put_bucket_ownership_controls(Bucket="books", OwnershipControls=owned),
            lambda key: key.delete_bucket_lifecycle(Bucket="books"),
            lambda key: key.delete_bucket_policy(Bucket="books"),
            lambda key: key.delete_bucket_cors(Bucket="books"),
            lambda key: key.delete_bucket(Bucket="books"),
            lambda key: key.create_bucket(Bucket="books-2"),
        ):
            assert refused(lambda key=key, setting=setting: setting(key)) == DENIED  # type: ignore[misc]
    assert refused(lambda: owner.get_bucket_lifecycle_configuration(Bucket="books"))[1] == 404
    assert refused(lambda: part.put_bucket_policy(Bucket="books", Policy=policy))[1] in (400, 403)
    whole.put_bucket_lifecycle_configuration(**rules)
    assert len(owner.get_bucket_lifecycle_configuration(Bucket="books")["Rules"]) == 1
    whole.delete_bucket_lifecycle(Bucket="books")


def test_uploads_in_parts_need_no_more_than_the_documentation_says(keys_of: Keys) -> None:
    uploads = both(".s3/uploads/books/", ".s3/parts/")
    owner, whole, part = keys_of(
        [],
        [*both("books/"), *uploads, "files:read:.s3/buckets/books"],
        [*both("books/in/"), *uploads, "files:read:.s3/buckets/books"],
    )
    owner.create_bucket(Bucket="books")
    for key in (whole, part):
        named = {"Bucket": "books", "Key": "in/k"}
        first, second = (key.create_multipart_upload(**named)["UploadId"] for _ in range(2))
        tags = []
        for number, content in ((1, b"a" * (5 << 20)), (2, b"end")):
            tags.append(key.upload_part(**named, UploadId=first, PartNumber=number, Body=content)["ETag"])
        key.upload_part(**named, UploadId=second, PartNumber=1, Body=b"")
        assert len(key.list_parts(**named, UploadId=first)["Parts"]) == 2
        assert len(key.list_multipart_uploads(Bucket="books")["Uploads"]) == 2
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        key.complete_multipart_upload(**named, UploadId=first, MultipartUpload={"Parts": parts})
        key.abort_multipart_upload(**named, UploadId=second)
        assert key.head_object(**named)["ContentLength"] == (5 << 20) + 3
        assert "Uploads" not in owner.list_multipart_uploads(Bucket="books")


def test_deleting_versions_needs_no_more_than_the_documentation_says(keys_of: Keys) -> None:
    owner, key = keys_of([], [*both("books/", ".s3/locks/books/"), "files:read:.s3/buckets/books"])
    owner.create_bucket(Bucket="books", ObjectLockEnabledForBucket=True)
    free, held = (owner.put_object(Bucket="books", Key="k", Body=bytes([n]))["VersionId"] for n in range(2))
    for version, status in ((free, "OFF"), (held, "ON")):
        owner.put_object_legal_hold(Bucket="books", Key="k", VersionId=version, LegalHold={"Status": status})
    assert refused(lambda: key.delete_object(Bucket="books", Key="k", VersionId=held)) == DENIED
    key.delete_object(Bucket="books", Key="k", VersionId=free)
    assert [one["VersionId"] for one in owner.list_object_versions(Bucket="books")["Versions"]] == [held]


def test_a_key_that_may_not_read_settings_goes_by_them(pool: FunctionPool, keys_of: Keys) -> None:
    owner, limited = keys_of([], both("books/"))
    owner.create_bucket(Bucket="books")
    owner.put_object(Bucket="books", Key="null", Body=b"precious")
    owner.put_object(Bucket="books", Key="gone", Body=b"")
    limited.delete_object(Bucket="books", Key="gone")
    assert "DeleteMarkers" not in owner.list_object_versions(Bucket="books")
    owner.put_bucket_versioning(Bucket="books", VersioningConfiguration={"Status": "Enabled"})
    default = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    locking = {"ObjectLockEnabled": "Enabled", "Rule": default}
    owner.put_object_lock_configuration(Bucket="books", ObjectLockConfiguration=locking)
    owner.put_object_legal_hold(Bucket="books", Key="null", VersionId="null", LegalHold={"Status": "ON"})
    put = limited.put_object(Bucket="books", Key="k", Body=b"")
    assert owner.head_object(Bucket="books", Key="k", VersionId=put["VersionId"])["ObjectLockMode"] == "COMPLIANCE"
    for key, version in (("null", "null"), ("k", put["VersionId"])):
        named = {"Key": key, "VersionId": version}
        assert refused(lambda named=named: limited.delete_object(Bucket="books", **named)) == DENIED  # type: ignore[misc]
        (error,) = limited.delete_objects(Bucket="books", Delete={"Objects": [named]})["Errors"]
        assert error["Code"] == "AccessDenied"
        assert limited.delete_object(Bucket="books", Key=key)["DeleteMarker"] is True
        limited.delete_objects(Bucket="books", Delete={"Objects": [{"Key": key}]})
        assert owner.get_object(Bucket="books", **named)["Body"].read() == b"precious" * (key == "null")
        got = limited.get_object(Bucket="books", **named)
        got["Body"].read()  # or its connection stays open
        assert "ObjectLockMode" not in got, "that is shown only to keys that may read it"
    limited.put_object(Bucket="books", Key="null", Body=b"new")
    limited.put_object_tagging(Bucket="books", Key="null", Tagging={"TagSet": []})
    owner.put_object_legal_hold(Bucket="books", Key="null", LegalHold={"Status": "ON"})
    limited.put_object_tagging(Bucket="books", Key="null", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert owner.get_object_legal_hold(Bucket="books", Key="null")["LegalHold"]["Status"] == "ON"
    assert refused(lambda: limited.get_bucket_policy(Bucket="books"))[1] == 404


@pytest.fixture
def gateway_login(pool: FunctionPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login of this process, and so of its gateways, may look up access keys, and nothing else."""
    operator = f"gateway-{uuid.uuid4().hex[:8]}"
    with UserClient(pool.address) as users:
        users.add(operator, "operator")
        token, _ = users.create_token(operator, scopes=["gateway"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "contexts"))
    Contexts().put(Context(pool.address, token, operator))


def test_what_nobody_may_read_is_not_gone_by(keys_of: Keys, request: pytest.FixtureRequest) -> None:
    owner, limited = keys_of([], both("books/"))
    part, alone = keys_of([*both("books/"), *both(".s3/")], both("books/"))
    for key in (owner, part):
        key.create_bucket(Bucket="books", ObjectLockEnabledForBucket=True)
        held = key.put_object(Bucket="books", Key="k", Body=b"kept", ObjectLockLegalHoldStatus="ON")["VersionId"]
    request.getfixturevalue("gateway_login")
    assert limited.delete_object(Bucket="books", Key="k")["DeleteMarker"] is True
    assert alone.get_object(Bucket="books", Key="k")["Body"].read() == b"kept"
    upload = {"Bucket": "books", "Key": "k", "UploadId": "0" * 32}
    for refusing in (
        lambda: alone.delete_object(Bucket="books", Key="k"),
        lambda: alone.delete_object(Bucket="books", Key="k", VersionId=held),
        lambda: alone.delete_objects(Bucket="books", Delete={"Objects": [{"Key": "k"}]}),
        lambda: alone.put_object(Bucket="books", Key="k", Body=b""),
        lambda: alone.copy_object(Bucket="books", Key="copy", CopySource="books/k"),
        lambda: alone.create_multipart_upload(Bucket="books", Key="k"),
        lambda: alone.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": "a"}]}),
    ):
        assert refused(refusing) == DENIED
    assert part.get_object(Bucket="books", Key="k", VersionId=held)["Body"].read() == b"kept"
