"""Forms that botocore presigned, and what their policies forbid."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import boto3
import pytest
from botocore.config import Config

from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.post_policy import Limits, checked, claim_of
from taskworker.gateways.s3.signatures import signature, signing_key
from tests.gateways.s3.signing import KEY, SECRET


def form(
    conditions: list[Any] | None = None, fields: dict[str, str] | None = None, expires_s: int = 600
) -> dict[str, str]:
    client = boto3.client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        endpoint_url="http://h",
        config=Config(signature_version="s3v4"),
    )
    made = client.generate_presigned_post("bucket", "key-${filename}", fields, conditions, expires_s)
    return {name.lower(): value for name, value in made["fields"].items()}


def check(given: dict[str, str], bucket: str = "bucket", now_s: float | None = None, secret: str = SECRET) -> Limits:
    moment = time.time() if now_s is None else now_s
    return checked(claim_of(given), given, bucket, secret, now_ms=lambda: int(moment * 1000))


def refused(given: dict[str, str], bucket: str = "bucket", now_s: float | None = None, secret: str = SECRET) -> str:
    with pytest.raises(S3Error) as raised:
        check(given, bucket, now_s, secret)
    return raised.value.code


def test_forms_of_botocore_are_accepted() -> None:
    assert claim_of(form()).access_key_id == KEY
    assert check(form()) == Limits()
    assert check(form([["content-length-range", 1, 10]])) == Limits(1, 10)
    conditions = [{"acl": "private"}, ["starts-with", "$Content-Type", "image/"]]
    assert check(form(conditions, {"acl": "private"}) | {"content-type": "image/png"}) == Limits()


@pytest.mark.parametrize(
    ("conditions", "more", "bucket", "code"),
    [
        ([], {}, "another", "AccessDenied"),
        ([], {"key": "another"}, "bucket", "AccessDenied"),
        ([], {"x-amz-meta-a": "b"}, "bucket", "AccessDenied"),
        ([["starts-with", "$content-type", "image/"]], {"content-type": "text/html"}, "bucket", "AccessDenied"),
        ([["starts-with", "$content-type", "image/"]], {}, "bucket", "AccessDenied"),
        ([["between", "$content-type", "image/"]], {}, "bucket", "InvalidPolicyDocument"),
        ([["content-length-range", "a", "b"]], {}, "bucket", "InvalidPolicyDocument"),
        ([["content-length-range", 1e999, 1]], {}, "bucket", "InvalidPolicyDocument"),
        ([5], {}, "bucket", "InvalidPolicyDocument"),
        ([["eq", "$a", 5]], {}, "bucket", "InvalidPolicyDocument"),
        ([{"a": "b", "c": "d"}], {}, "bucket", "InvalidPolicyDocument"),
        ([{"a": "b"}] * 201, {}, "bucket", "InvalidPolicyDocument"),
        ([], {"policy": "e30="}, "bucket", "SignatureDoesNotMatch"),
        ([], {"x-amz-signature": "0" * 64}, "bucket", "SignatureDoesNotMatch"),
        ([], {"x-amz-credential": "a/b"}, "bucket", "InvalidRequest"),
        ([], {"x-amz-algorithm": "none"}, "bucket", "InvalidRequest"),
    ],
)
def test_what_a_policy_forbids_is_refused(conditions: list[Any], more: dict[str, str], bucket: str, code: str) -> None:
    assert refused(form(conditions) | more, bucket) == code


def test_fields_may_be_ignored_by_name() -> None:
    check(form() | {"x-ignore-this": "x"})


def test_policies_expire() -> None:
    assert refused(form(expires_s=60), now_s=time.time() + 61) == "AccessDenied"


def test_forms_must_be_signed() -> None:
    for name in ("policy", "x-amz-signature", "x-amz-credential"):
        given = form()
        del given[name]
        assert refused(given) == "AccessDenied"


@pytest.mark.parametrize(
    "policy",
    [
        b"",
        b"[]",
        b"{}",
        b"{" * 5000,
        b"\xff",
        b'{"expiration": "soon", "conditions": []}',
        b'{"expiration": "2999-01-01T00:00:00", "conditions": []}',
        b'{"expiration": "2999-01-01T00:00:00Z", "conditions": {}}',
        json.dumps({"expiration": "2999-01-01T00:00:00Z", "conditions": [], "x": "y" * 20_000}).encode(),
    ],
)
def test_malformed_policies_are_refused_even_if_signed(policy: bytes) -> None:
    given = form()
    given["policy"] = base64.b64encode(policy).decode()
    key = signing_key(SECRET, given["x-amz-credential"].partition("/")[2])
    given["x-amz-signature"] = signature(key, given["policy"])
    assert refused(given) == "InvalidPolicyDocument"


def test_a_policy_is_for_the_buckets_that_it_names() -> None:
    given = form()
    policy = json.loads(base64.b64decode(given["policy"]))
    policy["conditions"] = [one for one in policy["conditions"] if "bucket" not in one]
    given["policy"] = base64.b64encode(json.dumps(policy).encode()).decode()
    scope = given["x-amz-credential"].partition("/")[2]
    given["x-amz-signature"] = signature(signing_key(SECRET, scope), given["policy"])
    assert refused(given) == "AccessDenied"
    assert refused(given, "another") == "AccessDenied"
