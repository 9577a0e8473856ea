"""Signature Version 4: who signed a request, and whether the signature is right."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote

from storage.clocks import wall_ms
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW_S = 15 * 60
"""How far the clock of a caller may be off, as with Amazon's."""
EXPIRY_MAX_S = 7 * 24 * 3600
"""How long a presigned URL may be good for, likewise."""
UNSIGNED = "UNSIGNED-PAYLOAD"

_TERMINATOR = "aws4_request"
_SERVICE = "s3"
_TIME = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_HEX = re.compile(r"[0-9a-f]{64}")
_SIGNED_HEADERS_MAX = 100
_KEYS_MAX = 1000
"""Signing keys that are kept: each serves a program for a day, and costs as much as the rest of a signature."""
_SCOPE_MAX = 100
"""The longest scope whose key is kept; that of ``us-gov-west-1`` has 38 characters."""
_OF_SIGNATURE = frozenset(
    f"x-amz-{name}"
    for name in (
        *("algorithm", "credential", "date", "expires", "signedheaders", "signature"),
        *("content-sha256", "security-token"),
    )
)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature; nothing of it has been checked.

    Attributes:
        access_key_id: whose key made the signature.
        scope: ``date/region/s3/aws4_request``.
        signed_headers: names of the headers that it covers, in lower case and sorted.
        signature: in hexadecimal.
        time: when it was made, as ``YYYYMMDD'T'HHMMSS'Z'``.
        payload: the SHA-256 of the body in hexadecimal, or how the body is signed.
        expires_s: of a presigned URL: for how long it is good; otherwise None.
    """

    access_key_id: str
    scope: str
    signed_headers: tuple[str, ...]
    signature: str
    time: str
    payload: str
    expires_s: int | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that was right; the signatures of chunks follow from it.

    Attributes:
        key: the signing key of the day, region and service.
        signature: of the request's head, in hexadecimal.
        scope: see :class:`Claim`.
        time: likewise.
    """

    key: bytes
    signature: str
    scope: str
    time: str


def claim_of(head: Head) -> Claim | None:
    """What the request says about its signature; None if it is not signed.

    Raises:
        S3Error: what it says is malformed, or it is signed in a way that is not supported.
    """
    authorization = head.fields.get("authorization")
    presigned = "X-Amz-Algorithm" in head.parameters or "X-Amz-Signature" in head.parameters
    if authorization is not None and presigned:
        raise S3Error("InvalidArgument", "only one way to sign a request is allowed: a header or the query")
    if authorization is not None:
        return _claim_of_header(head, authorization)
    if presigned:
        return _claim_of_query(head)
    return None


def checked(claim: Claim, head: Head, secret: str, *, now_ms: Callable[[], int] = wall_ms) -> Signed:
    """Check that the owner of ``secret`` signed this request, and lately.

    Raises:
        S3Error: the signature is wrong, too old, or leaves out headers that matter.
    """
    _check_time(claim, now_ms() / 1000)
    _check_covered(claim, head)
    key = signing_key(secret, claim.scope)
    request = canonical_request(head, claim)
    to_sign = f"{ALGORITHM}\n{claim.time}\n{claim.scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    expected = signature(key, to_sign)
    if not hmac.compare_digest(expected.encode(), claim.signature.encode()):
        raise S3Error(
            "SignatureDoesNotMatch",
            "the signature does not match the request; check the secret key, the clock, and what changes requests "
            "on their way",
            AWSAccessKeyId=claim.access_key_id,
            StringToSign=to_sign,
            CanonicalRequest=request,
        )
    return Signed(key, claim.signature, claim.scope, claim.time)


