"""Multipart uploads, as the reference of S3 says, by boto3."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taskworker.gateways.s3.names import part_name, parts_prefix, upload_name
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import USER
from tests.gateways.s3.test_objects import refused

PART = 5 * 1024 * 1024


@pytest.fixture(scope="module")
def data() -> bytes:
    return os.urandom(PART + 12345)


@pytest.fixture(scope="module")
def versioned(s3: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def begin(s3: Any, bucket: str, key: str, **more: Any) -> dict[str, str]:
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **more)
    return {"Bucket": bucket, "Key": key, "UploadId": upload["UploadId"]}


def put(s3: Any, upload: dict[str, str], number: int, data: bytes, **more: Any) -> dict[str, Any]:
    part = s3.upload_part(**upload, PartNumber=number, Body=data, **more)
    sums = {name: value for name, value in part.items() if name.startswith("Checksum")}
    return {"PartNumber": number, "ETag": part["ETag"], **sums}


def test_parts_in_any_order(s3: Any, bucket: str, data: bytes) -> None:
    upload = begin(s3, bucket, "any", ContentType="a/b", Metadata={"a": "1"})
    last = put(s3, upload, 9, data[PART:])
    first = put(s3, upload, 2, b"replaced")
    first = put(s3, upload, 2, data[:PART])
    assert refused(lambda: s3.head_object(Bucket=bucket, Key="any")) == ("404", 404)
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [first, last]})
    md5 = hashlib.md5(hashlib.md5(data[:PART]).digest() + hashlib.md5(data[PART:]).digest()).hexdigest()
    assert done["ETag"] == f'"{md5}-2"'
    got = s3.get_object(Bucket=bucket, Key="any")
    assert (got["ContentType"], got["Metadata"], got["ETag"]) == ("a/b", {"a": "1"}, done["ETag"])
    assert got["Body"].read() == data
    part = s3.get_object(Bucket=bucket, Key="any", PartNumber=2)
    assert (part["Body"].read(), part["PartsCount"]) == (data[PART:], 2)
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="any", PartNumber=3)) == ("InvalidRange", 416)
    told = s3.get_object_attributes(Bucket=bucket, Key="any", ObjectAttributes=["ObjectParts"])
    assert told["ObjectParts"]["TotalPartsCount"] == 2
    assert refused(lambda: s3.list_parts(**upload)) == ("NoSuchUpload", 404)


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("CRC32", "COMPOSITE"), ("CRC32C", "FULL_OBJECT"), ("CRC64NVME", "FULL_OBJECT"), ("SHA256", "COMPOSITE")],
)
def test_checksums(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    upload = begin(s3, bucket, algorithm, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    parts = [put(s3, upload, 1, b"only part", ChecksumAlgorithm=algorithm)]
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert done["ChecksumType"] == kind
    head = s3.head_object(Bucket=bucket, Key=algorithm, ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == done[f"Checksum{algorithm}"]
    assert done[f"Checksum{algorithm}"].endswith("-1") is (kind == "COMPOSITE")


@pytest.mark.parametrize(("algorithm", "kind"), [("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")])
def test_checksums_that_cannot_be(s3: Any, bucket: str, algorithm: str, kind: str) -> None:
    told = refused(lambda: begin(s3, bucket, "x", ChecksumAlgorithm=algorithm, ChecksumType=kind))
    assert told == ("InvalidRequest", 400)


def test_parts_that_do_not_fit(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket, "wrong")
    parts = [put(s3, upload, number, b"short") for number in (1, 2)]

    def complete(*listed: dict[str, Any]) -> tuple[str, int]:
        return refused(lambda: s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [*listed]}))

    assert complete(*parts) == ("EntityTooSmall", 400)
    assert complete(parts[1], parts[0]) == ("InvalidPartOrder", 400)
    assert complete(parts[0], parts[0]) == ("InvalidPartOrder", 400)
    assert complete({**parts[0], "ETag": '"0"'}) == ("InvalidPart", 400)
    assert complete({**parts[0], "PartNumber": 7}) == ("InvalidPart", 400)
    assert complete() == ("MalformedXML", 400)
    for number in (0, 10_001):
        assert refused(lambda number=number: put(s3, upload, number, b"")) == ("InvalidArgument", 400)  # type: ignore[misc]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts[:1]})
    assert s3.get_object(Bucket=bucket, Key="wrong")["Body"].read() == b"short"


def test_uploads_are_listed_and_aborted(s3: Any, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    uploads = [begin(s3, bucket, key) for key in ("a/1", "a/2", "b")]
    told = s3.list_multipart_uploads(Bucket=bucket)
    assert [one["Key"] for one in told["Uploads"]] == ["a/1", "a/2", "b"]
    assert [one["Key"] for one in s3.list_multipart_uploads(Bucket=bucket, Prefix="b")["Uploads"]] == ["b"]
    rolled = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [one["Prefix"] for one in rolled["CommonPrefixes"]] == ["a/"]
    pages = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 1})
    assert [one["Key"] for page in pages for one in page.get("Uploads", ())] == ["a/1", "a/2", "b"]
    for number in (1, 2, 3):
        put(s3, uploads[0], number, b"x" * number)
    parts = s3.get_paginator("list_parts").paginate(**uploads[0], PaginationConfig={"PageSize": 2})
    assert [(one["PartNumber"], one["Size"]) for page in parts for one in page["Parts"]] == [(1, 1), (2, 2), (3, 3)]
    for upload in uploads:
        s3.abort_multipart_upload(**upload)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert refused(lambda: put(s3, uploads[0], 1, b"")) == ("NoSuchUpload", 404)
    assert refused(lambda: s3.abort_multipart_upload(**uploads[0])) == ("NoSuchUpload", 404)
    s3.delete_bucket(Bucket=bucket)


def test_an_upload_belongs_to_its_key(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket, "mine")
    assert refused(lambda: put(s3, {**upload, "Key": "other"}, 1, b"")) == ("NoSuchUpload", 404)
    for upload_id in ("x", "../" * 5, "0" * 32):
        with pytest.raises(ClientError, match="NoSuchUpload"):
            put(s3, {**upload, "UploadId": upload_id}, 1, b"")


def test_parts_are_copied(s3: Any, bucket: str, data: bytes) -> None:
    s3.put_object(Bucket=bucket, Key="source", Body=data)
    upload = begin(s3, bucket, "copied")
    source = {"Bucket": bucket, "Key": "source"}
    parts = []
    for number, span in ((1, f"bytes=0-{PART - 1}"), (2, f"bytes={PART}-{len(data) - 1}")):
        told = s3.upload_part_copy(**upload, PartNumber=number, CopySource=source, CopySourceRange=span)
        parts.append({"PartNumber": number, "ETag": told["CopyPartResult"]["ETag"]})
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=bucket, Key="copied")["Body"].read() == data


def test_completion_may_be_conditional(s3: Any, bucket: str) -> None:
    for attempt in range(2):
        upload = begin(s3, bucket, "once")
        parts = {"Parts": [put(s3, upload, 1, str(attempt).encode())]}
        if attempt:
            assert refused(
                lambda: s3.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")  # noqa: B023
            ) == ("PreconditionFailed", 412)
        else:
            s3.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*")
    assert s3.get_object(Bucket=bucket, Key="once")["Body"].read() == b"0"


def test_uploads_end_with_their_bucket(s3: Any, pool: FunctionPool, new_bucket: Callable[[], str]) -> None:
    bucket, other = new_bucket(), new_bucket()
    begun = {}
    for name in (bucket, other):
        upload = {"Bucket": name, "Key": "k"}
        upload["UploadId"] = begun[name] = s3.create_multipart_upload(**upload)["UploadId"]
        s3.upload_part(**upload, PartNumber=1, Body=b"part")
    s3.delete_bucket(Bucket=bucket)
    left = {one: pool.client.list_page(user_id=USER, prefix=parts_prefix(begun[one])).files for one in begun}
    assert (len(left[bucket]), len(left[other])) == (0, 1)
    s3.create_bucket(Bucket=bucket)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert len(s3.list_multipart_uploads(Bucket=other)["Uploads"]) == 1


def test_a_completion_that_is_sent_again_is_answered_as_before(s3: Any, versioned: str, data: bytes) -> None:
    bucket = versioned
    upload = begin(s3, bucket, "again", ChecksumAlgorithm="CRC32")
    parts = {"Parts": [put(s3, upload, 1, data[:PART]), put(s3, upload, 2, data[PART:])]}
    answers = [s3.complete_multipart_upload(**upload, MultipartUpload=parts, IfNoneMatch="*") for _ in range(2)]
    for answer in answers:
        del answer["ResponseMetadata"]
    assert answers[0] == answers[1]
    assert len(s3.list_object_versions(Bucket=bucket, Prefix="again")["Versions"]) == 1
    others = {"Parts": parts["Parts"][:1]}
    assert refused(lambda: s3.complete_multipart_upload(**upload, MultipartUpload=others)) == ("NoSuchUpload", 404)
    s3.put_object(Bucket=bucket, Key="again", Body=b"newer")
    assert refused(lambda: s3.complete_multipart_upload(**upload, MultipartUpload=parts)) == ("NoSuchUpload", 404)
    assert s3.get_object(Bucket=bucket, Key="again")["Body"].read() == b"newer"


def test_completions_go_on_where_the_removal_of_parts_was_interrupted(
    s3: Any, pool: FunctionPool, versioned: str, data: bytes
) -> None:
    bucket = versioned
    upload = begin(s3, bucket, "cut")
    parts = {"Parts": [put(s3, upload, 1, data[:PART]), put(s3, upload, 2, data[PART:])]}
    begun, second = upload_name(bucket, upload["UploadId"]), part_name(upload["UploadId"], 2)
    kept = {name: pool.client.find(name, user_id=USER) for name in (begun, second)}
    for name, version in kept.items():
        assert version is not None
        pool.client.copy(version.file_id, f"kept/{name}", user_id=USER, attributes=version.attributes)
    done = s3.complete_multipart_upload(**upload, MultipartUpload=parts)
    for name in kept:  # as if the gateway had been killed when it had removed the first part
        copied = pool.client.find(f"kept/{name}", user_id=USER)
        assert copied is not None
        pool.client.copy(copied.file_id, name, user_id=USER, attributes=copied.attributes)
        pool.client.delete(copied.file_id, user_id=USER)
    assert s3.complete_multipart_upload(**upload, MultipartUpload=parts)["VersionId"] == done["VersionId"]
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    assert not pool.client.list_page(user_id=USER, prefix=parts_prefix(upload["UploadId"])).files
    assert s3.get_object(Bucket=bucket, Key="cut")["Body"].read() == data
