"""What S3 knows of an object beside its content, as attributes of a version."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl

from storage import Version
from taskworker.gateways.s3.checksums import ALGORITHMS, BY_HEADER
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.locks import LOCK, Lock

ETAG = "s3-etag"
MARKER = "s3-delete-marker"
NULL = "s3-null"
_REST = "s3"
LISTED = (ETAG, _REST)
"""The attributes that listings need."""

METADATA_BYTES_MAX = 2048
TAGS_MAX = 10
_KEPT = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
_META = "x-amz-meta-"
_DEFAULT_TYPE = "binary/octet-stream"
_ETAG = re.compile(r"[0-9a-f]{32}(-\d{1,5})?")
_PARTS_MAX = 10_000
_TIME_MS_MAX = 253_402_300_799_000  # the year 9999, the last that S3 and HTTP can write
_PARTS_KEPT_MAX = 400
"""Sizes of parts that are kept, run-length coded; the attributes of a version are bounded."""


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum of an object: the algorithm's name, the value in base64, and whether it is of the whole."""

    algorithm: str
    value: str
    kind: str = "FULL_OBJECT"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What is kept with an object.

    Attributes:
        content_type: its media type.
        headers: others that replies have, by names in lower case.
        user: of ``x-amz-meta-``, by names in lower case.
        tags: names and values.
        checksum: of the content; None: none was given.
        parts: run lengths of the sizes of the parts it was made of, ``(size, count)``; empty: of one, or not known.
        etag: in hexadecimal, with the number of parts if there were several; empty: not known.
        is_marker: it is a delete marker.
        is_null: it was made while its bucket had no versions.
        time_ms: when it was put, in milliseconds since 1970.
        lock: what it was put with; None: nothing.
        upload_id: of the multipart upload that it was put by; empty: by none, or not known.
    """

    content_type: str = _DEFAULT_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)
    user: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    checksum: Checksum | None = None
    parts: tuple[tuple[int, int], ...] = ()
    etag: str = ""
    is_marker: bool = False
    is_null: bool = False
    time_ms: int = 0
    lock: Lock | None = None
    upload_id: str = ""

    def attributes(self) -> dict[str, bytes]:
        """As attributes of a version."""
        rest: dict[str, Any] = {"time": self.time_ms}
        if self.content_type != _DEFAULT_TYPE:
            rest["type"] = self.content_type
        for name, mapping in (("headers", self.headers), ("user", self.user), ("tags", self.tags)):
            if mapping:
                rest[name] = dict(mapping)
        rest |= {"upload": self.upload_id} if self.upload_id else {}
        if self.checksum is not None:
            rest["checksum"] = [self.checksum.algorithm, self.checksum.value, self.checksum.kind]
        if 0 < len(self.parts) <= _PARTS_KEPT_MAX:
            rest["parts"] = self.parts
        kept = {_REST: json.dumps(rest, separators=(",", ":"), ensure_ascii=False).encode()}
        if self.etag:
            kept[ETAG] = self.etag.encode()
        if self.is_marker:
            kept[MARKER] = b"1"
        if self.is_null:
            kept[NULL] = b"1"
        if self.lock is not None:
            kept[LOCK] = self.lock.encoded()
        return kept

    def put_at(self, time_ms: int, etag: str, checksum: Checksum | None = None) -> Metadata:
        """This, of a content that was put."""
        return replace(self, time_ms=time_ms, etag=etag, checksum=checksum)

    @property
    def part_sizes(self) -> list[int]:
        """The sizes of the parts in their order."""
        return [size for size, count in self.parts for _ in range(count)]


def metadata_of(version: Version) -> Metadata:
    """What is kept with a version. Files that were not put through S3 have little or nothing of it."""
    kept = version.attributes
    try:
        rest = json.loads(kept.get(_REST, b"{}"))
        checksum = rest.get("checksum")
        etag = kept.get(ETAG, b"").decode()
        return Metadata(
            content_type=_line(rest.get("type", _DEFAULT_TYPE)),
            headers={name: _line(value) for name, value in rest.get("headers", {}).items() if name in _KEPT},
            user={_token(name): _line(value) for name, value in rest.get("user", {}).items()},
            tags={str(name): str(value) for name, value in rest.get("tags", {}).items()},
            checksum=None if checksum is None else _checksum(*checksum),
            parts=_parts(rest.get("parts", ()), version.size),
            etag=etag if _ETAG.fullmatch(etag) else "",
            is_marker=MARKER in kept,
            is_null=NULL in kept,
            time_ms=_time_ms(rest.get("time", version.time_ms)),
            lock=Lock.parse(kept[LOCK]) if LOCK in kept else None,
            upload_id=_line(rest.get("upload", "")),
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        # It was written by others, who may write what they like.
        return Metadata(is_marker=MARKER in kept, time_ms=_time_ms(version.time_ms))


def _time_ms(given: Any) -> int:
    """The nearest time that can be written: authors of versions may give any."""
    return min(max(int(given), 0), _TIME_MS_MAX)


def etag_of(version: Version, metadata: Metadata) -> str:
    """An entity tag, without quotes. Where no MD5 is known, it has a hyphen, so that nobody takes it for one."""
    return metadata.etag or f"{version.version_id[:32]}-1"


def given_metadata(head: Head) -> Metadata:
    """What the headers of a request say about the object that it puts.

    Raises:
        S3Error: it is too much, or malformed.
    """
    fields = head.fields
    encoding = ",".join(
        one
        for piece in fields.get("content-encoding", "").split(",")
        if (one := piece.strip()) not in ("", "aws-chunked")
    )
    headers = {name: value for name in _KEPT if (value := fields.get(name)) and name != "content-encoding"}
    if encoding:
        headers["content-encoding"] = encoding
    user = {name[len(_META) :]: value for name, value in fields.items() if name.startswith(_META) and name != _META}
    return checked_metadata(
        fields.get("content-type") or _DEFAULT_TYPE, headers, user, tags_of(fields.get("x-amz-tagging", ""))
    )


def checked_metadata(
    content_type: str, headers: Mapping[str, str], user: Mapping[str, str], tags: Mapping[str, str]
) -> Metadata:
    """The metadata of an object, if it is within S3's bounds.

    Raises:
        S3Error: it is not.
    """
    size = sum(len(name.encode()) + len(value.encode("utf-8", "replace")) for name, value in user.items())
    if size > METADATA_BYTES_MAX:
        raise S3Error("MetadataTooLarge", f"metadata may have at most {METADATA_BYTES_MAX} bytes", Size=str(size))
    if len(content_type) + sum(map(len, headers.values())) > 2 * METADATA_BYTES_MAX:
        raise S3Error("MetadataTooLarge", f"content headers may have at most {2 * METADATA_BYTES_MAX} bytes")
    return Metadata(content_type, headers, user, tags)


def tags_of(query: str) -> dict[str, str]:
    """The tags of a header ``x-amz-tagging``.

    Raises:
        S3Error: they are malformed, or too many.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=50)
    except ValueError:
        raise S3Error("InvalidArgument", "x-amz-tagging must have the form NAME=VALUE&NAME=VALUE") from None
    return checked_tags(pairs)