def with_moved_headers(head: Head) -> Head:
    """A presigned request with the headers ``x-amz-…`` that were moved into its URL, as some programs do.

    Raises:
        S3Error: a header is given in both places, with different values, or has characters that no header can have.
    """
    moved: dict[str, str] = {}
    for name, value in head.pairs():
        field = name.lower()
        if not field.startswith("x-amz-") or field in _OF_SIGNATURE:
            continue
        if not value.isprintable():
            raise S3Error(
                "InvalidArgument", f"the header {field[:64]!r} in the URL has characters that no header can have"
            )
        if moved.setdefault(field, value) != value or head.fields.get(field, value) != value:
            raise S3Error("InvalidArgument", f"the header {field[:64]} is given twice, with different values")
    new = [(name, value) for name, value in moved.items() if name not in head.fields]
    return replace(head, headers=(*head.headers, *new)) if new else head


def signing_key(secret: str, scope: str) -> bytes:
    """The key that signs requests of a day, region and service."""
    return _kept_key(secret, scope) if len(scope) <= _SCOPE_MAX else _derived_key(secret, scope)


def _derived_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


_kept_key = lru_cache(_KEYS_MAX)(_derived_key)


def signature(key: bytes, text: str) -> str:
    """A text's signature, in hexadecimal."""
    return hmac.digest(key, text.encode(), "sha256").hex()


def canonical_request(head: Head, claim: Claim) -> str:
    """The request in the form that is signed."""
    pairs = sorted((_encoded(name), _encoded(value)) for name, value in head.pairs() if name != "X-Amz-Signature")
    covered = "".join(f"{name}:{_collapsed(head.fields.get(name, ''))}\n" for name in claim.signed_headers)
    return "\n".join(
        (
            head.method,
            quote(head.decoded_path, safe="/~"),
            "&".join(f"{name}={value}" for name, value in pairs),
            covered,
            ";".join(claim.signed_headers),
            claim.payload,
        )
    )


def check_scope(credential: str, problem: str) -> tuple[str, str]:
    """The access key id and the scope of a credential, ``ID/DATE/REGION/s3/aws4_request``.

    Raises:
        S3Error: it has another form; ``problem`` is the code.
    """
    access_key_id, _, scope = credential.partition("/")
    parts = scope.split("/")
    if not access_key_id or len(parts) != 4 or parts[2:] != [_SERVICE, _TERMINATOR] or not parts[1]:
        raise S3Error(problem, "the credential must be ACCESS-KEY-ID/YYYYMMDD/REGION/s3/aws4_request")
    return access_key_id, scope


def seconds_of(time: str, problem: str) -> float:
    """Seconds since 1970 of a time such as ``20260131T235959Z``.

    Raises:
        S3Error: it has another form; ``problem`` is the code.
    """
    try:
        if not _TIME.fullmatch(time):
            raise ValueError(time)
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        raise S3Error(problem, "the time must have the form YYYYMMDD'T'HHMMSS'Z', in UTC") from None


def _claim_of_header(head: Head, authorization: str) -> Claim:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        raise _unsupported()
    given: dict[str, str] = {}
    for piece in rest.split(","):
        name, _, value = piece.strip().partition("=")
        given[name] = value.strip()
    if given.keys() != {"Credential", "SignedHeaders", "Signature"}:
        raise S3Error("AuthorizationHeaderMalformed", "the header must have Credential, SignedHeaders and Signature")
    access_key_id, scope = check_scope(given["Credential"], "AuthorizationHeaderMalformed")
    payload = head.fields.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("MissingSecurityHeader", "the request has no header x-amz-content-sha256, which must be signed")
    return Claim(
        access_key_id=access_key_id,
        scope=scope,
        signed_headers=_names(given["SignedHeaders"], "AuthorizationHeaderMalformed"),
        signature=_checked_hex(given["Signature"], "AuthorizationHeaderMalformed"),
        time=_time_of(head),
        payload=payload,
    )


