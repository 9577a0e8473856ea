"""Objects are put, got, listed, copied and deleted as the reference of S3 says, by boto3."""

from __future__ import annotations

import hashlib
import os
import uuid
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from taskworker.client import Client
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import USER, send


def refused(call: Callable[[], object]) -> tuple[str, int]:
    """The code and the status that a call is refused with."""
    with pytest.raises(ClientError) as raised:
        call()
    response = raised.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 3 * 1024 * 1024 + 5])
def test_what_is_put_is_got(s3: Any, bucket: str, size: int) -> None:
    data = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key="a/b c", Body=data, ContentType="text/plain", Metadata={"who": "me"})
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="a/b c")
    assert got["Body"].read() == data
    assert (got["ETag"], got["ContentType"], got["Metadata"]) == (put["ETag"], "text/plain", {"who": "me"})
    head = s3.head_object(Bucket=bucket, Key="a/b c")
    assert (head["ContentLength"], head["ETag"], head["LastModified"]) == (size, put["ETag"], got["LastModified"])


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.parametrize("size", [11, 200_000])
def test_checksums_are_checked_and_kept(s3: Any, bucket: str, algorithm: str, size: int) -> None:
    data = os.urandom(size)
    put = s3.put_object(Bucket=bucket, Key=algorithm, Body=data, ChecksumAlgorithm=algorithm)
    got = s3.get_object(Bucket=bucket, Key=algorithm, ChecksumMode="ENABLED")
    assert got[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    assert got["Body"].read() == data
    wrong = {
        f"Checksum{algorithm}": s3.put_object(Bucket=bucket, Key="x", Body=b"x", ChecksumAlgorithm=algorithm)[
            f"Checksum{algorithm}"
        ]
    }
    assert refused(lambda: s3.put_object(Bucket=bucket, Key="never", Body=data, **wrong)) == ("BadDigest", 400)
    assert refused(lambda: s3.head_object(Bucket=bucket, Key="never")) == ("404", 404)


@pytest.mark.parametrize(
    "key",
    ["a", "ä/ö ü", "a//b", "/a", "a/", "a+b&c=d%20e?f#g", "'\"<>", "~.-_!*()", "日本", "x" * 900, "\x01", "a/ .b"],
)
def test_keys_of_all_kinds(s3: Any, new_bucket: Callable[[], str], key: str) -> None:
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert [one["Key"] for one in s3.list_objects(Bucket=bucket)["Contents"]] == [key]
    s3.delete_object(Bucket=bucket, Key=key)
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)


@pytest.mark.parametrize("key", ["..", "a/../b", "./a", "a/.", "x" * 1025])
def test_keys_that_no_file_may_have_are_refused(s3: Any, bucket: str, key: str) -> None:
    code, status = refused(lambda: s3.put_object(Bucket=bucket, Key=key, Body=b""))
    assert (code, status) in (("InvalidArgument", 400), ("KeyTooLongError", 400))


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 0), ("bytes=5-", 5, 99), ("bytes=-7", 93, 99), ("bytes=90-1000", 90, 99), ("bytes=-1000", 0, 99)],
)
@pytest.mark.parametrize("size", [100, 100_000])
def test_ranges(s3: Any, bucket: str, asked: str, first: int, last: int, size: int) -> None:
    data = os.urandom(100) * (size // 100)
    s3.put_object(Bucket=bucket, Key="ranged", Body=data)
    got = s3.get_object(Bucket=bucket, Key="ranged", Range=asked)
    if size == 100:
        assert got["ContentRange"] == f"bytes {first}-{last}/100"
    assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    start, _, stop = got["ContentRange"].removeprefix("bytes ").partition("/")[0].partition("-")
    assert got["Body"].read() == data[int(start) : int(stop) + 1]


def test_ranges_behind_the_end_and_senseless_ones(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="ranged", Body=b"12345")
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="ranged", Range="bytes=5-")) == ("InvalidRange", 416)
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="ranged", Range="bytes=-0")) == ("InvalidRange", 416)
    # Some programs of Java mean all that is left by an end of Long.MAX_VALUE - 1.
    for last in (2**63 - 2, 10**50):
        got = s3.get_object(Bucket=bucket, Key="ranged", Range=f"bytes=2-{last}")
        assert (got["ContentRange"], got["Body"].read()) == ("bytes 2-4/5", b"345")
        assert s3.get_object(Bucket=bucket, Key="ranged", Range=f"bytes=-{last}")["ContentRange"] == "bytes 0-4/5"
        assert refused(lambda: s3.get_object(Bucket=bucket, Key="ranged", Range=f"bytes={last}-"))[1] == 416  # noqa: B023
    for ignored in ("bytes=3-1", "lines=1-2", "bytes=a-b", "bytes=0-1,3-4"):
        assert s3.get_object(Bucket=bucket, Key="ranged", Range=ignored)["Body"].read() == b"12345"


