"""ListObjects of both versions, and ListObjectVersions."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from storage import Version
from storage.errors import FileNotFound
from taskworker.gateways.s3.buckets import Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.metadata import LISTED, MARKER, etag_of, metadata_of
from taskworker.gateways.s3.names import KEY_BYTES_MAX
from taskworker.gateways.s3.objects import version_id_of
from taskworker.gateways.s3.times import iso

_KEYS_MAX = 1000
_PAGES_MAX = 20
"""Pages that one listing reads; what is left comes with the next one."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    prefix: str
    delimiter: str
    limit: int
    encoded: Callable[[str], str]
    is_encoded: bool

    @classmethod
    def of(cls, call: Call) -> _Wanted:
        asked = call.parameters
        encoding = asked.get("encoding-type", "")
        if encoding not in ("", "url"):
            raise S3Error("InvalidArgument", "encoding-type can only be url", ArgumentName="encoding-type")
        limit = count_of(asked.get("max-keys"), "max-keys", _KEYS_MAX)
        for name in ("prefix", "delimiter", "marker", "start-after", "key-marker"):
            if len(asked.get(name, "").encode("utf-8", "surrogatepass")) > KEY_BYTES_MAX:
                raise S3Error("InvalidArgument", f"{name} may have at most {KEY_BYTES_MAX} bytes", ArgumentName=name)
        return cls(
            asked.get("prefix", ""),
            asked.get("delimiter", ""),
            limit,
            (lambda text: quote(text, safe="/")) if encoding else (lambda text: text),
            bool(encoding),
        )

    def head(self, call: Call) -> list[Node]:
        nodes: list[Node] = [("Name", call.bucket), ("Prefix", self.encoded(self.prefix)), ("MaxKeys", self.limit)]
        if self.delimiter:
            nodes.append(("Delimiter", self.encoded(self.delimiter)))
        if self.is_encoded:
            nodes.append(("EncodingType", "url"))
        return nodes


@dataclass(frozen=True, slots=True)
class _Found:
    files: list[Version]
    prefixes: list[str]
    next_after: str | None


def count_of(text: str | None, name: str, most: int) -> int:
    """A parameter that says how many entries are wanted, at most ``most``.

    Raises:
        S3Error: it is no number.
    """
    if text is None:
        return most
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise S3Error(
            "InvalidArgument", f"{name} must be a number, and not negative", ArgumentName=name, ArgumentValue=text
        )
    return min(int(text), most)


@contextlib.contextmanager
def _as_guest() -> Iterator[None]:
    """Within this context, tell a guest who lists more than is shared what is wrong."""
    try:
        yield
    except FileNotFound:
        raise S3Error("AccessDenied", "the owner shares no list of this; name a prefix that is shared") from None


def list_objects(call: Call, buckets: Buckets) -> Reply:
    """ListObjects, the former version."""
    buckets.get(call)
    wanted = _Wanted.of(call)
    marker = call.parameters.get("marker", "")
    found = _find(call, wanted, marker or None)
    nodes = [*wanted.head(call), ("Marker", wanted.encoded(marker)), ("IsTruncated", found.next_after is not None)]
    if found.next_after is not None and wanted.delimiter:
        nodes.append(("NextMarker", wanted.encoded(found.next_after)))
    return document(("ListBucketResult", [*nodes, *_entries(call, wanted, found, with_owner=True)]))


def list_objects_v2(call: Call, buckets: Buckets) -> Reply:
    """ListObjectsV2."""
    buckets.get(call)
    wanted = _Wanted.of(call)
    asked = call.parameters
    start_after, token = asked.get("start-after", ""), asked.get("continuation-token")
    found = _find(call, wanted, start_after or None if token is None else _from_token(token))
    nodes = [
        *wanted.head(call),
        ("KeyCount", len(found.files) + len(found.prefixes)),
        ("IsTruncated", found.next_after is not None),
    ]
    if token is not None:
        nodes.append(("ContinuationToken", token))
    if start_after:
        nodes.append(("StartAfter", wanted.encoded(start_after)))
    if found.next_after is not None:
        nodes.append(("NextContinuationToken", _token(found.next_after)))
    with_owner = asked.get("fetch-owner") == "true"
    return document(("ListBucketResult", [*nodes, *_entries(call, wanted, found, with_owner=with_owner)]))


