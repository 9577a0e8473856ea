"""What browsers are told about requests from other sites, by the rules of a bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from storage.errors import StorageError
from taskworker.errors import Unauthenticated
from taskworker.gateways.s3.buckets import Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.failures import as_s3_error


def preflight(bucket: Bucket, fields: Mapping[str, str]) -> Reply:
    """The answer to a browser that asks before it sends a request.

    Raises:
        S3Error: no rule allows the request.
    """
    origin, method = fields.get("origin"), fields.get("access-control-request-method")
    if not origin or not method:
        raise S3Error("InvalidRequest", "the request needs Origin and Access-Control-Request-Method")
    asked = [one.strip().lower() for one in fields.get("access-control-request-headers", "").split(",") if one.strip()]
    headers = _headers(bucket, origin, method, asked)
    if not headers:
        raise S3Error("AccessDenied", "no rule of the bucket allows this request; see put-bucket-cors")
    if asked:
        headers.append(("access-control-allow-headers", ", ".join(asked)))
    return Reply(200, headers)


def answered(work: Callable[..., Reply], call: Call, buckets: Buckets, *arguments: Any) -> Reply:
    """What an operation replies, or its error, with what browsers must be told to show it to programs of other sites.

    Args:
        work: does the operation.
        call: the request; the first argument of ``work``.
        buckets: of all users; the second one.
        arguments: the others.

    Raises:
        S3Error: the operation fails.
        StorageError: likewise, for a reason that is none of the caller's.
    """
    try:
        reply = work(call, buckets, *arguments)
    except (S3Error, StorageError) as error:
        problem = error if isinstance(error, S3Error) else as_s3_error(error)
        if problem.status >= 500 or isinstance(error, Unauthenticated):
            raise
        problem.headers = (*problem.headers, *_for_browsers(call, buckets))
        raise problem from None
    more = _for_browsers(call, buckets)
    return replace(reply, headers=[*reply.headers, *more]) if more else reply


def _for_browsers(call: Call, buckets: Buckets) -> list[tuple[str, str]]:
    found = buckets.shown(call) if "origin" in call.fields and call.bucket else None
    return [] if found is None else added(found, call.fields, call.head.method)


def added(bucket: Bucket, fields: Mapping[str, str], method: str) -> list[tuple[str, str]]:
    """The headers that a reply gets for a browser; none if no rule allows the request."""
    origin = fields.get("origin")
    return _headers(bucket, origin, method, []) if origin and bucket.cors else []


def _headers(bucket: Bucket, origin: str, method: str, asked: list[str]) -> list[tuple[str, str]]:
    for rule in bucket.cors:
        allowed = next((one for one in rule.get("AllowedOrigin", ()) if _fits(one, origin)), None)
        if allowed is None or method not in rule.get("AllowedMethod", ()):
            continue
        if not all(any(_fits(one.lower(), name) for one in rule.get("AllowedHeader", ())) for name in asked):
            continue
        return _told(rule, "*" if allowed == "*" else origin)
    return []


def _told(rule: Mapping[str, Any], origin: str) -> list[tuple[str, str]]:
    headers = [
        ("access-control-allow-origin", origin),
        ("access-control-allow-methods", ", ".join(rule["AllowedMethod"])),
        ("vary", "Origin, Access-Control-Request-Headers, Access-Control-Request-Method"),
    ]
    if origin != "*":
        headers.append(("access-control-allow-credentials", "true"))
    if exposed := rule.get("ExposeHeader"):
        headers.append(("access-control-expose-headers", ", ".join(exposed)))
    if (age := rule.get("MaxAgeSeconds")) is not None:
        headers.append(("access-control-max-age", str(age)))
    return [(name, value) for name, value in headers if value.isprintable()]


def _fits(pattern: str, text: str) -> bool:
    before, star, after = pattern.partition("*")
    if not star:
        return pattern == text
    return len(text) >= len(before) + len(after) and text.startswith(before) and text.endswith(after)
