"""Presigned URLs and forms of Version 2, as botocore makes them by default, are accepted, and no others."""

from __future__ import annotations

import time
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

import boto3
import pytest
from botocore.auth import HmacV1QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures_v2 import check_url, claim_of_url
from tests.gateways.s3 import conftest
from tests.gateways.s3.signing import KEY, SECRET, head_of
from tests.gateways.s3.test_http import post

URL = "http://h/bucket/a%20key?versionId=12&response-content-type=text%2Fplain"
DAY_S = 24 * 3600


def presigned(
    method: str, url: str, headers: Mapping[str, str] | None = None, *, path: str | None = None, expires_s: int = 600
) -> Head:
    request = AWSRequest(method=method, url=url, headers=dict(headers or {}), auth_path=path)
    HmacV1QueryAuth(Credentials(KEY, SECRET), expires_s).add_auth(request)
    return head_of(method, request.url or "", (headers or {}).items())


def check(head: Head, bucket: str = "", secret: str = SECRET, now_s: float | None = None) -> None:
    claim = claim_of_url(head)
    assert claim is not None
    assert claim.access_key_id == KEY
    check_url(claim, head, bucket, secret, now_ms=lambda: int((time.time() if now_s is None else now_s) * 1000))


def refused(head: Head, bucket: str = "", secret: str = SECRET, now_s: float | None = None) -> str:
    with pytest.raises(S3Error) as raised:
        check(head, bucket, secret, now_s)
    return raised.value.code


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "url", [URL, "http://h/bucket/k", "http://h/b/%C3%A4%2B%26?acl", "http://h/b/k?partNumber=2&uploadId=u"]
)
@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain", "x-amz-meta-b": "2", "x-amz-meta-a": "1"}])
def test_what_botocore_presigns_is_accepted(method: str, url: str, headers: dict[str, str]) -> None:
    head = presigned(method, url, headers)
    check(head)
    assert refused(head, secret=SECRET[:-1] + "t") == "SignatureDoesNotMatch"
    assert refused(replace(head, method="POST")) == "SignatureDoesNotMatch"
    assert refused(replace(head, path=f"{head.path}2")) == "SignatureDoesNotMatch"


def test_a_bucket_may_be_in_the_host() -> None:
    head = presigned("GET", "http://bucket.h/k", path="/bucket/k")
    check(head, "bucket")
    assert refused(head, "another") == "SignatureDoesNotMatch"


def test_headers_are_those_that_were_signed() -> None:
    head = presigned("PUT", "http://h/bucket/k", {"content-type": "text/plain"})
    others = {
        "content-type": (*head.headers[:1], ("content-type", "text/html")),
        "none": head.headers[:1],
        "more": (*head.headers, ("x-amz-copy-source", "/bucket/secret")),
    }
    for headers in others.values():
        assert refused(replace(head, headers=headers)) == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("{}&retention", "InvalidRequest"),  # which Version 2 does not cover
        ("{}&prefix=a", "InvalidRequest"),
        ("{}&acl", "SignatureDoesNotMatch"),
        ("{}&versionId=13", "InvalidArgument"),
        ("acl&{}", "SignatureDoesNotMatch"),
        ("{}0", "AccessDenied"),  # it is the time of expiry that grows
    ],
)
def test_nothing_can_be_added_to_a_url(query: str, code: str) -> None:
    head = presigned("GET", URL)
    assert refused(replace(head, query=query.format(head.query))) == code


def test_one_parameter_is_not_taken_for_two() -> None:
    head = presigned("GET", URL)
    joined = quote("text/plain&versionId=12", safe="")
    query = head.query.replace("versionId=12&", "").replace("text%2Fplain", joined)
    assert query != head.query
    assert refused(replace(head, query=query)) == "InvalidRequest"


@pytest.mark.parametrize("lacking", ["AWSAccessKeyId", "Expires", "Signature"])
def test_incomplete_urls_are_refused(lacking: str) -> None:
    head = presigned("GET", URL)
    kept = "&".join(piece for piece in head.query.split("&") if not piece.startswith(lacking))
    assert refused(replace(head, query=kept)) == "AccessDenied"


def test_urls_are_good_until_they_expire_and_for_a_week_at_most() -> None:
    head, now = presigned("GET", URL, expires_s=60), time.time()
    check(head, now_s=now + 50)
    assert refused(head, now_s=now + 70) == "AccessDenied"
    check(presigned("GET", URL, expires_s=7 * DAY_S))
    assert refused(presigned("GET", URL, expires_s=8 * DAY_S)) == "AccessDenied"
    for expires in ("", "-1", "1e9", "9" * 13, "²"):
        changed = (
            "&".join(p for p in head.query.split("&") if not p.startswith("Expires")) + f"&Expires={quote(expires)}"
        )
        assert refused(replace(head, query=changed)) == "AccessDenied"


@given(st.text(max_size=60))
def test_any_query_is_refused_in_words(text: str) -> None:
    head = Head("GET", "/bucket/k", f"AWSAccessKeyId={KEY}&{quote(text, safe='=&%')}&Signature={quote(text)}&Expires=9")
    try:
        check(head)
    except S3Error:
        return
    pytest.fail("a forged URL is good")


def default_client(url: str) -> Any:
    """A client as those make it who know nothing of signatures."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=conftest.KEY,
        aws_secret_access_key=conftest.SECRET,
    )


def test_urls_and_forms_of_a_client_without_settings(url: str, bucket: str) -> None:
    s3, where = default_client(url), {"Bucket": bucket, "Key": "by url ä+&"}
    link = s3.generate_presigned_url("put_object", {**where, "ContentType": "a/b"})
    assert "AWSAccessKeyId=" in link
    urllib.request.urlopen(urllib.request.Request(link, b"by url", {"content-type": "a/b"}, method="PUT")).close()
    with urllib.request.urlopen(s3.generate_presigned_url("get_object", where)) as got:
        assert (got.read(), got.headers["content-type"]) == (b"by url", "a/b")
    with pytest.raises(HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(link, b"other", {"content-type": "c/d"}, method="PUT"))
    form = s3.generate_presigned_post(bucket, "by form", Conditions=[["content-length-range", 1, 10]])
    assert "signature" in form["fields"]
    assert post(form["url"], form["fields"], b"by form")[0] == 204
    assert s3.get_object(Bucket=bucket, Key="by form")["Body"].read() == b"by form"
    for change in ({"signature": b64encode(bytes(20)).decode()}, {"key": "another"}):
        assert post(form["url"], {**form["fields"], **change}, b"by form")[0] == 403