def list_versions(call: Call, buckets: Buckets) -> Reply:
    """ListObjectVersions."""
    bucket = buckets.get(call)
    has_versions = bool(bucket.versioning) or not bucket.is_known  # who is not told may see all that the key may read
    wanted = _Wanted.of(call)
    asked = call.parameters
    key_marker, id_marker = asked.get("key-marker", ""), asked.get("version-id-marker", "")
    if id_marker and not key_marker:
        raise S3Error("InvalidArgument", "a version-id-marker needs a key-marker", ArgumentName="version-id-marker")
    entries, next_key, next_id = _versions(call, wanted, key_marker, id_marker, has_versions=has_versions)
    nodes = [
        *wanted.head(call),
        ("KeyMarker", wanted.encoded(key_marker)),
        ("VersionIdMarker", id_marker),
        ("IsTruncated", next_key is not None),
    ]
    if next_key is not None:
        nodes.append(("NextKeyMarker", wanted.encoded(next_key)))
        nodes.append(("NextVersionIdMarker", next_id or ""))
    return document(("ListVersionsResult", [*nodes, *entries]))


def owner(call: Call) -> Node:
    """Whose an object is."""
    return ("Owner", [("ID", call.user), ("DisplayName", call.user)])


def _find(call: Call, wanted: _Wanted, after: str | None) -> _Found:
    files: list[Version] = []
    prefixes: list[str] = []
    start = f"{call.bucket}/"
    if not wanted.limit:
        return _Found([], [], None)
    for _ in range(_PAGES_MAX):
        with _as_guest():
            page = call.client.list_page(
                user_id=call.user,
                prefix=start + wanted.prefix,
                delimiter=wanted.delimiter,
                after=None if after is None else start + after,
                limit=wanted.limit - len(files) - len(prefixes),
                with_attributes=LISTED,
                hidden=MARKER,
            )
        files += page.files
        prefixes += (one.removeprefix(start) for one in page.prefixes)
        after = None if page.next_after is None else page.next_after.removeprefix(start)
        if after is None or len(files) + len(prefixes) >= wanted.limit:
            break
    return _Found([one for one in files if one.filename != start], prefixes, after)


def _entries(call: Call, wanted: _Wanted, found: _Found, *, with_owner: bool) -> list[Node]:
    nodes: list[Node] = []
    for version in found.files:
        metadata = metadata_of(version)
        entry: list[Node] = [
            ("Key", wanted.encoded(version.filename.removeprefix(f"{call.bucket}/"))),
            ("LastModified", iso(metadata.time_ms)),
            ("ETag", f'"{etag_of(version, metadata)}"'),
            ("Size", version.size),
            ("StorageClass", "STANDARD"),
        ]
        if metadata.checksum is not None:
            entry += [("ChecksumAlgorithm", metadata.checksum.algorithm), ("ChecksumType", metadata.checksum.kind)]
        if with_owner:
            entry.append(owner(call))
        nodes.append(("Contents", entry))
    nodes += (("CommonPrefixes", [("Prefix", wanted.encoded(prefix))]) for prefix in found.prefixes)
    return nodes


def _versions(
    call: Call, wanted: _Wanted, key_marker: str, id_marker: str, *, has_versions: bool
) -> tuple[list[Node], str | None, str | None]:
    start = f"{call.bucket}/"
    after: str | None = start + key_marker if key_marker else None
    before: str | None = id_marker or None
    nodes: list[Node] = []
    if not wanted.limit:
        return [], None, None
    for _ in range(_PAGES_MAX):
        with _as_guest():
            page = call.client.list_versions(
                user_id=call.user,
                prefix=start + wanted.prefix,
                delimiter=wanted.delimiter,
                after=after,
                before=before,
                limit=wanted.limit - len(nodes),
            )
        for version in page.versions:
            is_latest = version.version_id in page.latest
            if has_versions or is_latest:
                nodes.append(_version_entry(call, wanted, version, is_latest=is_latest, has_versions=has_versions))
        nodes += (("CommonPrefixes", [("Prefix", wanted.encoded(one.removeprefix(start)))]) for one in page.prefixes)
        after, before = page.next_after, page.next_before
        if after is None or len(nodes) >= wanted.limit:
            break
    return nodes, None if after is None else after.removeprefix(start), before


def _version_entry(call: Call, wanted: _Wanted, version: Version, *, is_latest: bool, has_versions: bool) -> Node:
    metadata = metadata_of(version)
    entry: list[Node] = [
        ("Key", wanted.encoded(version.filename.removeprefix(f"{call.bucket}/"))),
        ("VersionId", version_id_of(version, metadata) if has_versions else "null"),
        ("IsLatest", is_latest),
        ("LastModified", iso(metadata.time_ms)),
    ]
    if metadata.is_marker:
        return ("DeleteMarker", [*entry, owner(call)])
    entry += [("ETag", f'"{etag_of(version, metadata)}"'), ("Size", version.size), ("StorageClass", "STANDARD")]
    return ("Version", [*entry, owner(call)])


def _token(after: str) -> str:
    return base64.urlsafe_b64encode(after.encode()).decode()


def _from_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise S3Error("InvalidArgument", "the continuation token is not one of this gateway's") from None
