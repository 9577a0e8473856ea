"""Signatures of botocore are accepted, and nothing else is."""

from __future__ import annotations

import time
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures import Claim, Signed, checked, claim_of
from tests.gateways.s3.signing import KEY, SECRET, presigned_head, signed_head

URL = "http://127.0.0.1:9000/bucket/a%20key?list-type=2&prefix=a%2Fb&delimiter=%2F&acl"
_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def check(head: Head, secret: str = SECRET, now_s: float | None = None) -> Signed:
    claim = claim_of(head)
    assert claim is not None
    if claim.access_key_id not in (KEY, "AKIAIOSFODNN7EXAMPLE"):
        raise S3Error("InvalidAccessKeyId", "another key")
    return checked(claim, head, secret, now_ms=lambda: int((time.time() if now_s is None else now_s) * 1000))


def refused(head: Head, secret: str = SECRET, now_s: float | None = None) -> str:
    with pytest.raises(S3Error) as raised:
        check(head, secret, now_s)
    return raised.value.code


def with_header(head: Head, name: str, value: str | None) -> Head:
    kept = tuple(pair for pair in head.headers if pair[0] != name)
    return replace(head, headers=kept if value is None else (*kept, (name, value)))


def with_parameter(head: Head, name: str, value: str | None) -> Head:
    kept = [piece for piece in head.query.split("&") if piece.split("=")[0] != name]
    return replace(head, query="&".join(kept if value is None else [*kept, f"{name}={value}"]))


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "url",
    [
        "http://h/",
        "http://h/bucket",
        "http://h/bucket/",
        "http://h/bucket/a/b//c",
        "http://h/bucket/%C3%A4%20%2B%26%3D~._-",
        "http://h/bucket/a?versioning",
        "http://h/bucket?list-type=2&prefix=%2B%20%26&start-after=%C3%A4",
        "http://h/bucket?b=2&a=1&a=0&c=",
    ],
)
def test_what_botocore_signs_is_accepted(method: str, url: str) -> None:
    head = signed_head(method, url, {"x-amz-meta-a": "  two   words ", "content-type": "text/plain"})
    assert check(head).scope.endswith("/us-east-1/s3/aws4_request")
    assert refused(head, secret=SECRET[:-1] + "t") == "SignatureDoesNotMatch"


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "anywhere"])
def test_any_region_is_as_good(region: str) -> None:
    assert f"/{region}/s3/" in check(signed_head("GET", URL, region=region)).scope


@settings(max_examples=30)
@given(_TEXT, st.dictionaries(_TEXT, _TEXT, max_size=4))
def test_keys_and_parameters_of_any_characters_can_be_signed(key: str, parameters: dict[str, str]) -> None:
    query = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in parameters.items())
    url = f"http://h/bucket/{quote(key, safe='/~')}?{query}"
    assert check(signed_head("PUT", url)).signature
    assert check(presigned_head("GET", url)).signature


@given(st.integers(0, 10_000), st.sampled_from("0123456789abcdefZ%&=/;, "))
def test_no_changed_request_is_accepted(at: int, letter: str) -> None:
    head = signed_head("PUT", URL, {"x-amz-meta-a": "value", "content-type": "text/plain"})
    covered = [(name, value) for name, value in head.headers if name != "x-amz-date"]
    target = at % (2 + len(covered))
    if target == 0:
        changed = replace(head, path=_changed(head.path, at, letter))
        same = changed.path.lower() == head.path.lower()
    elif target == 1:
        changed = replace(head, query=_changed(head.query, at, letter))
        same = {*_pairs(changed)} == {*_pairs(head)}
    else:
        name, value = covered[target - 2]
        changed = with_header(head, name, _changed(value, at, letter))
        same = changed.fields[name].split() == value.split()
    try:
        check(changed)
    except S3Error:
        return
    assert same or changed.fields["authorization"].replace(" ", "") == head.fields["authorization"].replace(" ", "")


def _changed(text: str, at: int, letter: str) -> str:
    at %= max(1, len(text))
    return text[:at] + letter + text[at + 1 :]


def _pairs(head: Head) -> list[tuple[str, str]]:
    try:
        return [*head.pairs()]
    except S3Error:
        return []