def test_content_headers_and_what_replaces_them(s3: Any, bucket: str) -> None:
    given = {
        "CacheControl": "max-age=5",
        "ContentDisposition": 'attachment; filename="a"',
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "ContentType": "application/x-a",
    }
    s3.put_object(Bucket=bucket, Key="headers", Body=b"", **given)
    assert given.items() <= s3.head_object(Bucket=bucket, Key="headers").items()
    replaced = s3.get_object(Bucket=bucket, Key="headers", **{f"Response{name}": f"x-{name}" for name in given})
    assert {name: f"x-{name}" for name in given}.items() <= replaced.items()


def test_metadata_is_bounded(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="m", Body=b"", Metadata={"a": "x" * 2047})
    assert refused(lambda: s3.put_object(Bucket=bucket, Key="m", Body=b"", Metadata={"a": "x" * 2048})) == (
        "MetadataTooLarge",
        400,
    )


def test_conditional_reads(s3: Any, bucket: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="read", Body=b"x")
    when = s3.head_object(Bucket=bucket, Key="read")["LastModified"]
    other = '"0"'

    def got(**conditions: Any) -> bytes:
        content: bytes = s3.get_object(Bucket=bucket, Key="read", **conditions)["Body"].read()
        return content

    assert got(IfMatch=put["ETag"]) == got(IfNoneMatch=other) == got(IfUnmodifiedSince=when) == b"x"
    assert got(IfMatch=put["ETag"], IfUnmodifiedSince="Mon, 01 Jan 2001 00:00:00 GMT") == b"x"
    assert refused(lambda: got(IfMatch=other)) == ("PreconditionFailed", 412)
    assert refused(lambda: got(IfNoneMatch=put["ETag"])) == ("304", 304)
    assert refused(lambda: got(IfModifiedSince=when)) == ("304", 304)
    assert refused(lambda: got(IfUnmodifiedSince="Mon, 01 Jan 2001 00:00:00 GMT")) == ("PreconditionFailed", 412)


def test_conditional_writes(s3: Any, bucket: str) -> None:
    def put(**conditions: Any) -> Any:
        return s3.put_object(Bucket=bucket, Key="written", Body=os.urandom(5), **conditions)

    assert refused(lambda: put(IfMatch='"0"')) == ("NoSuchKey", 404)
    first = put(IfNoneMatch="*")
    assert refused(lambda: put(IfNoneMatch="*")) == ("PreconditionFailed", 412)
    assert refused(lambda: put(IfMatch='"0"')) == ("PreconditionFailed", 412)
    second = put(IfMatch=first["ETag"])
    assert refused(lambda: put(IfMatch=first["ETag"])) == ("PreconditionFailed", 412)
    assert s3.head_object(Bucket=bucket, Key="written")["ETag"] == second["ETag"]


def test_a_put_of_the_same_content_is_a_new_one(s3: Any, bucket: str) -> None:
    for who in ("a", "b"):
        s3.put_object(Bucket=bucket, Key="again", Body=b"same", Metadata={"who": who})
    assert s3.head_object(Bucket=bucket, Key="again")["Metadata"] == {"who": "b"}


def test_what_is_not_there(s3: Any, bucket: str) -> None:
    assert refused(lambda: s3.get_object(Bucket=bucket, Key="none")) == ("NoSuchKey", 404)
    assert refused(lambda: s3.head_object(Bucket=bucket, Key="none")) == ("404", 404)
    assert refused(lambda: s3.get_object(Bucket="no-such-bucket", Key="none")) == ("NoSuchBucket", 404)
    assert refused(lambda: s3.put_object(Bucket="no-such-bucket", Key="none")) == ("NoSuchBucket", 404)
    assert refused(lambda: s3.list_objects_v2(Bucket="no-such-bucket")) == ("NoSuchBucket", 404)
    assert refused(lambda: s3.head_bucket(Bucket="no-such-bucket")) == ("404", 404)
    assert s3.delete_object(Bucket=bucket, Key="none")["ResponseMetadata"]["HTTPStatusCode"] == 204


