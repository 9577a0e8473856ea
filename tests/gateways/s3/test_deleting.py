"""Deleting while others put, lock and configure, and requests that say less, or more, than what can be deleted by."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskworker.client import Client
from taskworker.gateways.s3 import steadiness
from taskworker.gateways.s3.locks import LOCK, Lock
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import USER, send
from tests.gateways.s3.test_lifecycle import versions
from tests.gateways.s3.test_objects import refused

NewBucket = Callable[[], str]
DENIED = ("AccessDenied", 403)
ENABLED = {"Status": "Enabled"}
WITH_LOCK = {"ObjectLockEnabled": "Enabled"}


def compliance() -> dict[str, Any]:
    until = datetime.now(UTC) + timedelta(hours=1)
    return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until}


def delete_objects(url: str, bucket: str, *inner: str) -> tuple[int, str]:
    body = f"<Delete>{''.join(f'<Object>{one}</Object>' for one in inner)}</Delete>".encode()
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    status, answer = send(url, "POST", f"/{bucket}?delete", body, content_md5=md5)
    return status, answer.decode()


# -- what is named --------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_versions", [False, True])
def test_an_empty_id_names_no_version(url: str, s3: Any, new_bucket: NewBucket, has_versions: bool) -> None:
    bucket = new_bucket()
    if has_versions:
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=ENABLED)
    for body in (b"one", b"two"):
        s3.put_object(Bucket=bucket, Key="k", Body=body)
    before = versions(s3, bucket)
    requests = [("DELETE", ""), ("GET", ""), ("DELETE", "&tagging"), ("PUT", "&legal-hold"), ("GET", "&acl")]
    for method, more in requests:
        status, answer = send(url, method, f"/{bucket}/k?versionId={more}")
        assert (status, b"<Code>InvalidArgument<" in answer) == (400, True), (method, more)
    copied = send(url, "PUT", f"/{bucket}/copy", x_amz_copy_source=f"{bucket}/k?versionId=")
    assert (copied[0], b"<Code>InvalidArgument<" in copied[1]) == (400, True)
    status, told = delete_objects(url, bucket, "<Key>k</Key><VersionId></VersionId>", "<Key>other</Key>")
    assert (status, told.count("<Code>InvalidArgument<"), told.count("<Deleted>")) == (200, 1, 1)
    assert [one for one in versions(s3, bucket)[0] if one in before[0]] == before[0]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"two"


@pytest.mark.parametrize(
    ("inner", "answer"),
    [
        ("<Key></Key>", (400, "MalformedXML")),
        ("<Key/>", (400, "MalformedXML")),
        ("<Key>k</Key><Size>99</Size>", (501, "NotImplemented")),
        ("<Key>k</Key><LastModifiedTime>Wed, 21 Oct 2015 07:28:00 GMT</LastModifiedTime>", (501, "NotImplemented")),
    ],
)
def test_what_cannot_be_deleted_by(url: str, s3: Any, bucket: str, inner: str, answer: tuple[int, str]) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    status, told = delete_objects(url, bucket, "<Key>k</Key>", inner)
    assert (status, f"<Code>{answer[1]}<" in told) == (answer[0], True)
    assert send(url, "DELETE", f"/{bucket}/k", x_amz_if_match_size="99")[0] == 501
    assert send(url, "DELETE", f"/{bucket}/k", x_amz_if_match_last_modified_time="99")[0] == 501
    s3.head_object(Bucket=bucket, Key="k")


# -- at the same time -----------------------------------------------------------------------------------


def test_a_version_that_is_locked_meanwhile_is_not_deleted_with_the_file(
    s3: Any, new_bucket: NewBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("delete", "delete_many"):
        bucket = new_bucket()
        s3.put_object(Bucket=bucket, Key="k", Body=b"old")
        original, others = getattr(Client, name), list[threading.Thread]()

        def lock(bucket: str = bucket) -> None:
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=ENABLED)
            s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=WITH_LOCK)
            s3.put_object(Bucket=bucket, Key="k", Body=b"locked", **compliance())

        def meanwhile(
            *given: Any, original: Any = original, lock: Any = lock, others: Any = others, **more: Any
        ) -> Any:
            if not others:
                others.append(threading.Thread(target=lock))
                others[0].start()
                others[0].join(1.5)  # it waits for the deletion
            return original(*given, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Client, name, meanwhile)
            if name == "delete":
                s3.delete_object(Bucket=bucket, Key="k")
            else:
                s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})
            others[0].join(60)
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"locked", name
    assert not steadiness._users


def test_a_bucket_with_something_put_meanwhile_keeps_its_settings(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"locked-{time.monotonic_ns()}"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    original, done = Client.list_page, list[str]()

    def meanwhile(*given: Any, **more: Any) -> Any:
        page = original(*given, **more)
        if more.get("prefix") == f"{bucket}/" and not done:
            done.append("put")
            s3.put_object(Bucket=bucket, Key="k", Body=b"locked", **compliance())
        return page

    with monkeypatch.context() as patched:
        patched.setattr(Client, "list_page", meanwhile)
        assert refused(lambda: s3.delete_bucket(Bucket=bucket)) == ("BucketNotEmpty", 409)
    assert s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"] == WITH_LOCK
    assert s3.delete_object(Bucket=bucket, Key="k")["DeleteMarker"] is True
    assert len(versions(s3, bucket)[0]) == 1


def test_a_bucket_that_lost_its_settings_does_not_lose_what_is_locked(s3: Any, pool: FunctionPool) -> None:
    bucket = f"lost-{time.monotonic_ns()}"
    held = Lock(hold=True).encoded()
    kept = pool.client.push(b"a", user_id=USER, filename=f"{bucket}/by-file")
    pool.client.push(held, user_id=USER, filename=f".s3/locks/{bucket}/{kept.version_id}")
    pool.client.push(b"a", user_id=USER, filename=f"{bucket}/by-attribute", attributes={LOCK: held})
    for body in (b"b", b"c"):
        for key in ("by-file", "by-attribute"):
            assert refused(lambda key=key: s3.delete_object(Bucket=bucket, Key=key)) == DENIED  # type: ignore[misc]
            pool.client.push(body, user_id=USER, filename=f"{bucket}/{key}")
    s3.put_object(Bucket=bucket, Key="free", Body=b"")
    s3.delete_object(Bucket=bucket, Key="free")
    for key in ("by-file", "by-attribute"):
        head = pool.client.find(f"{bucket}/{key}", user_id=USER)
        assert head is not None
        assert len(pool.client.history(head.file_id, user_id=USER)) == 3


@pytest.mark.parametrize("has_versions", [False, True])
def test_if_match_is_of_what_is_deleted(
    s3: Any, new_bucket: NewBucket, monkeypatch: pytest.MonkeyPatch, has_versions: bool
) -> None:
    for many in (False, True):
        bucket = new_bucket()
        if has_versions:
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=ENABLED)
        etag = s3.put_object(Bucket=bucket, Key="k", Body=b"old")["ETag"]
        find, done = Client.find, list[str]()

        def meanwhile(*given: Any, bucket: str = bucket, done: Any = done, find: Any = find, **more: Any) -> Any:
            found = find(*given, **more)
            if given[1:] == (f"{bucket}/k",) and not done:
                done.append("put")
                s3.put_object(Bucket=bucket, Key="k", Body=b"new")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(Client, "find", meanwhile)
            if many:
                named = {"Objects": [{"Key": "k", "ETag": etag}]}
                (error,) = s3.delete_objects(Bucket=bucket, Delete=named)["Errors"]
                assert error["Code"] == "PreconditionFailed"
            else:
                call = {"Bucket": bucket, "Key": "k", "IfMatch": etag}
                assert refused(lambda call=call: s3.delete_object(**call)) == ("PreconditionFailed", 412)  # type: ignore[misc]
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"


def test_a_condition_of_deleting_a_version_is_about_the_newest_one_until_it_is_done(
    s3: Any, new_bucket: NewBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, stat = new_bucket(), Client.stat
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=ENABLED)
    first, second = (s3.put_object(Bucket=bucket, Key="k", Body=body) for body in (b"1", b"2"))
    named = {"Bucket": bucket, "Key": "k", "VersionId": first["VersionId"], "IfMatch": second["ETag"]}
    done: list[str] = []

    def meanwhile(*given: Any, **more: Any) -> Any:
        """Called when the condition was looked at."""
        if more.get("version_id") == first["VersionId"] and not done:
            done.append(s3.put_object(Bucket=bucket, Key="k", Body=b"3")["VersionId"])
        return stat(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "stat", meanwhile)
        assert refused(lambda: s3.delete_object(**named)) == ("PreconditionFailed", 412)
    assert len(versions(s3, bucket)[0]) == 3
    s3.delete_object(Bucket=bucket, Key="k", VersionId=done[0])
    s3.delete_object(**named)
    assert versions(s3, bucket)[0] == [second["VersionId"]]


# -- what takes long ------------------------------------------------------------------------------------


def test_a_put_goes_by_what_is_set_when_its_content_has_come(
    s3: Any, new_bucket: NewBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, push = new_bucket(), Client.push
    default = {"Mode": "COMPLIANCE", "Days": 1}

    def meanwhile(*given: Any, **more: Any) -> Any:
        if more.get("filename") == f"{bucket}/k":  # the request was looked at, and its content is yet to come
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=ENABLED)
            wanted = {**WITH_LOCK, "Rule": {"DefaultRetention": default}}
            s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=wanted)
        return push(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "push", meanwhile)
        version = s3.put_object(Bucket=bucket, Key="k", Body=b"x" * 100_000)["VersionId"]
    assert versions(s3, bucket)[0] == [version]
    assert s3.head_object(Bucket=bucket, Key="k")["ObjectLockMode"] == "COMPLIANCE"


def test_parts_that_come_too_late_do_not_stay(
    s3: Any, bucket: str, pool: FunctionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun() -> dict[str, Any]:
        named = {"Bucket": bucket, "Key": "parts"}
        return {**named, "UploadId": s3.create_multipart_upload(**named)["UploadId"]}

    def left(upload: dict[str, Any]) -> int:
        return len(pool.client.list_files(user_id=USER, prefix=f".s3/parts/{upload['UploadId']}/"))

    upload, push, delete_many = begun(), Client.push, Client.delete_many

    def aborting(*given: Any, **more: Any) -> Any:
        if more["filename"].startswith(".s3/parts/"):
            s3.abort_multipart_upload(**upload)
        return push(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "push", aborting)
        assert refused(lambda: s3.upload_part(**upload, PartNumber=1, Body=b"x")) == ("NoSuchUpload", 404)
    assert left(upload) == 0
    other = begun()
    s3.upload_part(**other, PartNumber=1, Body=b"x")
    done = list[str]()

    def uploading(*given: Any, **more: Any) -> Any:
        outcomes = [*delete_many(*given, **more)]
        if not done:
            done.append(s3.upload_part(**other, PartNumber=2, Body=b"x")["ETag"])
        return iter(outcomes)

    with monkeypatch.context() as patched:
        patched.setattr(Client, "delete_many", uploading)
        s3.abort_multipart_upload(**other)
    assert (len(done), left(other)) == (1, 0)
