"""Objects: put, got, copied and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from urllib.parse import unquote

from storage import Version
from storage.errors import ConflictError, FileNotFound, InvalidArgument, VersionNotFound
from storage.limits import BytesLike
from taskworker.gateways.s3.bodies import Body
from taskworker.gateways.s3.buckets import ENABLED, Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Content, Reply, document
from taskworker.gateways.s3.conditions import check_read, matches, range_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.lifecycle import expiration_header
from taskworker.gateways.s3.locks import given_lock, lock_headers
from taskworker.gateways.s3.metadata import (
    Checksum,
    Metadata,
    checksum_headers,
    etag_of,
    given_metadata,
    metadata_of,
    object_headers,
    tags_of,
)
from taskworker.gateways.s3.names import filename
from taskworker.gateways.s3.times import iso

_OVERRIDES = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")
NULL_ID = "null"
"""The id of a version that was made while its bucket had no versions."""
EMPTY_ID = "the id of a version cannot be empty; leave it out to name the newest one"
SHORT = 64 * 1024
"""Content up to this size travels with what is known of it."""
HISTORY_MAX = 1000
UNSUPPORTED_HEADERS = (
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-copy-source-server-side-encryption-customer-algorithm",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
)
_STORAGE_CLASS = "x-amz-storage-class"
ACLS = ("private", "bucket-owner-full-control", "bucket-owner-read")


# -- finding ------------------------------------------------------------------------------------------


def version_id_of(version: Version, metadata: Metadata) -> str:
    """A version's id as S3 shows it."""
    return NULL_ID if metadata.is_null else version.version_id


def found(call: Call, name: str, version_id: str | None) -> tuple[Version, Metadata]:
    """The version of an object that is asked for: no delete marker.

    Raises:
        S3Error: there is none, or it is a delete marker.
    """
    version = _version(call, name, version_id)
    metadata = metadata_of(version)
    if metadata.is_marker:
        headers = (("x-amz-delete-marker", "true"), ("x-amz-version-id", version_id_of(version, metadata)))
        if version_id is None:
            raise S3Error("NoSuchKey", "the object was deleted; its former versions are there", headers=headers)
        raise S3Error("MethodNotAllowed", "this version is a delete marker", headers=(*headers, ("allow", "DELETE")))
    return version, metadata


def no_such_key(name: str) -> S3Error:
    """The error of whoever asks for an object that is not there; ``name`` is that of its file."""
    return S3Error("NoSuchKey", "there is no object with this key", Key=name.partition("/")[2])


def _version(call: Call, name: str, version_id: str | None) -> Version:
    head = call.client.find(name, user_id=call.user)
    if head is None:
        if version_id is None:
            raise no_such_key(name)
        raise S3Error("NoSuchVersion", "there is no such version of the object", VersionId=version_id)
    if version_id in (None, head.version_id):
        return head
    if version_id == NULL_ID:
        return _null_version(call, head)
    try:
        return call.client.stat(head.file_id, user_id=call.user, version_id=version_id)
    except VersionNotFound:
        raise S3Error("NoSuchVersion", "there is no such version of the object", VersionId=version_id) from None
    except InvalidArgument:
        raise S3Error("InvalidArgument", "this is not the id of a version", ArgumentName="versionId") from None


def _null_version(call: Call, head: Version) -> Version:
    if metadata_of(head).is_null:
        return head
    for version in call.client.history(head.file_id, user_id=call.user, limit=HISTORY_MAX):
        if metadata_of(version).is_null:
            return version
    raise S3Error("NoSuchVersion", "there is no version without an id", VersionId=NULL_ID)


def named_source(call: Call) -> tuple[Version, Metadata, str | None]:
    """What ``x-amz-copy-source`` names, its metadata, and the version's id if that was given.

    Raises:
        S3Error: it is malformed, or there is no such object, or a condition is not fulfilled.
    """
    if call.fields.get("x-amz-source-expected-bucket-owner", call.user) != call.user:
        raise S3Error("AccessDenied", "the source is in a bucket of another owner")
    source, mark, version_id = call.fields["x-amz-copy-source"].partition("?versionId=")
    if mark and not version_id:
        raise S3Error("InvalidArgument", EMPTY_ID, ArgumentName="x-amz-copy-source")
    try:
        bucket, slash, key = unquote(source, errors="strict").removeprefix("/").partition("/")
    except UnicodeDecodeError:
        raise S3Error("InvalidArgument", "x-amz-copy-source is not UTF-8") from None
    if not bucket or not slash or not key:
        raise S3Error("InvalidArgument", "x-amz-copy-source must have the form BUCKET/KEY, percent-encoded")
    version, metadata = found(call, filename(bucket, key), version_id or None)
    check_read(call.fields, etag_of(version, metadata), metadata.time_ms, "x-amz-copy-source-")
    return version, metadata, version_id or None