def test_what_the_gateway_keeps_for_itself_is_no_object(s3: Any, bucket: str, url: str) -> None:
    status, body = send(url, "GET", f"/.s3/buckets/{bucket}")
    assert (status, b"<Code>NoSuchBucket</Code>" in body) == (404, True)


def test_users_do_not_see_each_others_buckets(s3: Any, other_s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="private", Body=b"x")
    assert refused(lambda: other_s3.get_object(Bucket=bucket, Key="private"))[1] == 404
    assert bucket not in {one["Name"] for one in other_s3.list_buckets()["Buckets"]}


def test_files_of_the_pool_are_objects_and_objects_are_files(
    s3: Any, new_bucket: Callable[[], str], pool: FunctionPool
) -> None:
    bucket = new_bucket()
    pool.client.push(b"from outside", filename=f"{bucket}/dir/file", user_id=USER)
    got = s3.get_object(Bucket=bucket, Key="dir/file")
    assert got["Body"].read() == b"from outside"
    assert got["ETag"].endswith('-1"')
    s3.put_object(Bucket=bucket, Key="dir/other", Body=b"from S3")
    found = pool.client.find(f"{bucket}/dir/other", user_id=USER)
    assert found is not None
    assert pool.client.get(found.file_id, user_id=USER) == b"from S3"


@pytest.mark.parametrize(
    "how",
    [
        {"time_ms": (1 << 63) - 1},
        {"time_ms": -5},
        {"attributes": {"s3": b'{"time": 1e300}'}},
        {"attributes": {"s3": b'{"time": 99999999999999999999}'}},
        {"attributes": {"s3": b"[" * 10_000}},
        {"attributes": {"s3": b'{"time": "x", "headers": 5}', "s3-etag": b"\xff"}},
    ],
)
def test_files_with_anything_in_their_attributes_are_objects(
    s3: Any, bucket: str, pool: FunctionPool, how: dict[str, Any]
) -> None:
    key = uuid.uuid4().hex
    pool.client.push(b"content", filename=f"{bucket}/{key}", user_id=USER, **how)
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
    (listed,) = s3.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert (listed["Size"], s3.head_object(Bucket=bucket, Key=key)["LastModified"].year) >= (7, 1970)


def test_a_prefix_with_files_is_a_bucket(s3: Any, pool: FunctionPool) -> None:
    pool.client.push(b"x", filename="found-bucket/a", user_id=USER)
    assert "found-bucket" in {one["Name"] for one in s3.list_buckets()["Buckets"]}
    s3.head_bucket(Bucket="found-bucket")
    assert [one["Key"] for one in s3.list_objects_v2(Bucket="found-bucket")["Contents"]] == ["a"]


def test_copies(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="from", Body=b"x" * 100, ContentType="a/b", Metadata={"a": "1"}, Tagging="t=1")
    source = {"Bucket": bucket, "Key": "from"}
    copied = s3.copy_object(Bucket=bucket, Key="to", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == s3.head_object(Bucket=bucket, Key="to")["ETag"]
    got = s3.get_object(Bucket=bucket, Key="to")
    assert (got["Body"].read(), got["Metadata"], got["ContentType"], got["TagCount"]) == (
        b"x" * 100,
        {"a": "1"},
        "a/b",
        1,
    )
    s3.copy_object(Bucket=bucket, Key="to", CopySource=source, Metadata={"b": "2"}, MetadataDirective="REPLACE")
    assert s3.head_object(Bucket=bucket, Key="to")["Metadata"] == {"b": "2"}
    s3.copy_object(Bucket=bucket, Key="from", CopySource=source, Metadata={"c": "3"}, MetadataDirective="REPLACE")
    assert s3.head_object(Bucket=bucket, Key="from")["Metadata"] == {"c": "3"}
    assert refused(lambda: s3.copy_object(Bucket=bucket, Key="from", CopySource=source)) == ("InvalidRequest", 400)
    assert refused(lambda: s3.copy_object(Bucket=bucket, Key="to", CopySource=f"{bucket}/none")) == ("NoSuchKey", 404)
    assert refused(lambda: s3.copy_object(Bucket=bucket, Key="to", CopySource=source, CopySourceIfMatch='"0"')) == (
        "PreconditionFailed",
        412,
    )


def test_many_are_deleted_at_once(s3: Any, new_bucket: Callable[[], str]) -> None:
    bucket = new_bucket()
    for key in "abc":
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in "abxa"]})
    assert sorted(one["Key"] for one in gone["Deleted"]) == ["a", "a", "b", "x"]
    assert [one["Key"] for one in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["c"]
    assert "Deleted" not in s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "c"}], "Quiet": True})
    s3.delete_bucket(Bucket=bucket)


