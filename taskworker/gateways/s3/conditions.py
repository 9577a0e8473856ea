"""Conditional requests and ranges."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

from taskworker.gateways.s3.errors import S3Error

_RANGE = re.compile(r"bytes=([0-9]{0,100})-([0-9]{0,100})")  # programs mean the end by numbers such as 2^63 - 2


def check_read(fields: dict[str, str], etag: str, time_ms: int, prefix: str = "") -> None:
    """Check the conditions of a request that reads an object.

    Args:
        fields: the request's headers.
        etag: the object's, without quotes.
        time_ms: when it was put, in milliseconds since 1970.
        prefix: of the headers' names, such as ``x-amz-copy-source-``.

    Raises:
        S3Error: a condition is not fulfilled: PreconditionFailed or NotModified.
    """
    modified_s = time_ms // 1000
    match = fields.get(f"{prefix}if-match")
    none_match = fields.get(f"{prefix}if-none-match")
    if match is not None:
        if not matches(match, etag):
            raise _failed(f"{prefix}if-match")
    elif (since := _seconds(fields.get(f"{prefix}if-unmodified-since"))) is not None and modified_s > since:
        raise _failed(f"{prefix}if-unmodified-since")
    if none_match is not None:
        not_new = matches(none_match, etag)
    else:
        since = _seconds(fields.get(f"{prefix}if-modified-since"))
        not_new = since is not None and modified_s <= since
    if not_new:
        if prefix:
            raise _failed(f"{prefix}if-none-match")
        raise S3Error("NotModified", "the object has not changed", headers=(("etag", f'"{etag}"'),))


def matches(given: str, etag: str) -> bool:
    """Whether an entity tag is among those of a header."""
    return any(one.strip().removeprefix("W/").strip('"') in (etag, "*") for one in given.split(","))


def range_of(fields: dict[str, str], size: int, etag: str = "") -> tuple[int, int] | None:
    """The first byte wanted and how many; None: all of them, also if the range is one that may be ignored.

    Raises:
        S3Error: the range begins behind the end.
    """
    given = fields.get("range")
    if given is None or (fields.get("if-range") is not None and not matches(fields["if-range"], etag)):
        return None
    found = _RANGE.fullmatch(given.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        raise S3Error(
            "InvalidRange",
            "the range begins behind the end of the object",
            headers=(("content-range", f"bytes */{size}"),),
            ActualObjectSize=str(size),
            RangeRequested=given,
        )
    return start, stop - start


def _seconds(date: str | None) -> float | None:
    """Seconds since 1970; None: no date, or one that cannot be understood, which is ignored as HTTP says."""
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _failed(condition: str) -> S3Error:
    return S3Error("PreconditionFailed", "at least one of the conditions does not hold", Condition=condition)
