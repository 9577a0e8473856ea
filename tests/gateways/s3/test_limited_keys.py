"""Access keys for some of a user's files: what they may set for buckets, and uploads in parts with few scopes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

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