# -- reading ------------------------------------------------------------------------------------------


def get(call: Call, buckets: Buckets) -> Reply:
    """GetObject and HeadObject."""
    is_get = call.head.method == "GET"
    version, metadata, data = _got_in(call, buckets) if is_get else (*_found_in(call, buckets), None)
    return reply_of_get(call, version, metadata, data, lambda: buckets.shown(call))


def reply_of_get(
    call: Call, version: Version, metadata: Metadata, data: bytes | None, shown: Callable[[], Bucket | None]
) -> Reply:
    """The reply to a request for an object that was found.

    Args:
        call: the request.
        version: what was found.
        metadata: of the version.
        data: all of its bytes; None: they are not known yet.
        shown: the object's bucket, as :meth:`Buckets.shown` returns it.

    Raises:
        S3Error: a condition is not fulfilled, or the object has no such range or part.
    """
    asked = call.parameters
    is_get = call.head.method == "GET"
    etag = etag_of(version, metadata)
    check_read(call.fields, etag, metadata.time_ms)
    span = _part_span(call, version, metadata) or range_of(call.fields, version.size, etag)
    offset, length = span or (0, version.size)
    wants_checksum = call.fields.get("x-amz-checksum-mode", "").upper() == "ENABLED" and span is None
    headers = dict(object_headers(version, metadata, with_checksum=wants_checksum))
    headers["content-length"] = str(length)
    headers["x-amz-version-id"] = version_id_of(version, metadata)
    bucket = shown()
    if bucket is not None and bucket.is_known and bucket.object_lock is not None:
        headers |= lock_headers(call, version)
    if "versionId" not in asked:
        headers |= expiration_header(bucket, call.key, version.size, metadata.tags, metadata.time_ms)
    for name in _OVERRIDES:
        if (value := asked.get(f"response-{name}")) is not None:
            headers[name] = _one_line(value)
    if "partNumber" in asked and metadata.parts:
        headers["x-amz-mp-parts-count"] = str(len(metadata.part_sizes))
    if span is not None:
        headers["content-range"] = f"bytes {offset}-{offset + length - 1}/{version.size}"
    content = Content(call.client, call.user, version, offset, length, data) if is_get else None
    return Reply(200 if span is None else 206, [*headers.items()], content=content)


def attributes(call: Call, buckets: Buckets) -> Reply:
    """GetObjectAttributes."""
    wanted = {one.strip() for one in call.fields.get("x-amz-object-attributes", "").split(",")}
    known = {"ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"}
    if not wanted <= known or not wanted:
        raise S3Error("InvalidArgument", f"x-amz-object-attributes must be of {', '.join(sorted(known))}")
    version, metadata = _found_in(call, buckets)
    inner: list[tuple[str, object]] = []
    if "ETag" in wanted:
        inner.append(("ETag", etag_of(version, metadata)))
    if "Checksum" in wanted and metadata.checksum is not None:
        one = metadata.checksum
        inner.append(("Checksum", [(f"Checksum{one.algorithm}", one.value), ("ChecksumType", one.kind)]))
    if "ObjectParts" in wanted and metadata.parts:
        inner.append(("ObjectParts", [("PartsCount", len(metadata.part_sizes))]))
    if "StorageClass" in wanted:
        inner.append(("StorageClass", "STANDARD"))
    if "ObjectSize" in wanted:
        inner.append(("ObjectSize", version.size))
    headers = [item for item in object_headers(version, metadata, with_checksum=False) if item[0] == "last-modified"]
    headers.append(("x-amz-version-id", version_id_of(version, metadata)))
    return document(("GetObjectAttributesResponse", inner), headers=headers)  # type: ignore[arg-type]


def _got_in(call: Call, buckets: Buckets) -> tuple[Version, Metadata, bytes | None]:
    """The version that is asked for, and its content if it is short: by one call of the pool in the usual case."""
    if "versionId" in call.parameters:
        return *_found_in(call, buckets), None
    try:
        version, data = call.client.get_small(call.filename, user_id=call.user, by_name=True, bytes_max=SHORT)
    except FileNotFound:
        return *_found_in(call, buckets), None
    metadata = metadata_of(version)
    if metadata.is_marker:
        return *_found_in(call, buckets), None
    return version, metadata, data


def _found_in(call: Call, buckets: Buckets) -> tuple[Version, Metadata]:
    try:
        return found(call, call.filename, call.parameters.get("versionId"))
    except S3Error as error:
        if error.status == 404:
            buckets.get(call)  # the bucket's absence is what the caller would like to know
        raise