def checked_tags(pairs: list[tuple[str, str]], most: int = TAGS_MAX) -> dict[str, str]:
    """Tags by name.

    Raises:
        S3Error: there are too many, or one is too long, empty or given twice.
    """
    tags = dict(pairs)
    if len(tags) != len(pairs):
        raise S3Error("InvalidTag", "a tag is given twice")
    if len(tags) > most:
        raise S3Error("InvalidTag", f"at most {most} tags are allowed")
    for name, value in tags.items():
        if not 1 <= len(name) <= 128 or len(value) > 256:
            raise S3Error("InvalidTag", "the names of tags have 1 to 128 characters, values at most 256")
    return tags


def object_headers(version: Version, metadata: Metadata, *, with_checksum: bool) -> list[tuple[str, str]]:
    """The headers of a reply about an object."""
    headers = [
        ("accept-ranges", "bytes"),
        ("content-type", metadata.content_type),
        ("etag", f'"{etag_of(version, metadata)}"'),
        ("last-modified", formatdate(metadata.time_ms / 1000, usegmt=True)),
        *metadata.headers.items(),
        *((f"{_META}{name}", value) for name, value in metadata.user.items()),
    ]
    if metadata.tags:
        headers.append(("x-amz-tagging-count", str(len(metadata.tags))))
    if with_checksum:
        headers += checksum_headers(metadata.checksum)
    return headers


def checksum_headers(checksum: Checksum | None) -> list[tuple[str, str]]:
    """The headers of a reply that has a checksum."""
    if checksum is None:
        return []
    header = f"x-amz-checksum-{checksum.algorithm.lower()}"
    return [(header, checksum.value), ("x-amz-checksum-type", checksum.kind)] if header in BY_HEADER else []


def _checksum(algorithm: object, value: object, kind: object) -> Checksum:
    if algorithm not in ALGORITHMS:
        raise ValueError(algorithm)
    return Checksum(str(algorithm), _line(value), _line(kind))


def _parts(given: Any, size: int) -> tuple[tuple[int, int], ...]:
    parts = tuple((int(one), int(count)) for one, count in given)
    is_possible = all(one >= 0 and count >= 1 for one, count in parts)
    if (
        not is_possible
        or sum(count for _, count in parts) > _PARTS_MAX
        or sum(one * count for one, count in parts) != size
    ):
        return ()
    return parts


def _line(value: object) -> str:
    """A text that can be the value of a header: nobody may end the header with it."""
    text = str(value)
    if any((ord(letter) < 0x20 and letter != "\t") or ord(letter) == 0x7F for letter in text):
        raise ValueError(text)
    return text


def _token(name: object) -> str:
    text = str(name)
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]{1,256}", text):
        raise ValueError(text)
    return text
