"""Signature Version 2 in URLs and forms, which botocore still makes unless it is told otherwise.

The rules are those of "Signing and authenticating REST requests (AWS signature version 2)" in Amazon's user guide. Such
a signature covers few parameters of a query, so requests that have others are refused. Requests that are signed in a
header must have Version 4.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from storage.clocks import wall_ms
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures import EXPIRY_MAX_S, SKEW_S

_COVERED = frozenset(
    (
        "acl", "partNumber", "tagging", "uploadId", "uploads", "versionId", "response-cache-control",
        "response-content-disposition", "response-content-encoding", "response-content-language",
        "response-content-type", "response-expires",
    )
)  # fmt: skip
_OWN = frozenset(("AWSAccessKeyId", "Expires", "Signature"))
_COPIED = ("content-md5", "content-type")  # and x-amz-…: botocore adds what it expects in headers, which count


@dataclass(frozen=True, slots=True)
class UrlClaim:
    """What a URL says about its signature; nothing of it has been checked.

    Attributes:
        access_key_id: whose key made the signature.
        signature: in base64.
        expires_s: until when it is good, in seconds since 1970.
    """

    access_key_id: str
    signature: str
    expires_s: int


def claim_of_url(head: Head) -> UrlClaim | None:
    """What a request's URL says about its signature; None if it has none of Version 2.

    Raises:
        S3Error: what it says is malformed, or the URL has parameters that the signature does not cover.
    """
    given = head.parameters
    if not _OWN & given.keys():
        return None
    if lacking := sorted(_OWN - given.keys()):
        raise S3Error("AccessDenied", f"the query lacks {lacking[0]}")
    expires = given["Expires"]
    if not expires.isascii() or not expires.isdigit() or len(expires) > 12:
        raise S3Error("AccessDenied", "Expires must be a time in seconds since 1970")
    names = [name for name, _ in head.pairs()]
    if len(set(names)) < len(names):
        raise S3Error("InvalidArgument", "a parameter is given twice")
    for name in names:
        if name not in _COVERED | _OWN and name not in _COPIED and not name.lower().startswith("x-amz-"):
            raise S3Error(
                "InvalidRequest", f"Signature Version 2 does not cover the parameter {name[:64]!r}; use Version 4"
            )
    return UrlClaim(given["AWSAccessKeyId"], given["Signature"], int(expires))


def check_url(claim: UrlClaim, head: Head, bucket: str, secret: str, *, now_ms: Callable[[], int] = wall_ms) -> None:
    """Check that the owner of ``secret`` signed this URL, and that it is still good.

    Args:
        claim: from :func:`claim_of_url`.
        head: the request.
        bucket: the bucket that the host names; empty: the path names it.
        secret: of the access key in the claim.
        now_ms: milliseconds since 1970.

    Raises:
        S3Error: the signature is wrong, or the URL has expired, or is good for more than a week.
    """
    now_s = now_ms() / 1000
    if now_s > claim.expires_s:
        raise S3Error("AccessDenied", "the presigned URL has expired; ask for a new one")
    if claim.expires_s > now_s + EXPIRY_MAX_S + SKEW_S:
        raise S3Error(
            "AccessDenied", f"a presigned URL may be good for {EXPIRY_MAX_S} seconds at most, which is a week"
        )
    to_sign = _text_to_sign(claim, head, bucket)
    if not hmac.compare_digest(signature(secret, to_sign).encode(), claim.signature.encode()):
        raise S3Error(
            "SignatureDoesNotMatch",
            "the signature does not match the request; check the secret key, the method, and that headers such as "
            "content-type are those that were signed",
            AWSAccessKeyId=claim.access_key_id,
            StringToSign=to_sign,
        )


def signature(secret: str, text: str) -> str:
    """A text's signature, in base64: an HMAC with SHA-1."""
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), "sha1")).decode()


def _text_to_sign(claim: UrlClaim, head: Head, bucket: str) -> str:
    fields = head.fields
    own = sorted((name, value) for name, value in fields.items() if name.startswith("x-amz-"))
    covered = sorted((name, value) for name, value in head.pairs() if name in _COVERED)
    parameters = "&".join(f"{name}={value}" if value else name for name, value in covered)
    if sum(piece.partition("=")[0] in _COVERED for piece in parameters.split("&")) != len(covered):
        raise S3Error("InvalidRequest", "a parameter's value looks like another parameter; use Signature Version 4")
    resource = (f"/{bucket}" if bucket else "") + head.path + (f"?{parameters}" if parameters else "")
    return "\n".join(
        (
            head.method,
            fields.get("content-md5", ""),
            fields.get("content-type", ""),
            str(claim.expires_s),
            *(f"{name}:{value}" for name, value in own),
            resource,
        )
    )
