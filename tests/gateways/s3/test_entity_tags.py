"""A gateway that need not know MD5 sums gives large contents random entity tags, and checks everything else."""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import connect
from tests.gateways.s3.test_hostile import serving
from tests.gateways.s3.test_objects import refused

SMALL, LARGE, PART = 64 * 1024, 64 * 1024 + 1, 5 * 1024 * 1024
RANDOM = re.compile(r'"[0-9a-f]{32}-1"')


def md5(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


@pytest.fixture(scope="module")
def s3(pool: FunctionPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving(pool, tmp_path_factory.mktemp("gateway"), needs_md5=False) as gateway:
        yield connect(f"http://{gateway.address}")


@pytest.fixture(scope="module")
def bucket(s3: Any) -> str:
    name = f"tags-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def test_a_large_object_has_one_random_tag_everywhere(s3: Any, bucket: str) -> None:
    data = os.urandom(LARGE)
    tag = s3.put_object(Bucket=bucket, Key="large", Body=data)["ETag"]
    assert RANDOM.fullmatch(tag)
    assert s3.put_object(Bucket=bucket, Key="again", Body=data)["ETag"] != tag
    got = s3.get_object(Bucket=bucket, Key="large")
    assert (got["ETag"], got["Body"].read()) == (tag, data)
    assert s3.head_object(Bucket=bucket, Key="large")["ETag"] == tag
    [listed] = s3.list_objects_v2(Bucket=bucket, Prefix="large")["Contents"]
    assert listed["ETag"] == tag
    copied = s3.copy_object(
        Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "large"}, CopySourceIfMatch=tag
    )
    assert copied["CopyObjectResult"]["ETag"] == s3.head_object(Bucket=bucket, Key="copy")["ETag"] == tag


def test_conditions_name_random_tags(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="condition", Body=os.urandom(LARGE))["ETag"]
    second = s3.put_object(Bucket=bucket, Key="condition", Body=os.urandom(LARGE), IfMatch=first)["ETag"]
    late = refused(lambda: s3.put_object(Bucket=bucket, Key="condition", Body=b"late", IfMatch=first))
    assert late == ("PreconditionFailed", 412)
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="condition", IfNoneMatch=second)) == ("304", 304)


def test_a_small_object_has_its_md5(s3: Any, bucket: str) -> None:
    data = os.urandom(SMALL)
    assert s3.put_object(Bucket=bucket, Key="small", Body=data)["ETag"] == md5(data)


def test_an_md5_that_is_given_is_checked_and_kept(s3: Any, bucket: str) -> None:
    data = os.urandom(LARGE)
    given = b64encode(hashlib.md5(data).digest()).decode()
    assert s3.put_object(Bucket=bucket, Key="given", Body=data, ContentMD5=given)["ETag"] == md5(data)
    wrong = refused(lambda: s3.put_object(Bucket=bucket, Key="wrong", Body=os.urandom(LARGE), ContentMD5=given))
    assert wrong == ("BadDigest", 400)


def test_other_checksums_are_checked(s3: Any, bucket: str) -> None:
    kept = s3.put_object(Bucket=bucket, Key="sum", Body=os.urandom(LARGE), ChecksumAlgorithm="CRC64NVME")
    of_others = {"ChecksumCRC64NVME": kept["ChecksumCRC64NVME"]}
    assert refused(lambda: s3.put_object(Bucket=bucket, Key="sum", Body=os.urandom(LARGE), **of_others)) == (
        "BadDigest",
        400,
    )
    assert s3.head_object(Bucket=bucket, Key="sum")["ETag"] == kept["ETag"]


def test_an_object_in_parts(s3: Any, bucket: str) -> None:
    source, last = os.urandom(PART), os.urandom(10)
    s3.put_object(Bucket=bucket, Key="source", Body=source)
    names = {
        "Bucket": bucket,
        "Key": "parts",
        "UploadId": s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"],
    }
    sent = s3.upload_part(**names, PartNumber=1, Body=source)["ETag"]
    copied = s3.upload_part_copy(**names, PartNumber=2, CopySource={"Bucket": bucket, "Key": "source"})
    tags = [sent, copied["CopyPartResult"]["ETag"], s3.upload_part(**names, PartNumber=3, Body=last)["ETag"]]
    assert RANDOM.fullmatch(tags[0])
    assert RANDOM.fullmatch(tags[1])
    assert tags[2] == md5(last)
    assert [part["ETag"] for part in s3.list_parts(**names)["Parts"]] == tags
    mixed = {"Parts": [{"PartNumber": at, "ETag": tag} for at, tag in enumerate((tags[1], tags[0], tags[2]), 1)]}
    assert refused(lambda: s3.complete_multipart_upload(**names, MultipartUpload=mixed)) == ("InvalidPart", 400)
    right = {"Parts": [{"PartNumber": at, "ETag": tag} for at, tag in enumerate(tags, 1)]}
    made = s3.complete_multipart_upload(**names, MultipartUpload=right)
    assert re.fullmatch(r'"[0-9a-f]{32}-3"', made["ETag"])
    got = s3.get_object(Bucket=bucket, Key="parts")
    assert (got["ETag"], got["Body"].read()) == (made["ETag"], source + source + last)
