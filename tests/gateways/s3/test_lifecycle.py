"""Lifecycle rules: set as the reference of S3 says, by boto3, and applied by passes at chosen times."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from taskworker.client import Client
from taskworker.gateways.s3 import lifecycle_passes, stray_parts
from taskworker.gateways.s3.lifecycle_passes import Expired
from taskworker.gateways.s3.lifecycle_rules import after_days, enabled
from taskworker.gateways.s3.names import settings_name
from tests.gateways.s3.conftest import OTHER_USER, Apply, connect, send
from tests.gateways.s3.test_objects import refused

NewBucket = Callable[[], str]
EVERYTHING = {"Prefix": ""}


@pytest.fixture(scope="module")
def s3(other_s3: Any) -> Any:
    """A client of a user who has no other buckets, through all of which each pass goes."""
    return other_s3


def rule(action: dict[str, Any], name: str = "r", about: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"ID": name, "Status": "Enabled", "Filter": EVERYTHING if about is None else about, **action}


def put_rules(s3: Any, bucket: str, *rules: dict[str, Any]) -> None:
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [*rules]})


def keys(s3: Any, bucket: str) -> list[str]:
    return [one["Key"] for one in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]


def versions(s3: Any, bucket: str) -> tuple[list[str], list[str]]:
    """The ids of versions, and of delete markers."""
    told = s3.list_object_versions(Bucket=bucket)
    return tuple([one["VersionId"] for one in told.get(kind, ())] for kind in ("Versions", "DeleteMarkers"))  # type: ignore[return-value]


# -- settings -----------------------------------------------------------------------------------------


def test_rules_are_kept_as_they_were_set(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    assert refused(lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket))[0] == "NoSuchLifecycleConfiguration"
    tag = {"Key": "ü", "Value": "<&>"}
    both = {
        "Prefix": "a/",
        "Tags": [tag, {"Key": "b", "Value": ""}],
        "ObjectSizeGreaterThan": 1,
        "ObjectSizeLessThan": 9,
    }
    rules = [
        rule({"Expiration": {"Days": 3}}, "days", {"Prefix": "logs/"}),
        rule({"Expiration": {"Date": datetime(2031, 5, 6, tzinfo=UTC)}}, "date", {"Tag": tag}),
        rule({"Expiration": {"ExpiredObjectDeleteMarker": True}}, "marker"),
        rule({"Expiration": {"Days": 1}, "NoncurrentVersionExpiration": {"NoncurrentDays": 2}}, "and", {"And": both}),
        rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 2, "NewerNoncurrentVersions": 3}}, "newer"),
        rule({"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}, "abort"),
        {"ID": "former", "Status": "Disabled", "Prefix": "x", "Expiration": {"Days": 1}},
        rule({"Expiration": {"Days": 1}}, "size", {"ObjectSizeGreaterThan": 0}),
    ]
    put_rules(s3, bucket, *rules)
    assert s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == rules
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert len(s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]) == len(rules)
    s3.delete_bucket_lifecycle(Bucket=bucket)
    s3.delete_bucket_lifecycle(Bucket=bucket)
    assert refused(lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket)) == (
        "NoSuchLifecycleConfiguration",
        404,
    )
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert refused(lambda: put_rules(s3, "no-such-bucket", *rules)) == ("NoSuchBucket", 404)


def test_rules_get_names_that_differ(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    unnamed = {"Status": "Enabled", "Filter": {}, "Expiration": {"Days": 1}}
    put_rules(s3, bucket, unnamed, unnamed)
    kept = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert len({one["ID"] for one in kept}) == 2


@pytest.fixture(scope="module")
def signed_bucket(url: str) -> str:
    """A bucket of the user who signs documents."""
    name = f"bucket-{time.monotonic_ns()}"
    connect(url).create_bucket(Bucket=name)
    return name


DAYS = "<Expiration><Days>1</Days></Expiration>"


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        (DAYS, "MalformedXML"),
        (f"<Filter/><Prefix/>{DAYS}", "MalformedXML"),
        (f"<Filter><Prefix>a</Prefix><Tag><Key>a</Key><Value/></Tag></Filter>{DAYS}", "MalformedXML"),
        (f"<Filter/><Surprise/>{DAYS}", "MalformedXML"),
        (f"<Filter/>{DAYS}{DAYS}", "MalformedXML"),
        ("<Filter/>", "InvalidRequest"),
        ("<Filter/><Expiration/>", "MalformedXML"),
        ("<Filter/><Expiration><Days>0</Days></Expiration>", "InvalidArgument"),
        ("<Filter/><Expiration><Days>-1</Days></Expiration>", "InvalidArgument"),
        (f"<Filter/><Expiration><Days>{'9' * 5000}</Days></Expiration>", "InvalidArgument"),
        ("<Filter/><Expiration><Days>1</Days><Date>2030-01-01T00:00:00Z</Date></Expiration>", "MalformedXML"),
        ("<Filter/><Expiration><Date>2030-01-01T00:00:01Z</Date></Expiration>", "InvalidArgument"),
        ("<Filter/><Expiration><Date>tomorrow</Date></Expiration>", "MalformedXML"),
        (
            "<Filter/><Expiration><ExpiredObjectDeleteMarker>maybe</ExpiredObjectDeleteMarker></Expiration>",
            "MalformedXML",
        ),
        ("<Filter/><NoncurrentVersionExpiration/>", "MalformedXML"),
        (
            "<Filter/><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>"
            "<NewerNoncurrentVersions>101</NewerNoncurrentVersions></NoncurrentVersionExpiration>",
            "InvalidArgument",
        ),
        ("<Filter/><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition>", "NotImplemented"),
        (f"<ID>{'x' * 256}</ID><Filter/>{DAYS}", "InvalidArgument"),
        (f"<Filter><Prefix>{'x' * 1025}</Prefix></Filter>{DAYS}", "InvalidRequest"),
        (
            "<Filter><And><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>6</ObjectSizeLessThan>"
            f"</And></Filter>{DAYS}",
            "InvalidRequest",
        ),
        (
            "<Filter><Tag><Key>a</Key><Value/></Tag></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>1"
            "</DaysAfterInitiation></AbortIncompleteMultipartUpload>",
            "InvalidRequest",
        ),
        (
            "<Filter><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></Filter><Expiration><ExpiredObjectDeleteMarker>"
            "true</ExpiredObjectDeleteMarker></Expiration>",
            "InvalidRequest",
        ),
    ],
)
def test_rules_that_are_refused(url: str, signed_bucket: str, inner: str, code: str) -> None:
    document = f"<LifecycleConfiguration><Rule><Status>Enabled</Status>{inner}</Rule></LifecycleConfiguration>"
    status, answer = send(url, "PUT", f"/{signed_bucket}?lifecycle", document.encode())
    assert (status, code) == (501 if code == "NotImplemented" else 400, answer.decode().split("Code>")[1][:-2])


def test_documents_that_are_refused(url: str, s3: Any, bucket: str, signed_bucket: str) -> None:
    one = f"<Rule><ID>a</ID><Status>Enabled</Status><Filter/>{DAYS}</Rule>"
    unknown = one.replace("Enabled", "enabled")
    bomb = '<!DOCTYPE a [<!ENTITY b "cc">]>'
    for inner, before in ((one + one, ""), (one * 1001, ""), ("", ""), (unknown, ""), (one, bomb)):
        document = f"{before}<LifecycleConfiguration>{inner}</LifecycleConfiguration>"
        assert send(url, "PUT", f"/{signed_bucket}?lifecycle", document.encode())[0] == 400
    least = "TransitionDefaultMinimumObjectSize"
    kept = {"Rules": [rule({"Expiration": {"Days": 1}})]}
    varies = {least: "varies_by_storage_class"}
    assert refused(
        lambda: s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=kept, **varies)
    ) == ("NotImplemented", 501)
    assert refused(lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket))[1] == 404


# -- what is told ---------------------------------------------------------------------------------------


def test_replies_tell_when_an_object_expires(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    put_rules(
        s3,
        bucket,
        rule({"Expiration": {"Days": 5}}, "later", {"Prefix": "a"}),
        rule({"Expiration": {"Days": 2}}, 'the "first"', {"Tag": {"Key": "k", "Value": "v"}}),
    )
    put = s3.put_object(Bucket=bucket, Key="a", Body=b"", Tagging="k=v")
    date = datetime.fromtimestamp(after_days(int(time.time() * 1000), 2) / 1000, UTC)
    told = f'expiry-date="{date:%a, %d %b %Y} 00:00:00 GMT", rule-id="the%20%22first%22"'
    got = s3.get_object(Bucket=bucket, Key="a")
    assert [one["Expiration"] for one in (put, got, s3.head_object(Bucket=bucket, Key="a"))] == [told] * 3
    assert "later" in s3.put_object(Bucket=bucket, Key="a", Body=b"")["Expiration"]
    assert "Expiration" not in s3.put_object(Bucket=bucket, Key="b", Body=b"")
    assert "later" in s3.copy_object(Bucket=bucket, Key="a2", CopySource=f"{bucket}/b")["Expiration"]


@pytest.mark.parametrize(
    ("put", "days", "expires"),
    [
        ("2030-01-15T10:30", 3, "2030-01-19"),
        ("2030-01-15T00:00", 1, "2030-01-17"),
        ("2030-12-31T23:59", 1, "2031-01-02"),
    ],
)
def test_days_end_at_midnight(put: str, days: int, expires: str) -> None:
    put_ms = int(datetime.fromisoformat(put).replace(tzinfo=UTC).timestamp() * 1000)
    assert datetime.fromtimestamp(after_days(put_ms, days) / 1000, UTC).isoformat() == f"{expires}T00:00:00+00:00"


# -- what is done ---------------------------------------------------------------------------------------


def test_objects_expire_that_a_rule_is_about(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    tags = {"Tags": [{"Key": "k", "Value": "v"}], "Prefix": "c"}
    put_rules(
        s3,
        bucket,
        rule({"Expiration": {"Days": 2}}, "1", {"Prefix": "a/"}),
        rule({"Expiration": {"Days": 2}}, "2", {"And": tags}),
        rule({"Expiration": {"Days": 2}}, "3", {"ObjectSizeGreaterThan": 10}),
        {**rule({"Expiration": {"Days": 1}}, "4"), "Status": "Disabled"},
    )
    for key, size, tagging in (("a/1", 1, ""), ("b", 1, "k=v"), ("c", 1, "k=v"), ("c1", 1, "k=w"), ("d", 11, "")):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x" * size, Tagging=tagging)
    apply(1.9)
    assert keys(s3, bucket) == ["a/1", "b", "c", "c1", "d"]
    assert apply(3.1).objects == 3
    assert keys(s3, bucket) == ["b", "c1"]
    assert apply(3.1) == Expired()


def test_rules_with_a_date_expire_from_then_on(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    for date, left in ((datetime(2200, 1, 1, tzinfo=UTC), ["k"]), (datetime(2020, 1, 1, tzinfo=UTC), [])):
        put_rules(s3, bucket, rule({"Expiration": {"Date": date}}))
        apply(0)
        assert keys(s3, bucket) == left


def test_in_a_bucket_with_versions_a_marker_hides_what_expires(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_rules(s3, bucket, rule({"Expiration": {"Days": 1}}))
    version = s3.put_object(Bucket=bucket, Key="k", Body=b"kept")["VersionId"]
    assert apply(2.1) == Expired(objects=1)
    found, markers = versions(s3, bucket)
    assert (found, len(markers)) == ([version], 1)
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=version)["Body"].read() == b"kept"
    assert apply(2.1) == Expired()  # there is a version, so that the marker hides something
    s3.delete_object(Bucket=bucket, Key="k", VersionId=version)
    assert apply(5).markers == 1
    assert versions(s3, bucket) == ([], [])


def test_former_versions_expire_and_the_newest_of_them_stay(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    noncurrent = {"NoncurrentDays": 1, "NewerNoncurrentVersions": 2}
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": noncurrent}))
    made = [s3.put_object(Bucket=bucket, Key="k", Body=bytes([n]))["VersionId"] for n in range(6)]
    assert apply(0) == Expired()
    assert apply(2.1) == Expired(versions=3)
    assert versions(s3, bucket)[0] == made[:2:-1]
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == bytes([5])


def test_markers_that_hide_nothing_are_removed(s3: Any, new_bucket: NewBucket, apply: Apply) -> None:
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_rules(s3, bucket, rule({"Expiration": {"ExpiredObjectDeleteMarker": True}}, about={"Prefix": "a"}))
    for key in ("a1", "a2", "b"):
        version = s3.put_object(Bucket=bucket, Key=key, Body=b"")["VersionId"]
        s3.delete_object(Bucket=bucket, Key=key)
        if key != "a2":
            s3.delete_object(Bucket=bucket, Key=key, VersionId=version)
    assert apply(0) == Expired(markers=1)
    told = s3.list_object_versions(Bucket=bucket)
    assert [one["Key"] for one in told["DeleteMarkers"]] == ["a2", "b"]


def test_uploads_that_are_not_completed_are_aborted(
    s3: Any, new_bucket: NewBucket, apply: Apply, accounts: Any
) -> None:
    bucket = new_bucket()
    abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2}}
    put_rules(s3, bucket, rule(abort, about={"Prefix": "a"}))
    ids = {key: s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"] for key in ("a", "b")}
    for key, upload_id in ids.items():
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=1, Body=b"part")
    assert apply(1.9) == Expired()
    assert apply(3.1) == Expired(uploads=1)
    assert [one["Key"] for one in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["b"]
    client = next(accounts.every()).client
    assert client.list_files(user_id=OTHER_USER, prefix=f".s3/parts/{ids['a']}/") == []
    assert len(client.list_files(user_id=OTHER_USER, prefix=f".s3/parts/{ids['b']}/")) == 1


def test_parts_are_removed_whose_upload_has_ended(
    s3: Any, new_bucket: NewBucket, apply: Apply, accounts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stray_parts, "PAGE", 2)
    monkeypatch.setattr(stray_parts, "_UPLOADS_MAX", 2)
    monkeypatch.setattr(lifecycle_passes, "PAGE", 2)
    client = next(accounts.every()).client
    going: dict[str, str] = {}
    ended: list[str] = []
    for bucket in (new_bucket(), new_bucket()):
        for key in ("a", "b", "c"):
            upload_id = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            for number in (1, 2, 3):
                s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=b"part")
            if key == "b":
                going[upload_id] = bucket
            else:  # as after a gateway that was killed once it had stored parts of an upload that ended meanwhile
                (begun,) = client.list_files(user_id=OTHER_USER, prefix=f".s3/uploads/{bucket}/{upload_id}")
                client.delete(begun.file_id, user_id=OTHER_USER)
                ended.append(upload_id)
    others = [".s3/parts/what", ".s3/parts/what/else", f".s3/parts/{next(iter(going))}/~~"]
    for name in others:
        client.push(b"of nobody", user_id=OTHER_USER, filename=name)
    assert apply(0.9) == Expired()
    assert apply(1.1) == Expired(parts=3 * len(ended))
    assert not any(client.list_files(user_id=OTHER_USER, prefix=f".s3/parts/{upload_id}/") for upload_id in ended)
    assert all(client.find(name, user_id=OTHER_USER) is not None for name in others)
    assert apply(1.1) == Expired()
    for name in others:
        client.delete(client.find(name, user_id=OTHER_USER).file_id, user_id=OTHER_USER)
    for upload_id, bucket in going.items():
        assert len(s3.list_parts(Bucket=bucket, Key="b", UploadId=upload_id)["Parts"]) == 3
        s3.abort_multipart_upload(Bucket=bucket, Key="b", UploadId=upload_id)


def test_a_pass_of_many_pages_that_is_ended_half_way(
    s3: Any, new_bucket: NewBucket, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle_passes, "PAGE", 3)
    bucket = new_bucket()
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}))
    for key in ("a", "b", "c"):
        for n in range(5):
            newest = s3.put_object(Bucket=bucket, Key=key, Body=bytes([n]))["VersionId"]
    half = apply(2.1, lambda: len(versions(s3, bucket)[0]) <= 10)
    assert half.versions == 5
    assert apply(2.1).versions == 7
    left = versions(s3, bucket)[0]
    assert (len(left), left[-1]) == (3, newest)


def test_what_is_put_again_meanwhile_does_not_expire(
    s3: Any, new_bucket: NewBucket, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket()
    put_rules(s3, bucket, rule({"Expiration": {"Days": 1}}))
    s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    asked: list[bool] = []

    def put_again() -> bool:
        """Called when the old version was read, and nothing was decided."""
        asked.append(True)
        if len(asked) > 1:
            s3.put_object(Bucket=bucket, Key="k", Body=b"new")
        return False

    apply(2.1, put_again)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"new"


def test_a_former_version_that_becomes_the_newest_meanwhile_stays(
    s3: Any, new_bucket: NewBucket, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, stat = new_bucket(), Client.stat
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}))
    former, newest = (s3.put_object(Bucket=bucket, Key="k", Body=body)["VersionId"] for body in (b"1", b"2"))

    def meanwhile(*given: Any, **more: Any) -> Any:
        """Called when it is known which version is the newest."""
        head = stat(*given, **more)
        if head.version_id == newest:
            s3.delete_object(Bucket=bucket, Key="k", VersionId=newest)
        return head

    with monkeypatch.context() as patched:
        patched.setattr(Client, "stat", meanwhile)
        assert apply(3.1).versions == 0
    assert versions(s3, bucket)[0] == [former]


def test_settings_that_others_wrote_expire_nothing(s3: Any, new_bucket: NewBucket, apply: Apply, accounts: Any) -> None:
    client = next(accounts.every()).client
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    for junk in (
        b"",
        b"[]",
        b"\xff",
        b'{"created_ms":1,"region":"","versioning":"","tags":[],"cors":[],"lifecycle":[1]}',
    ):
        client.push(junk, user_id=OTHER_USER, filename=settings_name(bucket))
        apply(1000)
    assert keys(s3, bucket) == ["k"]
    forms: list[Any] = [
        {},
        {"ID": "a", "Status": "Enabled", "Expiration": {"Days": 0}},
        {"ID": "a", "Status": "Enabled", "Expiration": {"Days": "soon"}},
        {"ID": "a", "Status": "Enabled", "Expiration": {"Date": "soon"}},
        {"ID": "a", "Status": "Enabled", "Filter": 1, "Expiration": {"Days": 1}},
        {"ID": "a", "Status": "Enabled", "Filter": {"Tag": [1]}, "Expiration": {"Days": 1}},
    ]
    assert enabled(tuple(forms)) == []


def test_rules_of_a_bucket_are_understood_once() -> None:
    forms = ({"ID": "a", "Status": "Enabled", "Expiration": {"Days": 1}},)
    assert enabled(forms) is enabled(forms)
    assert [one.id for one in enabled(tuple({**forms[0], "ID": name} for name in "bc"))] == ["b", "c"]
