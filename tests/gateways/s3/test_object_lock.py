"""Object lock as the reference of S3 says, by boto3: what is locked cannot be deleted through the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskworker.client import Client
from taskworker.client.users import UserClient
from taskworker.gateways.s3.locks import LOCK, Lock
from taskworker.gateways.s3.names import lock_name, settings_name
from tests.functions.processes import FunctionPool
from tests.gateways.s3.conftest import USER, Apply, connect, send
from tests.gateways.s3.test_lifecycle import put_rules, rule, versions
from tests.gateways.s3.test_objects import refused

NewBucket = Callable[[], str]
DENIED = ("AccessDenied", 403)
DAMAGED = ("InvalidBucketState", 409)


def later(hours: float = 1.0) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)


@pytest.fixture
def locked_bucket(s3: Any) -> Callable[[], str]:
    def make() -> str:
        name = f"locked-{time.monotonic_ns()}"
        s3.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
        return name

    return make


def put(s3: Any, bucket: str, key: str = "k", **lock: Any) -> str:
    return str(s3.put_object(Bucket=bucket, Key=key, Body=b"locked", **lock)["VersionId"])


def retained(mode: str, until: datetime) -> dict[str, Any]:
    return {"ObjectLockMode": mode, "ObjectLockRetainUntilDate": until}


# -- buckets ------------------------------------------------------------------------------------------


def test_buckets_that_have_it(s3: Any, new_bucket: NewBucket, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    enabled = {"ObjectLockEnabled": "Enabled"}
    assert s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"] == enabled
    suspended = {"Status": "Suspended"}
    assert refused(lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=suspended)) == (
        "InvalidBucketState",
        409,
    )
    other = new_bucket()
    set_up = {"Bucket": other, "ObjectLockConfiguration": enabled}
    assert refused(lambda: s3.put_object_lock_configuration(**set_up)) == ("InvalidBucketState", 409)
    assert refused(lambda: s3.get_object_lock_configuration(Bucket=other))[1] == 404
    s3.put_bucket_versioning(Bucket=other, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object_lock_configuration(**set_up)
    assert s3.get_object_lock_configuration(Bucket=other)["ObjectLockConfiguration"] == enabled


@pytest.mark.parametrize(("period", "days"), [({"Days": 2}, 2), ({"Years": 1}, 365)])
def test_the_default_is_that_of_new_versions(
    s3: Any, locked_bucket: NewBucket, period: dict[str, int], days: int
) -> None:
    bucket = locked_bucket()
    before = put(s3, bucket)
    default = {"Mode": "GOVERNANCE", **period}
    wanted = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": default}}
    s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=wanted)
    assert s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"] == wanted
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    named = {"Bucket": bucket, "Key": "parts", "UploadId": upload}
    etag = s3.upload_part(**named, PartNumber=1, Body=b"x")["ETag"]
    s3.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    put(s3, bucket)
    for hold in ("ON", "OFF"):
        named = {"Bucket": bucket, "Key": hold}
        named["UploadId"] = s3.create_multipart_upload(**named, ObjectLockLegalHoldStatus=hold)["UploadId"]
        etag = s3.upload_part(**named, PartNumber=1, Body=b"x")["ETag"]
        s3.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
        assert s3.get_object_legal_hold(Bucket=bucket, Key=hold)["LegalHold"]["Status"] == hold
    for key in ("k", "copy", "parts", "ON", "OFF"):
        kept = s3.get_object_retention(Bucket=bucket, Key=key)["Retention"]
        assert kept["Mode"] == "GOVERNANCE"
        assert abs(kept["RetainUntilDate"] - later(24 * days)) < timedelta(minutes=10)
    s3.delete_object(Bucket=bucket, Key="k", VersionId=before)
    own = put(s3, bucket, **retained("COMPLIANCE", later(0.5)))
    assert s3.head_object(Bucket=bucket, Key="k", VersionId=own)["ObjectLockMode"] == "COMPLIANCE"


@pytest.mark.parametrize(
    ("inner", "code"),
    [
        ("", "MalformedXML"),
        ("<ObjectLockEnabled>Disabled</ObjectLockEnabled>", "MalformedXML"),
        ("<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule/>", "MalformedXML"),
        *(
            (
                "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
                f"{retention}</DefaultRetention></Rule>",
                code,
            )
            for retention, code in [
                ("<Mode>governance</Mode><Days>1</Days>", "MalformedXML"),
                ("<Days>1</Days>", "MalformedXML"),
                ("<Mode>GOVERNANCE</Mode>", "MalformedXML"),
                ("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>", "MalformedXML"),
                ("<Mode>GOVERNANCE</Mode><Days>0</Days>", "InvalidArgument"),
                ("<Mode>GOVERNANCE</Mode><Years>101</Years>", "InvalidArgument"),
                (f"<Mode>GOVERNANCE</Mode><Days>{'9' * 5000}</Days>", "InvalidArgument"),
            ]
        ),
    ],
)
def test_configurations_that_are_refused(url: str, bucket: str, inner: str, code: str) -> None:
    document = f"<ObjectLockConfiguration>{inner}</ObjectLockConfiguration>".encode()
    status, answer = send(url, "PUT", f"/{bucket}?object-lock", document)
    assert (status, f"<Code>{code}</Code>" in answer.decode()) == (400, True)


# -- versions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
def test_what_is_retained_stays(s3: Any, locked_bucket: NewBucket, mode: str) -> None:
    bucket, until = locked_bucket(), later()
    version = put(s3, bucket, **retained(mode, until))
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ObjectLockMode"], head["ObjectLockRetainUntilDate"]) == (mode, until)
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", VersionId=version)) == DENIED
    assert s3.delete_object(Bucket=bucket, Key="k")["DeleteMarker"] is True
    put(s3, bucket)
    named = {"Objects": [{"Key": "k", "VersionId": version}]}
    (error,) = s3.delete_objects(Bucket=bucket, Delete=named)["Errors"]
    assert (error["VersionId"], error["Code"]) == (version, "AccessDenied")
    assert s3.get_object(Bucket=bucket, Key="k", VersionId=version)["Body"].read() == b"locked"
    bypass = {"Bucket": bucket, "Key": "k", "VersionId": version, "BypassGovernanceRetention": True}
    if mode == "COMPLIANCE":
        assert refused(lambda: s3.delete_object(**bypass)) == DENIED
        (error,) = s3.delete_objects(Bucket=bucket, Delete=named, BypassGovernanceRetention=True)["Errors"]
        assert error["Code"] == "AccessDenied"
    else:
        s3.delete_object(**bypass)
        assert version not in versions(s3, bucket)[0]
    assert refused(lambda: s3.delete_bucket(Bucket=bucket)) == ("BucketNotEmpty", 409)


def test_retention_ends(s3: Any, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket, **retained("COMPLIANCE", later(2 / 3600)))
    give_up = time.monotonic() + 60
    while version in versions(s3, bucket)[0]:
        assert time.monotonic() < give_up, "the retention did not end"
        named = {"Objects": [{"Key": "k", "VersionId": version}]}
        s3.delete_objects(Bucket=bucket, Delete=named)
        time.sleep(0.1)


def test_retention_is_changed_only_as_its_mode_allows(s3: Any, locked_bucket: NewBucket) -> None:
    bucket, until = locked_bucket(), later(2)
    version = put(s3, bucket)

    def change(mode: str, date: datetime, **more: Any) -> None:
        s3.put_object_retention(
            Bucket=bucket, Key="k", VersionId=version, Retention={"Mode": mode, "RetainUntilDate": date}, **more
        )

    def kept() -> tuple[str, datetime]:
        found = s3.get_object_retention(Bucket=bucket, Key="k", VersionId=version)["Retention"]
        return found["Mode"], found["RetainUntilDate"]

    bypass = {"BypassGovernanceRetention": True}
    change("GOVERNANCE", until)
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", VersionId=version)) == DENIED
    assert refused(lambda: change("GOVERNANCE", later(1))) == DENIED
    assert refused(lambda: change("COMPLIANCE", until)) == DENIED
    assert refused(lambda: s3.put_object_retention(Bucket=bucket, Key="k", Retention={})) == DENIED
    change("GOVERNANCE", later(1), **bypass)
    change("GOVERNANCE", until)
    s3.put_object_retention(Bucket=bucket, Key="k", Retention={}, **bypass)
    assert refused(kept) == ("NoSuchObjectLockConfiguration", 404)
    change("COMPLIANCE", until)
    for mode, date in (("COMPLIANCE", later(1)), ("GOVERNANCE", later(3))):
        assert refused(lambda mode=mode, date=date: change(mode, date, **bypass)) == DENIED  # type: ignore[misc]
    assert kept() == ("COMPLIANCE", until)
    change("COMPLIANCE", later(4))
    assert kept()[1] > until


def test_a_legal_hold_holds_until_it_is_lifted(s3: Any, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket, ObjectLockLegalHoldStatus="ON")
    named = {"Bucket": bucket, "Key": "k", "VersionId": version}
    assert s3.get_object_legal_hold(**named)["LegalHold"]["Status"] == "ON"
    assert refused(lambda: s3.delete_object(**named, BypassGovernanceRetention=True)) == DENIED
    s3.put_object_retention(**named, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": later()})
    s3.put_object_legal_hold(**named, LegalHold={"Status": "OFF"})
    head = s3.head_object(**named)
    assert (head["ObjectLockLegalHoldStatus"], head["ObjectLockMode"]) == ("OFF", "GOVERNANCE")
    assert refused(lambda: s3.delete_object(**named)) == DENIED
    s3.delete_object(**named, BypassGovernanceRetention=True)
    s3.delete_bucket(Bucket=bucket)


def test_what_was_put_before_there_were_versions_can_be_locked(s3: Any, new_bucket: NewBucket) -> None:
    bucket = new_bucket()
    s3.put_object(Bucket=bucket, Key="k", Body=b"locked")
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
    s3.put_object_legal_hold(Bucket=bucket, Key="k", VersionId="null", LegalHold={"Status": "ON"})
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", VersionId="null")) == DENIED
    s3.delete_object(Bucket=bucket, Key="k")
    assert s3.get_object(Bucket=bucket, Key="k", VersionId="null")["Body"].read() == b"locked"


def test_tags_keep_the_lock_and_copies_have_none(s3: Any, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    put(s3, bucket)
    s3.put_object_legal_hold(Bucket=bucket, Key="k", LegalHold={"Status": "ON"})
    s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert s3.get_object_legal_hold(Bucket=bucket, Key="k")["LegalHold"]["Status"] == "ON"
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k")
    assert refused(lambda: s3.get_object_legal_hold(Bucket=bucket, Key="copy"))[1] == 404
    s3.copy_object(Bucket=bucket, Key="copy", CopySource=f"{bucket}/k", ObjectLockLegalHoldStatus="ON")
    assert s3.get_object_legal_hold(Bucket=bucket, Key="copy")["LegalHold"]["Status"] == "ON"


def test_lifecycle_rules_do_not_delete_what_is_locked(other_s3: Any, apply: Apply) -> None:
    s3, bucket = other_s3, f"locked-{time.monotonic_ns()}"
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    put_rules(s3, bucket, rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}, "Expiration": {"Days": 1}}))
    held = put(s3, bucket, ObjectLockLegalHoldStatus="ON")
    ended = put(s3, bucket, **retained("COMPLIANCE", later(24)))
    kept = put(s3, bucket, **retained("GOVERNANCE", later(24 * 9)))
    put(s3, bucket)
    assert apply(3.1).objects == 1
    assert set(versions(s3, bucket)[0]).issuperset({held, kept})
    assert apply(3.1).versions <= 1
    found = versions(s3, bucket)[0]
    assert {held, kept}.issubset(found)
    assert ended not in found


@pytest.mark.parametrize(
    ("lock", "code"),
    [
        ({"ObjectLockMode": "GOVERNANCE"}, "InvalidArgument"),
        ({"ObjectLockRetainUntilDate": later()}, "InvalidArgument"),
        (retained("FOREVER", later()), "InvalidArgument"),
        (retained("GOVERNANCE", datetime(2020, 1, 1, tzinfo=UTC)), "InvalidArgument"),
        ({"ObjectLockLegalHoldStatus": "MAYBE"}, "InvalidArgument"),
    ],
)
def test_locks_that_are_refused(s3: Any, locked_bucket: NewBucket, lock: dict[str, Any], code: str) -> None:
    bucket = locked_bucket()
    assert refused(lambda: put(s3, bucket, **lock)) == (code, 400)
    assert refused(lambda: s3.create_multipart_upload(Bucket=bucket, Key="k", **lock)) == (code, 400)
    assert "Versions" not in s3.list_object_versions(Bucket=bucket)


def test_without_object_lock_there_are_no_locks(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    hold = {"LegalHold": {"Status": "ON"}}
    retention = {"Retention": {"Mode": "GOVERNANCE", "RetainUntilDate": later()}}
    for call in (
        lambda: put(s3, bucket, ObjectLockLegalHoldStatus="ON"),
        lambda: s3.get_object_legal_hold(Bucket=bucket, Key="k"),
        lambda: s3.get_object_retention(Bucket=bucket, Key="k"),
        lambda: s3.put_object_legal_hold(Bucket=bucket, Key="k", **hold),
        lambda: s3.put_object_retention(Bucket=bucket, Key="k", **retention),
    ):
        assert refused(call) == ("InvalidRequest", 400)


@pytest.mark.parametrize(
    ("what", "document", "code"),
    [
        ("retention", "<Retention><Mode>GOVERNANCE</Mode></Retention>", "MalformedXML"),
        (
            "retention",
            "<Retention><Mode>X</Mode><RetainUntilDate>2099-01-01</RetainUntilDate></Retention>",
            "MalformedXML",
        ),
        (
            "retention",
            "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>soon</RetainUntilDate></Retention>",
            "InvalidA",
        ),
        ("retention", "<Other/>", "MalformedXML"),
        ("retention", '<!DOCTYPE a [<!ENTITY b "c">]><Retention/>', "MalformedXML"),
        ("legal-hold", "<LegalHold><Status>on</Status></LegalHold>", "MalformedXML"),
        ("legal-hold", "<LegalHold/>", "MalformedXML"),
    ],
)
def test_documents_of_locks_that_are_refused(
    url: str, s3: Any, locked_bucket: NewBucket, what: str, document: str, code: str
) -> None:
    bucket = locked_bucket()
    put(s3, bucket)
    status, answer = send(url, "PUT", f"/{bucket}/k?{what}", document.encode())
    assert (status, f"<Code>{code}" in answer.decode()) == (400, True)
    assert send(url, "PUT", f"/{bucket}/none?{what}", document.encode())[0] == 404


def test_changes_at_once_are_all_kept(s3: Any, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    put(s3, bucket)
    retention = {"Mode": "COMPLIANCE", "RetainUntilDate": later()}
    with ThreadPoolExecutor() as threads:
        done = [
            threads.submit(s3.put_object_legal_hold, Bucket=bucket, Key="k", LegalHold={"Status": "ON"}),
            threads.submit(s3.put_object_retention, Bucket=bucket, Key="k", Retention=retention),
        ]
        assert [one.result()["ResponseMetadata"]["HTTPStatusCode"] for one in done] == [200, 200]
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ObjectLockLegalHoldStatus"], head["ObjectLockMode"]) == ("ON", "COMPLIANCE")


def test_what_others_wrote_in_place_of_a_lock_takes_none_away(
    s3: Any, locked_bucket: NewBucket, pool: FunctionPool
) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket, ObjectLockLegalHoldStatus="ON")
    for junk in (
        b"",
        b"[]",
        b'{"mode":"X","until":0,"hold":null}',
        b'{"mode":"","until":-1,"hold":null}',
        b"\xff" * 9000,
    ):
        pool.client.push(junk, user_id=USER, filename=lock_name(bucket, version))
        assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", VersionId=version)) == DENIED
    assert Lock.parse(Lock("GOVERNANCE", 5, hold=True).encoded()) == Lock("GOVERNANCE", 5, hold=True)


def test_settings_that_make_no_sense_let_nothing_be_deleted(pool: FunctionPool, s3: Any, new_bucket: NewBucket) -> None:
    for junk in (
        b"",
        b"[]",
        b"\xff" * 300_000,
        b'{"created_ms":1,"region":"","versioning":"enabled","tags":[],"cors":[]}',
        b'{"created_ms":1,"region":"","versioning":"","tags":[],"cors":[],"object_lock":{}}',
        b'{"created_ms":1,"region":"","versioning":"Enabled","tags":[],"cors":[],"object_lock":[1]}',
    ):
        bucket = new_bucket()
        pool.client.push(junk, user_id=USER, filename=settings_name(bucket))
        pool.client.push(b"whole", user_id=USER, filename=f"{bucket}/k")
        assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k")) == DAMAGED  # noqa: B023
        assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"whole", "reading goes on"


def test_damaged_settings_take_no_lock_away(pool: FunctionPool, s3: Any, url: str, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket)
    s3.put_object_legal_hold(Bucket=bucket, Key="k", LegalHold={"Status": "ON"})
    client, name = pool.client, settings_name(bucket)
    whole = client.find(name, user_id=USER)
    assert whole is not None
    client.push(b"{", user_id=USER, filename=name)
    time.sleep(2.1)  # a gateway that did not write them may know former ones for so long
    named = {"Bucket": bucket, "Key": "k"}
    enabled = {"VersioningConfiguration": {"Status": "Enabled"}}
    for act in (
        lambda: s3.delete_object(**named),
        lambda: s3.delete_object(**named, VersionId=version, BypassGovernanceRetention=True),
        lambda: s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]}),
        lambda: s3.put_object(**named, Body=b"new"),
        lambda: s3.create_multipart_upload(**named),
        lambda: s3.put_object_tagging(**named, Tagging={"TagSet": []}),
        lambda: s3.put_bucket_versioning(Bucket=bucket, **enabled),
        lambda: s3.get_bucket_versioning(Bucket=bucket),
        lambda: s3.put_object_legal_hold(**named, LegalHold={"Status": "OFF"}),
        lambda: s3.delete_bucket_lifecycle(Bucket=bucket),
        lambda: s3.delete_bucket(Bucket=bucket),
    ):
        assert refused(act) == DAMAGED
    assert name.encode() in send(url, "GET", f"/{bucket}?versioning")[1]
    assert len(s3.list_object_versions(Bucket=bucket)["Versions"]) == 1
    client.push(client.get(whole.file_id, user_id=USER, version_id=whole.version_id), user_id=USER, filename=name)
    time.sleep(2.1)
    assert refused(lambda: s3.delete_object(**named, VersionId=version)) == DENIED
    s3.put_object_legal_hold(**named, LegalHold={"Status": "OFF"})
    s3.delete_object(**named, VersionId=version)


def test_a_bucket_whose_settings_are_gone_keeps_its_locks(
    pool: FunctionPool, s3: Any, locked_bucket: NewBucket
) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket)
    s3.put_object_legal_hold(Bucket=bucket, Key="k", LegalHold={"Status": "ON"})
    kept = pool.client.find(settings_name(bucket), user_id=USER)
    assert kept is not None
    pool.client.delete(kept.file_id, user_id=USER)
    time.sleep(2.1)  # a gateway that did not remove them may know them for so long
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    for act, code in (
        (lambda: s3.delete_object(Bucket=bucket, Key="k"), DENIED),
        (lambda: s3.create_bucket(Bucket=bucket), DAMAGED),
        (lambda: s3.put_bucket_tagging(Bucket=bucket, Tagging=tags), DAMAGED),
    ):
        assert refused(act) == code
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="k", VersionId=version)) == DENIED


def test_a_damaged_default_lets_nothing_in_without_it(pool: FunctionPool, s3: Any, locked_bucket: NewBucket) -> None:
    kept = {"created_ms": 1, "region": "", "versioning": "Enabled", "tags": [], "cors": []}
    for junk in ({"Days": 1}, {"Mode": "X", "Days": 1}, {"Mode": "GOVERNANCE"}, {"Mode": "GOVERNANCE", "Days": -1}):
        bucket = locked_bucket()
        pool.client.push(
            json.dumps({**kept, "object_lock": junk}).encode(), user_id=USER, filename=settings_name(bucket)
        )
        assert refused(lambda: put(s3, bucket)) == DAMAGED  # noqa: B023
    assert put(s3, bucket, **retained("COMPLIANCE", later()))


def test_a_damaged_lock_is_one(pool: FunctionPool, s3: Any, locked_bucket: NewBucket) -> None:
    bucket = locked_bucket()
    version = put(s3, bucket)
    named = {"Bucket": bucket, "Key": "k", "VersionId": version}
    s3.put_object_legal_hold(**named, LegalHold={"Status": "ON"})
    name = lock_name(bucket, version)
    held = pool.client.find(name, user_id=USER)
    assert held is not None
    pool.client.push(b"{", user_id=USER, filename=name)
    for act in (
        lambda: s3.delete_object(**named, BypassGovernanceRetention=True),
        lambda: s3.put_object_legal_hold(**named, LegalHold={"Status": "OFF"}),
        lambda: s3.get_object_legal_hold(**named),
    ):
        assert refused(act) == DENIED
    assert s3.get_object(**named)["Body"].read() == b"locked"
    whole = pool.client.get(held.file_id, user_id=USER, version_id=held.version_id)
    pool.client.push(whole, user_id=USER, filename=name)
    assert s3.get_object_legal_hold(**named)["LegalHold"]["Status"] == "ON"
    pool.client.push(b"odd", user_id=USER, filename=f"{bucket}/odd", attributes={LOCK: b"odd"})
    odd = s3.head_object(Bucket=bucket, Key="odd")["VersionId"]
    assert refused(lambda: s3.delete_object(Bucket=bucket, Key="odd", VersionId=odd)) == DENIED


# -- keys that are limited ------------------------------------------------------------------------------


def test_a_limited_key_deletes_nothing_that_may_be_locked(pool: FunctionPool, pool_url: str) -> None:
    files = ["files:read:locks/", "files:write:locks/"]
    with UserClient(pool.address) as users:
        if all(one.user != "s3-locks" for one in users.users()):
            users.add("s3-locks")
        keys = [
            users.create_access_key("s3-locks", scopes=scopes) for scopes in ([], [*files, "files:read:.s3/"], files)
        ]
    owner, reader, limited = (connect(pool_url, key.access_key_id, key.secret) for key in keys)
    owner.create_bucket(Bucket="locks", ObjectLockEnabledForBucket=True)
    version = put(owner, "locks", **retained("GOVERNANCE", later()))
    named = {"Bucket": "locks", "Key": "k", "VersionId": version}
    for key in (reader, limited):
        assert refused(lambda key=key: key.delete_object(**named, BypassGovernanceRetention=True)) == DENIED  # type: ignore[misc]
    for key in (reader, limited):
        own = put(key, "locks")
        assert key.delete_object(Bucket="locks", Key="k")["DeleteMarker"] is True
        key.delete_object(Bucket="locks", Key="k", VersionId=own)
    assert version in versions(owner, "locks")[0]
    with Client(pool.address, token=keys[0].token) as client:
        file = client.find("locks/k", user_id="s3-locks")
        assert file is not None
        assert len(client.history(file.file_id, user_id="s3-locks")) == 3
    owner.delete_object(**named, BypassGovernanceRetention=True)


def test_a_key_for_some_objects_reads_these(pool: FunctionPool, pool_url: str) -> None:
    with UserClient(pool.address) as users:
        if all(one.user != "s3-part" for one in users.users()):
            users.add("s3-part")
        scoped: tuple[list[str], ...] = ([], ["files:read:part/open/"], ["files:read:part/"])
        keys = [users.create_access_key("s3-part", scopes=scopes) for scopes in scoped]
    owner, reader, bucket_reader = (connect(pool_url, key.access_key_id, key.secret) for key in keys)
    owner.create_bucket(Bucket="part", ObjectLockEnabledForBucket=True)
    for key in ("open/k", "closed/k"):
        put(owner, "part", key, ObjectLockLegalHoldStatus="ON")
    for _ in range(2):
        assert reader.get_object(Bucket="part", Key="open/k")["Body"].read() == b"locked"
        assert reader.head_object(Bucket="part", Key="open/k")["ContentLength"] == 6
    assert refused(lambda: reader.get_object(Bucket="part", Key="closed/k")) == DENIED
    put(owner, "part", "open/k")
    owner.delete_object(Bucket="part", Key="open/k")
    listed = [one.list_object_versions(Bucket="part", Prefix="open/") for one in (owner, bucket_reader)]
    assert listed[0]["Versions"] == listed[1]["Versions"]
    assert len(listed[0]["Versions"]) == 2
    assert listed[0]["DeleteMarkers"] == listed[1]["DeleteMarkers"]