def _claim_of_query(head: Head) -> Claim:
    problem = "AuthorizationQueryParametersError"
    given = head.parameters
    lacking = [
        name
        for name in ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature")
        if f"X-Amz-{name}" not in given
    ]
    if lacking:
        raise S3Error(problem, f"the query lacks X-Amz-{lacking[0]}")
    if given["X-Amz-Algorithm"] != ALGORITHM:
        raise S3Error(problem, f"X-Amz-Algorithm must be {ALGORITHM}")
    expires = given["X-Amz-Expires"]
    if not expires.isascii() or not expires.isdigit() or len(expires) > 9:
        raise S3Error(problem, "X-Amz-Expires must be a number of seconds")
    if not 1 <= int(expires) <= EXPIRY_MAX_S:
        raise S3Error(problem, f"X-Amz-Expires must be from 1 to {EXPIRY_MAX_S} seconds, which is a week")
    access_key_id, scope = check_scope(given["X-Amz-Credential"], problem)
    return Claim(
        access_key_id=access_key_id,
        scope=scope,
        signed_headers=_names(given["X-Amz-SignedHeaders"], problem),
        signature=_checked_hex(given["X-Amz-Signature"], problem),
        time=given["X-Amz-Date"],
        payload=given.get("X-Amz-Content-Sha256") or head.fields.get("x-amz-content-sha256") or UNSIGNED,
        expires_s=int(expires),
    )


def _check_time(claim: Claim, now_s: float) -> None:
    problem = "AccessDenied" if claim.expires_s is None else "AuthorizationQueryParametersError"
    then = seconds_of(claim.time, problem)
    if claim.time[:8] != claim.scope[:8]:
        raise S3Error(problem, "the date of the credential is not that of the request")
    if claim.expires_s is not None:
        if now_s > then + claim.expires_s:
            raise S3Error("AccessDenied", "the presigned URL has expired; ask for a new one")
        if then > now_s + SKEW_S:
            raise S3Error("AccessDenied", "the presigned URL is not valid yet; check the clock of who made it")
    elif abs(now_s - then) > SKEW_S:
        raise S3Error(
            "RequestTimeTooSkewed",
            "the request's time is more than 15 minutes off that of the server; set the clock",
            RequestTime=claim.time,
            ServerTime=datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            MaxAllowedSkewMilliseconds=str(SKEW_S * 1000),
        )


def _check_covered(claim: Claim, head: Head) -> None:
    """Whoever changes a request on its way must not be able to add what changes its meaning."""
    if "host" not in claim.signed_headers:
        raise S3Error("AccessDenied", "the header host must be signed")
    covered = set(claim.signed_headers)
    left_out = [name for name in head.fields if name.startswith("x-amz-") and name not in covered]
    if left_out and not (claim.expires_s is not None and left_out == ["x-amz-content-sha256"]):
        raise S3Error(
            "AccessDenied", "there are headers that must be signed and are not", HeadersNotSigned=", ".join(left_out)
        )


def _time_of(head: Head) -> str:
    if (given := head.fields.get("x-amz-date")) is not None:
        return given
    if (date := head.fields.get("date")) is None:
        raise S3Error("AccessDenied", "the request has neither a header x-amz-date nor date")
    try:
        return parsedate_to_datetime(date).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    except (ValueError, OverflowError):
        raise S3Error("AccessDenied", "the header date is malformed") from None


def _names(joined: str, problem: str) -> tuple[str, ...]:
    names = tuple(joined.split(";"))
    if names != tuple(sorted(set(names))) or "" in names or joined != joined.lower():
        raise S3Error(problem, "SignedHeaders must be names in lower case, sorted, with semicolons between them")
    if len(names) > _SIGNED_HEADERS_MAX:
        raise S3Error(problem, f"at most {_SIGNED_HEADERS_MAX} headers may be signed")
    return names


def _checked_hex(given: str, problem: str) -> str:
    if not _HEX.fullmatch(given):
        raise S3Error(problem, "a signature is 64 hexadecimal digits in lower case")
    return given


def _unsupported() -> S3Error:
    return S3Error(
        "InvalidRequest", f"this way to sign requests is not supported; use {ALGORITHM} (Signature Version 4)"
    )


def _encoded(text: str) -> str:
    return quote(text, safe="~")


def _collapsed(value: str) -> str:
    return " ".join(value.split())


def canonical_trailers(trailers: Iterable[tuple[str, str]]) -> str:
    """Trailers in the form that is signed."""
    return "".join(f"{name}:{value}\n" for name, value in trailers)
