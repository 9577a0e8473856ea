"""Policies of presigned POST: what a form may upload."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from storage.clocks import wall_ms
from taskworker.gateways.s3 import signatures_v2
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.signatures import ALGORITHM, check_scope, signature, signing_key

_POLICY_BYTES_MAX = 20_000
_CONDITIONS_MAX = 200
_ALWAYS_ALLOWED = frozenset(("x-amz-signature", "file", "policy", "awsaccesskeyid", "signature"))


@dataclass(frozen=True, slots=True)
class Claim:
    """Who signed a form's policy, by what it says itself.

    Attributes:
        access_key_id: whose key made the signature.
        scope: of Signature Version 4; None: the signature has Version 2.
    """

    access_key_id: str
    scope: str | None


@dataclass(frozen=True, slots=True)
class Limits:
    """How many bytes the file may have, both ends included; ``most`` None: as many as any."""

    least: int = 0
    most: int | None = None


def claim_of(form: Mapping[str, str]) -> Claim:
    """Who signed the policy of a form, whose fields have names in lower case.

    Raises:
        S3Error: the form lacks fields, or they are malformed.
    """
    is_v2 = "awsaccesskeyid" in form
    required = ("signature",) if is_v2 else ("x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature")
    for name in ("policy", *required):
        if name not in form:
            raise S3Error("AccessDenied", f"the form has no field {name}; only signed forms are accepted")
    if is_v2:
        return Claim(form["awsaccesskeyid"], None)
    if form["x-amz-algorithm"] != ALGORITHM:
        raise S3Error("InvalidRequest", f"the form's x-amz-algorithm must be {ALGORITHM}")
    return Claim(*check_scope(form["x-amz-credential"], "InvalidRequest"))


def checked(
    claim: Claim, form: Mapping[str, str], bucket: str, secret: str, *, now_ms: Callable[[], int] = wall_ms
) -> Limits:
    """Check a form against its policy, and the policy against its signature.

    Args:
        claim: who signed it.
        form: its fields before the file, with names in lower case.
        bucket: where the form was sent.
        secret: of the access key in the claim.
        now_ms: milliseconds since 1970.

    Raises:
        S3Error: the signature is wrong, the policy has expired, or the form is not what it allows.
    """
    if claim.scope is None:
        given, expected = form["signature"], signatures_v2.signature(secret, form["policy"])
    else:
        given, expected = form["x-amz-signature"], signature(signing_key(secret, claim.scope), form["policy"])
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise S3Error("SignatureDoesNotMatch", "the signature does not match the policy")
    policy = _policy(form["policy"])
    if now_ms() / 1000 > _expiration_s(policy.get("expiration")):
        raise S3Error("AccessDenied", "invalid according to policy: policy expired")
    conditions = policy.get("conditions")
    if not isinstance(conditions, list) or len(conditions) > _CONDITIONS_MAX:
        raise S3Error("InvalidPolicyDocument", f"conditions must be a list of at most {_CONDITIONS_MAX}")
    filled = {**form, "bucket": bucket}
    limits = Limits()
    covered: set[str] = set()
    for condition in conditions:
        if isinstance(condition, list) and len(condition) == 3 and condition[0] == "content-length-range":
            limits = _limits(condition)
        else:
            covered.add(_fulfilled(condition, filled))
    if extra := [name for name in filled if name not in covered | _ALWAYS_ALLOWED and not name.startswith("x-ignore-")]:
        raise S3Error("AccessDenied", f"invalid according to policy: extra input field: {extra[0]}")
    return limits


def _policy(encoded: str) -> dict[str, Any]:
    if len(encoded) > _POLICY_BYTES_MAX:
        raise S3Error("InvalidPolicyDocument", f"the policy has more than {_POLICY_BYTES_MAX} bytes")
    try:
        policy = json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise S3Error("InvalidPolicyDocument", "the policy is not JSON in base64") from None
    if not isinstance(policy, dict):
        raise S3Error("InvalidPolicyDocument", "the policy must be an object")
    return policy


def _expiration_s(text: object) -> float:
    try:
        then = datetime.fromisoformat(str(text))
        if then.tzinfo is None:
            raise ValueError(text)
        return then.timestamp()
    except (ValueError, OverflowError):
        raise S3Error("InvalidPolicyDocument", "expiration must be a time such as 2030-01-31T12:00:00Z") from None


def _limits(condition: list[Any]) -> Limits:
    _, least, most = condition
    try:
        return Limits(int(least), int(most))
    except (TypeError, ValueError, OverflowError):
        raise S3Error("InvalidPolicyDocument", "content-length-range must have two numbers") from None


def _fulfilled(condition: object, given: Mapping[str, str]) -> str:
    """The field that a condition is about.

    Raises:
        S3Error: the condition is malformed, or not fulfilled.
    """
    match condition:
        case dict() if len(condition) == 1:
            ((name, value),) = condition.items()
            kind = "eq"
        case [str() as kind, str() as name, value] if name.startswith("$"):
            kind, name = kind.lower(), name[1:]
        case _:
            raise S3Error(
                "InvalidPolicyDocument", "a condition has neither the form {name: value} nor [how, $name, value]"
            )
    name = str(name).lower()
    if not isinstance(value, str) or kind not in ("eq", "starts-with"):
        raise S3Error("InvalidPolicyDocument", "conditions are eq, starts-with and content-length-range, with texts")
    found = given.get(name)
    fits = found is not None and (found == value if kind == "eq" else found.startswith(value))
    if not fits:
        raise S3Error("AccessDenied", f'invalid according to policy: policy condition failed: ["{kind}", "${name}", …]')
    return name