def _part_span(call: Call, version: Version, metadata: Metadata) -> tuple[int, int] | None:
    asked = call.parameters.get("partNumber")
    if asked is None:
        return None
    sizes = metadata.part_sizes or [version.size]
    if "range" in call.fields:
        raise S3Error("InvalidRequest", "either a range or the number of a part can be asked for")
    if not asked.isascii() or not asked.isdigit() or not 1 <= int(asked[:6]) <= 10_000:
        raise S3Error("InvalidArgument", "partNumber must be from 1 to 10000")
    number = int(asked[:6])
    if number > len(sizes):
        raise S3Error("InvalidRange", f"the object has {len(sizes)} parts", ActualPartCount=str(len(sizes)))
    return (0, version.size) if not version.size else (([0, *accumulate(sizes)])[number - 1], sizes[number - 1])


# -- putting ------------------------------------------------------------------------------------------


class Receiving:
    """A content on its way to the store, as :meth:`Client.push` takes it: it is checked before the commit.

    Args:
        pieces: of the request's body.
        body: what it must be.
        metadata: what to keep with the object.
        now_ms: when it is put.
        settled: changes the metadata once all of the content was taken, which may take long.
    """

    def __init__(
        self,
        pieces: Iterable[BytesLike],
        body: Body,
        metadata: Metadata,
        now_ms: int,
        settled: Callable[[Metadata], Metadata] = lambda metadata: metadata,
    ) -> None:
        self._pieces = pieces
        self._body = body
        self._metadata = metadata
        self._now_ms = now_ms
        self._settled = settled

    def whole(self) -> bytes:
        """The content, which is short."""
        return b"".join(self.content())

    def content(self) -> Iterator[BytesLike]:
        """The content, as it comes."""
        for piece in self._pieces:
            yield from self._body.feed(piece)
        self.metadata = self._finished()

    def attributes(self) -> dict[str, bytes]:
        """What to keep with the object, once all of its content was taken."""
        return self.metadata.attributes()

    def _finished(self) -> Metadata:
        received = self._body.finish()
        checksum = next((Checksum(name, value) for name, value in received.checksums.items()), None)
        return self._settled(self._metadata).put_at(self._now_ms, received.etag, checksum)


def put(call: Call, buckets: Buckets, pieces: Iterable[BytesLike], is_short: bool) -> Reply:
    """PutObject."""
    bucket = buckets.settled(call)
    check_supported(call)
    given_lock(call, bucket)

    def settled(metadata: Metadata) -> Metadata:
        nonlocal bucket
        bucket = buckets.settled(call)
        return replace(metadata, is_null=bucket.versioning != ENABLED, lock=given_lock(call, bucket))

    receiving = Receiving(pieces, Body(call.expected), given_metadata(call.head), call.now_ms, settled)
    condition = write_condition(call, call.filename)
    version = _pushed(call, receiving, call.filename, condition, is_short=is_short)
    return reply_of_put(call, bucket, receiving.metadata, version)


def reply_of_put(call: Call, bucket: Bucket, made: Metadata, version: Version) -> Reply:
    """The reply to a request that made a version with such metadata."""
    headers = [
        ("etag", f'"{made.etag}"'),
        *checksum_headers(made.checksum),
        *version_header(bucket.versioning, version),
        *expiration_header(bucket, call.key, version.size, made.tags, made.time_ms),
    ]
    return Reply(200, headers)


def _pushed(call: Call, receiving: Receiving, name: str, condition: WriteCondition, *, is_short: bool) -> Version:
    source: BytesLike | Iterator[BytesLike] = receiving.whole() if is_short else receiving.content()
    try:
        return call.client.push(
            source,
            user_id=call.user,
            filename=name,
            time_ms=call.now_ms,
            attributes=receiving.attributes,
            if_absent=condition.if_absent,
            if_head=condition.if_head,
        )
    except (ConflictError, FileNotFound):
        raise condition.lost() from None


class WriteCondition:
    """What must be true of a name's head when something is put there.

    Attributes:
        if_absent: there must be none.
        if_head: it must be this version.
    """

    def __init__(self, if_absent: bool = False, if_head: str | None = None) -> None:
        self.if_absent = if_absent
        self.if_head = if_head

    def lost(self) -> S3Error:
        """The error of whoever comes second."""
        if self.if_absent:
            return S3Error("PreconditionFailed", "an object with this key exists", Condition="If-None-Match")
        return S3Error("PreconditionFailed", "the object was changed by another request", Condition="If-Match")


