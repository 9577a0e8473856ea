"""Buckets, listings and settings, as the reference of S3 says, by boto3."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from taskworker.client import Client
from taskworker.gateways.s3.buckets import Bucket
from taskworker.gateways.s3.names import settings_name
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import USER, send
from tests.gateways.s3.test_objects import refused

NewBucket = Callable[[], str]
KEYS = ["a/1", "a/2", "a/b/3", "b", "c/4", "d", "é"]


@pytest.fixture(scope="module")
def listed(s3: Any, bucket: str) -> str:
    for key in KEYS:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    return bucket


def test_buckets_are_made_listed_and_removed(s3: Any, new_bucket: NewBucket) -> None:
    name = new_bucket()
    assert name in {one["Name"] for one in s3.list_buckets()["Buckets"]}
    assert s3.list_buckets(Prefix=name)["Buckets"][0]["Name"] == name
    s3.head_bucket(Bucket=name)
    assert refused(lambda: s3.create_bucket(Bucket=name)) == ("BucketAlreadyOwnedByYou", 409)
    s3.put_object(Bucket=name, Key="a", Body=b"")
    assert refused(lambda: s3.delete_bucket(Bucket=name)) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=name, Key="a")
    s3.delete_bucket(Bucket=name)
    assert refused(lambda: s3.delete_bucket(Bucket=name)) == ("NoSuchBucket", 404)
    assert refused(lambda: s3.list_objects_v2(Bucket=name)) == ("NoSuchBucket", 404)


@pytest.mark.parametrize("name", ["Upper", "under_score", "-a-", "a..b", "127.0.0.1", "ab."])
def test_names_of_buckets(s3: Any, name: str) -> None:
    assert refused(lambda: s3.create_bucket(Bucket=name)) == ("InvalidBucketName", 400)


def test_what_the_gateway_keeps_is_in_no_bucket(s3: Any, bucket: str) -> None:
    s3.create_multipart_upload(Bucket=bucket, Key="k")
    assert not [one["Name"] for one in s3.list_buckets()["Buckets"] if one["Name"].startswith(".")]
    kept = f"buckets/{bucket}"
    for call in (
        lambda: s3.list_objects_v2(Bucket=".s3"),
        lambda: s3.get_object(Bucket=".s3", Key=kept),
        lambda: s3.put_object(Bucket=".s3", Key=kept, Body=b"{}"),
        lambda: s3.delete_object(Bucket=".s3", Key=kept),
        lambda: s3.copy_object(Bucket=bucket, Key="k", CopySource=f".s3/{kept}"),
        lambda: s3.copy_object(Bucket=bucket, Key="k", CopySource=f"{bucket}/../.s3/{kept}"),
    ):
        assert refused(call)[0] in ("NoSuchBucket", "InvalidArgument")


def test_where_buckets_are(s3: Any, new_bucket: NewBucket) -> None:
    assert not s3.get_bucket_location(Bucket=new_bucket()).get("LocationConstraint")


def test_no_region_ends_the_header_that_it_is_in(url: str, pool: FunctionPool, s3: Any) -> None:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    body = b"<CreateBucketConfiguration><LocationConstraint>a&#13;&#10;x-made: up</LocationConstraint>"
    status, answer = send(url, "PUT", f"/{name}", body + b"</CreateBucketConfiguration>")
    assert (status, b"InvalidArgument" in answer) == (400, True)
    with Client(pool.address) as client:  # others may write what they like
        client.push(Bucket(region="a\r\nx-made: up").encoded(), user_id=USER, filename=settings_name(name))
    assert "x-made" not in s3.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]


def keys(answer: dict[str, Any]) -> list[str]:
    return [one["Key"] for one in answer.get("Contents", ())]


def prefixes(answer: dict[str, Any]) -> list[str]:
    return [one["Prefix"] for one in answer.get("CommonPrefixes", ())]


@pytest.mark.parametrize("call", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize(
    ("asked", "wanted", "common"),
    [
        ({}, KEYS, []),
        ({"Prefix": "a/"}, ["a/1", "a/2", "a/b/3"], []),
        ({"Delimiter": "/"}, ["b", "d", "é"], ["a/", "c/"]),
        ({"Prefix": "a/", "Delimiter": "/"}, ["a/1", "a/2"], ["a/b/"]),
        ({"Prefix": "a", "Delimiter": "/"}, [], ["a/"]),
        ({"Prefix": "none"}, [], []),
        ({"MaxKeys": 0}, [], []),
        ({"MaxKeys": 2}, ["a/1", "a/2"], []),
        ({"EncodingType": "url"}, [*KEYS[:-1], "é"], []),
    ],
)
def test_listings(s3: Any, listed: str, call: str, asked: dict[str, Any], wanted: list[str], common: list[str]) -> None:
    answer = getattr(s3, call)(Bucket=listed, **asked)
    if asked.get("EncodingType") == "url":
        wanted = [*KEYS[:-1], "%C3%A9"]
    assert (keys(answer), prefixes(answer)) == (wanted, common)
    assert answer["IsTruncated"] is (asked.get("MaxKeys") == 2)


@pytest.mark.parametrize("call", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_listings_page_by_page(s3: Any, listed: str, call: str, delimiter: str, size: int) -> None:
    found: list[str] = []
    asked = {"Delimiter": delimiter} if delimiter else {}
    for page in s3.get_paginator(call).paginate(Bucket=listed, PaginationConfig={"PageSize": size}, **asked):
        assert len(keys(page)) + len(prefixes(page)) <= size
        found += [*keys(page), *prefixes(page)]
    assert sorted(found) == sorted(["b", "d", "é", "a/", "c/"] if delimiter else KEYS)


def test_listings_start_where_they_shall(s3: Any, listed: str) -> None:
    assert keys(s3.list_objects_v2(Bucket=listed, StartAfter="b")) == ["c/4", "d", "é"]
    assert keys(s3.list_objects(Bucket=listed, Marker="b")) == ["c/4", "d", "é"]
    assert "Owner" in s3.list_objects_v2(Bucket=listed, FetchOwner=True)["Contents"][0]
    assert refused(lambda: s3.list_objects_v2(Bucket=listed, ContinuationToken="?")) == ("InvalidArgument", 400)
    assert refused(lambda: s3.list_objects_v2(Bucket=listed, MaxKeys=-1)) == ("InvalidArgument", 400)


def test_tags_of_buckets(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    assert refused(lambda: s3.get_bucket_tagging(Bucket=bucket)) == ("NoSuchTagSet", 404)
    tags = [{"Key": "a", "Value": "<1>"}]
    s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": tags})
    assert s3.get_bucket_tagging(Bucket=bucket)["TagSet"] == tags
    s3.delete_bucket_tagging(Bucket=bucket)
    assert refused(lambda: s3.get_bucket_tagging(Bucket=bucket)) == ("NoSuchTagSet", 404)


def test_rules_for_browsers(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    assert refused(lambda: s3.get_bucket_cors(Bucket=bucket)) == ("NoSuchCORSConfiguration", 404)
    rules = [{"AllowedOrigins": ["https://*.example"], "AllowedMethods": ["GET"], "MaxAgeSeconds": 5}]
    s3.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": rules})
    assert s3.get_bucket_cors(Bucket=bucket)["CORSRules"] == rules
    s3.delete_bucket_cors(Bucket=bucket)
    assert refused(lambda: s3.get_bucket_cors(Bucket=bucket)) == ("NoSuchCORSConfiguration", 404)


def test_all_is_the_owners(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="acl", Body=b"")
    for acl in (s3.get_bucket_acl(Bucket=bucket), s3.get_object_acl(Bucket=bucket, Key="acl")):
        assert [(one["Permission"], one["Grantee"]["Type"]) for one in acl["Grants"]] == [
            ("FULL_CONTROL", "CanonicalUser")
        ]
        policy = {"Grants": acl["Grants"], "Owner": acl["Owner"]}
        s3.put_object_acl(Bucket=bucket, Key="acl", AccessControlPolicy=policy)
    policy["Grants"][0]["Grantee"]["ID"] = "somebody"
    assert refused(lambda: s3.put_object_acl(Bucket=bucket, Key="acl", AccessControlPolicy=policy))[1] == 501
    s3.put_object_acl(Bucket=bucket, Key="acl", ACL="private")
    assert refused(lambda: s3.put_object_acl(Bucket=bucket, Key="acl", ACL="public-read")) == ("NotImplemented", 501)
    assert refused(lambda: s3.put_bucket_acl(Bucket=bucket, ACL="public-read")) == ("NotImplemented", 501)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("get_bucket_policy", "NoSuchBucketPolicy"),
        ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
        ("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_public_access_block", "NoSuchPublicAccessBlockConfiguration"),
        ("get_bucket_ownership_controls", "OwnershipControlsNotFoundError"),
    ],
)
def test_what_buckets_do_not_have(s3: Any, bucket: str, call: str, code: str) -> None:
    assert refused(lambda: getattr(s3, call)(Bucket=bucket)) == (code, 404)


@pytest.mark.parametrize(
    "call",
    [
        "get_bucket_logging",
        "get_bucket_accelerate_configuration",
        "get_bucket_notification_configuration",
        "get_bucket_request_payment",
        "delete_bucket_website",
        "list_bucket_metrics_configurations",
        "list_bucket_inventory_configurations",
        "list_bucket_analytics_configurations",
    ],
)
def test_what_is_not_there_says_so(s3: Any, bucket: str, call: str) -> None:
    assert refused(lambda: getattr(s3, call)(Bucket=bucket)) == ("NotImplemented", 501)


def test_versions(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="k", Body=b"null")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"first")["VersionId"]
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"second")["VersionId"]
    got = {one: s3.get_object(Bucket=bucket, Key="k", VersionId=one)["Body"].read() for one in (first, second, "null")}
    assert got == {first: b"first", second: b"second", "null": b"null"}
    assert s3.get_object(Bucket=bucket, Key="k")["VersionId"] == second

    deleted = s3.delete_object(Bucket=bucket, Key="k")
    assert deleted["DeleteMarker"] is True
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k")) == ("NoSuchKey", 404)
    marker = deleted["VersionId"]
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k", VersionId=marker)) == ("MethodNotAllowed", 405)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=first)["Body"].read() == b"first"

    told = s3.list_object_versions(Bucket=bucket)
    assert [(one["VersionId"], one["IsLatest"]) for one in told["Versions"]] == [
        (second, False),
        (first, False),
        ("null", False),
    ]
    assert [(one["VersionId"], one["IsLatest"]) for one in told["DeleteMarkers"]] == [(marker, True)]
    paged = [
        one["VersionId"]
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
        for kind in ("Versions", "DeleteMarkers")
        for one in page.get(kind, ())
    ]
    assert paged == [marker, second, first, "null"]

    assert s3.delete_object(Bucket=bucket, Key="k", VersionId=first)["VersionId"] == first
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k", VersionId=first)) == ("NoSuchVersion", 404)
    assert s3.delete_object(Bucket=bucket, Key="k", VersionId=marker)["DeleteMarker"] is True
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"second"
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k", VersionId="0" * 64)) == ("NoSuchVersion", 404)
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k", VersionId="x")) == ("NoSuchVersion", 404)


def test_versions_of_a_bucket_that_has_none(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key="k", Body=b"1")
    s3.put_object(Bucket=bucket, Key="k", Body=b"2")
    told = s3.list_object_versions(Bucket=bucket)["Versions"]
    assert [(one["VersionId"], one["IsLatest"], one["Size"]) for one in told] == [("null", True, 1)]


def test_the_only_version_can_be_deleted(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    version = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["VersionId"]
    s3.delete_object(Bucket=bucket, Key="k", VersionId=version)
    assert "Versions" not in s3.list_object_versions(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)


def test_versions_can_be_deleted_one_by_one(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    versions = [s3.put_object(Bucket=bucket, Key="k", Body=bytes([n]))["VersionId"] for n in range(4)]
    s3.delete_object(Bucket=bucket, Key="k", VersionId=versions[3])
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == bytes([2])
    told = s3.delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": "k", "VersionId": each} for each in (versions[0], versions[2], "x")]}
    )
    assert "Errors" not in told
    assert [one["VersionId"] for one in s3.list_object_versions(Bucket=bucket)["Versions"]] == [versions[1]]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == bytes([1])
    s3.delete_object(Bucket=bucket, Key="k", VersionId=versions[1])
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="k")) == ("NoSuchKey", 404)


def test_versions_without_an_id_are_one_to_be_deleted(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    for body in (b"1", b"2"):
        s3.put_object(Bucket=bucket, Key="k", Body=body)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    kept = s3.put_object(Bucket=bucket, Key="k", Body=b"kept")["VersionId"]
    s3.delete_object(Bucket=bucket, Key="k", VersionId="null")
    assert [one["VersionId"] for one in s3.list_object_versions(Bucket=bucket)["Versions"]] == [kept]


def test_suspended_versions(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    for status in ("Enabled", "Suspended"):
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})
        s3.put_object(Bucket=bucket, Key="k", Body=status.encode())
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"Suspended"
    assert len(s3.list_object_versions(Bucket=bucket)["Versions"]) == 2