def test_a_malformed_list_of_objects_deletes_none(s3: Any, url: str, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="kept", Body=b"")
    document = b"<Delete><Object><Key>kept</Key></Object><Object><VersionId>1</VersionId></Object></Delete>"
    digest = b64encode(hashlib.md5(document).digest()).decode()
    status, answer = send(url, "POST", f"/{bucket}?delete", document, content_md5=digest)
    assert (status, b"<Code>MalformedXML</Code>" in answer) == (400, True)
    s3.head_object(Bucket=bucket, Key="kept")


def test_an_object_that_cannot_be_deleted_keeps_no_others(
    s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = Client.find

    def failing(self: Client, name: str, **how: Any) -> Any:
        if name.endswith("/second"):
            raise RuntimeError("no error of the store")
        return find(self, name, **how)

    monkeypatch.setattr(Client, "find", failing)
    keys = ["first", "second", "third"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert [one["Key"] for one in gone["Deleted"]] == ["first", "third"]
    assert [(one["Key"], one["Code"]) for one in gone["Errors"]] == [("second", "InternalError")]


def test_attributes_of_objects(s3: Any, bucket: str) -> None:
    put = s3.put_object(Bucket=bucket, Key="attributes", Body=b"12345", ChecksumAlgorithm="SHA256")
    told = s3.get_object_attributes(
        Bucket=bucket, Key="attributes", ObjectAttributes=["ETag", "Checksum", "ObjectSize", "StorageClass"]
    )
    assert told["ETag"] == put["ETag"].strip('"')
    assert told["Checksum"]["ChecksumSHA256"] == put["ChecksumSHA256"]
    assert (told["ObjectSize"], told["StorageClass"]) == (5, "STANDARD")


def test_tags(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="tagged", Body=b"x", Tagging="a=1&b=%20")
    where = {"Bucket": bucket, "Key": "tagged"}
    assert s3.get_object_tagging(**where)["TagSet"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": " "}]
    when = s3.head_object(**where)["LastModified"]
    s3.put_object_tagging(**where, Tagging={"TagSet": [{"Key": "c", "Value": ""}]})
    assert s3.get_object_tagging(**where)["TagSet"] == [{"Key": "c", "Value": ""}]
    assert s3.head_object(**where)["LastModified"] == when
    s3.delete_object_tagging(**where)
    assert s3.get_object_tagging(**where)["TagSet"] == []
    many = {"TagSet": [{"Key": str(n), "Value": ""} for n in range(11)]}
    assert refused(lambda: s3.put_object_tagging(**where, Tagging=many)) == ("InvalidTag", 400)
    assert refused(lambda: s3.put_object(**where, Tagging="a=1&a=2")) == ("InvalidTag", 400)


@pytest.mark.parametrize("given", [{"ACL": "public-read"}, {"WebsiteRedirectLocation": "/x"}])
def test_what_would_not_be_kept_is_refused(s3: Any, bucket: str, given: dict[str, str]) -> None:
    assert refused(lambda: s3.put_object(Bucket=bucket, Key="refused", Body=b"", **given)) == ("NotImplemented", 501)


def test_storage_classes_that_there_are_not_are_refused(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="classed", Body=b"x", StorageClass="STANDARD")
    source = {"Bucket": bucket, "Key": "classed"}
    asked: tuple[Callable[[], object], ...] = (
        lambda: s3.put_object(Bucket=bucket, Key="classed", Body=b"y", StorageClass="GLACIER"),
        lambda: s3.copy_object(Bucket=bucket, Key="classed", CopySource=source, StorageClass="STANDARD_IA"),
        lambda: s3.create_multipart_upload(Bucket=bucket, Key="classed", StorageClass="GLACIER"),
    )
    for ask in asked:
        with pytest.raises(ClientError, match="NotImplemented"):
            ask()
    assert s3.get_object(Bucket=bucket, Key="classed")["Body"].read() == b"x"