def write_condition(call: Call, name: str) -> WriteCondition:
    """What a request that puts something demands of what is there.

    Raises:
        S3Error: it is not so, or is not supported.
    """
    match, none_match = call.fields.get("if-match"), call.fields.get("if-none-match")
    if match is None and none_match is None:
        return WriteCondition()
    if match is not None and none_match is not None:
        raise S3Error("InvalidRequest", "only one of If-Match and If-None-Match can be given")
    if none_match is not None and none_match.strip() != "*":
        raise S3Error("NotImplemented", "If-None-Match of a write can only be *")
    head = call.client.find(name, user_id=call.user)
    metadata = None if head is None else metadata_of(head)
    is_there = metadata is not None and not metadata.is_marker
    if none_match is not None:
        if is_there:
            raise S3Error("PreconditionFailed", "an object with this key exists", Condition="If-None-Match")
        return WriteCondition(if_absent=True) if head is None else WriteCondition(if_head=head.version_id)
    if head is None or metadata is None or not is_there:
        raise S3Error("NoSuchKey", "there is no object with this key", Key=call.key)
    if not matches(match or "", etag_of(head, metadata)):
        raise S3Error("PreconditionFailed", "the object has another entity tag", Condition="If-Match")
    return WriteCondition(if_head=head.version_id)


def check_supported(call: Call) -> None:
    """Refuse what would be promised and not kept.

    Raises:
        S3Error: the request asks for something that there is not.
    """
    for name in UNSUPPORTED_HEADERS:
        if name in call.fields:
            raise S3Error("NotImplemented", f"the header {name} is not supported", Header=name)
    if call.fields.get(_STORAGE_CLASS, "STANDARD") != "STANDARD":
        raise S3Error("NotImplemented", "the only storage class is STANDARD", Header=_STORAGE_CLASS)
    check_private(call)


def check_private(call: Call) -> None:
    """Refuse headers of a request that let others use what it makes.

    Raises:
        S3Error: there are some.
    """
    given = [name for name in call.fields if name.startswith("x-amz-grant-")]
    if given or call.fields.get("x-amz-acl", "private") not in ACLS:
        raise S3Error(
            "NotImplemented",
            "buckets and objects are private; let users read them by put-bucket-policy, or presign a URL",
            Header=given[0] if given else "x-amz-acl",
        )


def version_header(versioning: str, version: Version) -> list[tuple[str, str]]:
    """The header that tells a new version's id, where S3 has it."""
    if not versioning:
        return []
    return [("x-amz-version-id", version.version_id if versioning == ENABLED else NULL_ID)]


def copy(call: Call, buckets: Buckets) -> Reply:
    """CopyObject."""
    bucket = buckets.settled(call)
    check_supported(call)
    source, metadata, source_id = named_source(call)
    replaces = call.fields.get("x-amz-metadata-directive", "COPY") == "REPLACE"
    made = metadata
    if replaces:
        given = given_metadata(call.head)
        made = replace(metadata, content_type=given.content_type, headers=given.headers, user=given.user)
    elif source.filename == call.filename and source_id is None and "x-amz-tagging-directive" not in call.fields:
        raise S3Error("InvalidRequest", "an object can only be copied onto itself with other metadata")
    if call.fields.get("x-amz-tagging-directive", "COPY") == "REPLACE":
        made = replace(made, tags=tags_of(call.fields.get("x-amz-tagging", "")))
    etag = etag_of(source, metadata)
    lock = given_lock(call, bucket)
    made = replace(made, etag=etag, time_ms=call.now_ms, is_null=bucket.versioning != ENABLED, lock=lock, upload_id="")
    condition = write_condition(call, call.filename)
    try:
        version = call.client.copy(
            source.file_id,
            call.filename,
            user_id=call.user,
            version_id=source.version_id,
            attributes=made.attributes(),
            if_absent=condition.if_absent,
            if_head=condition.if_head,
        )
    except (ConflictError, FileNotFound):
        raise condition.lost() from None
    inner = [("LastModified", iso(call.now_ms)), ("ETag", f'"{etag}"')]
    if made.checksum is not None:
        inner.append((f"Checksum{made.checksum.algorithm}", made.checksum.value))
    headers = version_header(bucket.versioning, version)
    headers += expiration_header(bucket, call.key, version.size, made.tags, made.time_ms)
    if not metadata.is_null:
        headers.append(("x-amz-copy-source-version-id", source.version_id))
    return document(("CopyObjectResult", inner), headers=headers)


def _one_line(value: str) -> str:
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in value):
        raise S3Error("InvalidArgument", "the value of a header has no control characters")
    return value