@pytest.mark.parametrize(
    ("off_s", "code"), [(-901, "RequestTimeTooSkewed"), (901, "RequestTimeTooSkewed"), (-890, ""), (890, "")]
)
def test_a_clock_may_be_off_by_15_minutes(off_s: int, code: str) -> None:
    head, now = signed_head("GET", URL), time.time()
    if code:
        assert refused(head, now_s=now + off_s) == code
    else:
        check(head, now_s=now + off_s)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"authorization": "AWS AKID:signature"}, "InvalidRequest"),
        ({"authorization": "AWS4-ECDSA-P256-SHA256 Credential=a"}, "InvalidRequest"),
        ({"authorization": "AWS4-HMAC-SHA256 Credential=a"}, "AuthorizationHeaderMalformed"),
        (
            {"authorization": "AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=b"},
            "AuthorizationHeaderMalformed",
        ),
        ({"x-amz-content-sha256": None}, "MissingSecurityHeader"),
        ({"x-amz-content-sha256": "0" * 64}, "SignatureDoesNotMatch"),
        ({"x-amz-date": None}, "AccessDenied"),
        ({"x-amz-date": "20200101"}, "AccessDenied"),
        ({"x-amz-date": "20200199T000000Z"}, "AccessDenied"),
        ({"x-amz-date": "20200101T000000Z"}, "AccessDenied"),  # not the date of the credential
        ({"x-amz-acl": "public-read"}, "AccessDenied"),  # not signed
        ({"host": "elsewhere"}, "SignatureDoesNotMatch"),
    ],
)
def test_forged_headers_are_refused(change: dict[str, str | None], code: str) -> None:
    head = signed_head("GET", URL)
    for name, value in change.items():
        head = with_header(head, name, value)
    assert refused(head) == code


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("s3/aws4_request", "sts/aws4_request"),
        ("aws4_request", "aws5_request"),
        (KEY, ""),
        ("SignedHeaders=host;", "SignedHeaders=HOST;"),
        ("SignedHeaders=host;", "SignedHeaders=;host;"),
        ("SignedHeaders=host;", "SignedHeaders=host;host;"),
        ("Signature=", "Signature=00"),
        ("Signature=", "Signatur="),
    ],
)
def test_malformed_authorizations_are_refused(old: str, new: str) -> None:
    head = signed_head("GET", URL)
    assert refused(with_header(head, "authorization", head.fields["authorization"].replace(old, new))) == (
        "AuthorizationHeaderMalformed"
    )


def test_the_host_must_be_signed() -> None:
    head = signed_head("GET", URL)
    authorization = head.fields["authorization"].replace("SignedHeaders=host;", "SignedHeaders=")
    assert refused(with_header(head, "authorization", authorization)) == "AccessDenied"


def test_presigned_urls_are_good_for_as_long_as_they_say() -> None:
    head, now = presigned_head("GET", URL, expires_s=60), time.time()
    check(head, now_s=now)
    check(head, now_s=now + 58)
    assert refused(head, now_s=now + 62) == "AccessDenied"
    assert refused(head, now_s=now - 1000) == "AccessDenied"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("X-Amz-Signature", None, "AuthorizationQueryParametersError"),
        ("X-Amz-Credential", None, "AuthorizationQueryParametersError"),
        ("X-Amz-Credential", "a/b", "AuthorizationQueryParametersError"),
        ("X-Amz-Date", "yesterday", "AuthorizationQueryParametersError"),
        ("X-Amz-Algorithm", "AWS4-HMAC-MD5", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires", "0", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires", "604801", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires", "-5", "AuthorizationQueryParametersError"),
        ("X-Amz-Expires", "9" * 5000, "AuthorizationQueryParametersError"),
        ("X-Amz-Expires", "604800", "SignatureDoesNotMatch"),
        ("X-Amz-SignedHeaders", "", "AuthorizationQueryParametersError"),
        ("X-Amz-Signature", "0" * 64, "SignatureDoesNotMatch"),
        ("versionId", "another", "SignatureDoesNotMatch"),
    ],
)
def test_forged_urls_are_refused(name: str, value: str | None, code: str) -> None:
    assert refused(with_parameter(presigned_head("GET", URL), name, value)) == code


def test_a_presigned_url_is_for_one_method_only() -> None:
    assert refused(replace(presigned_head("GET", URL), method="DELETE")) == "SignatureDoesNotMatch"


def test_two_ways_to_sign_at_once_are_refused() -> None:
    head = presigned_head("GET", URL)
    assert (
        refused(with_header(head, "authorization", signed_head("GET", URL).fields["authorization"]))
        == "InvalidArgument"
    )


def test_requests_without_a_signature_claim_nothing() -> None:
    assert claim_of(Head("GET", "/")) is None


def test_headers_with_signatures_of_version_2_are_refused() -> None:
    assert refused(Head("GET", "/", "", (("authorization", "AWS a:b"),))) == "InvalidRequest"


def test_the_example_of_the_documentation() -> None:
    """Amazon's documentation has it: "Signature Calculations for the Authorization Header", GET Object."""
    head = Head(
        "GET",
        "/test.txt",
        "",
        (
            ("host", "examplebucket.s3.amazonaws.com"),
            ("range", "bytes=0-9"),
            ("x-amz-content-sha256", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("x-amz-date", "20130524T000000Z"),
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
                "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,"
                "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
        ),
    )
    claim = claim_of(head)
    assert claim == Claim(
        "AKIAIOSFODNN7EXAMPLE",
        "20130524/us-east-1/s3/aws4_request",
        ("host", "range", "x-amz-content-sha256", "x-amz-date"),
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        "20130524T000000Z",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )
    check(head, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", now_s=1369353600)


@pytest.mark.parametrize("path", ["/%FF", "/a%00b", "/%C3"])
def test_paths_that_are_no_text_are_refused(path: str) -> None:
    assert refused(replace(signed_head("GET", URL), path=path)) == "InvalidURI"


@pytest.mark.parametrize("query", ["a=%FF", "&".join(f"a{n}" for n in range(201))])
def test_queries_that_are_no_text_or_too_long_are_refused(query: str) -> None:
    assert refused(replace(signed_head("GET", URL), query=query)) == "InvalidURI"
