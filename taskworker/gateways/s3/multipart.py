"""Multipart uploads: parts are files of the gateway's own until they are put together."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from xml.etree.ElementTree import Element

from storage import Version
from storage.errors import ConflictError, FileNotFound, PermissionDenied
from storage.limits import BytesLike
from taskworker.gateways.s3 import checksums
from taskworker.gateways.s3.bodies import PUT_BYTES_MAX, Body, Expected
from taskworker.gateways.s3.buckets import ENABLED, Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.checksums import COMPOSITE, FULL_OBJECT
from taskworker.gateways.s3.conditions import range_of
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.lifecycle import expiration_header
from taskworker.gateways.s3.listing import count_of, owner
from taskworker.gateways.s3.locks import given_lock, or_default
from taskworker.gateways.s3.metadata import (
    LISTED,
    Checksum,
    Metadata,
    checksum_headers,
    given_metadata,
    metadata_of,
)
from taskworker.gateways.s3.names import (
    filename,
    no_upload,
    part_name,
    parts_prefix,
    upload_id_in,
    upload_name,
    uploads_prefix,
)
from taskworker.gateways.s3.objects import (
    Receiving,
    check_supported,
    named_source,
    version_header,
    write_condition,
)
from taskworker.gateways.s3.times import iso

PARTS_MAX = 10_000
PART_BYTES_MIN = 5 * 1024 * 1024
_UPLOADS_MAX = 10_000
UPLOAD_KEY = "s3-key"
"""The attribute of an upload's file that has the object's key."""
_PIECE = 1024 * 1024


def create(call: Call, buckets: Buckets) -> Reply:
    """CreateMultipartUpload."""
    lock = given_lock(call, buckets.settled(call), with_default=False)
    check_supported(call)
    filename(call.bucket, call.key)
    metadata = replace(given_metadata(call.head), lock=lock)
    algorithm, kind = _checksum_of_all(call)
    upload_id = secrets.token_hex(16)
    begun = {"key": call.key, "algorithm": algorithm, "kind": kind}
    call.client.push(
        json.dumps(begun).encode(),
        user_id=call.user,
        filename=upload_name(call.bucket, upload_id),
        time_ms=call.now_ms,
        attributes={**replace(metadata, time_ms=call.now_ms).attributes(), UPLOAD_KEY: call.key.encode()},
    )
    headers = [("x-amz-checksum-algorithm", algorithm), ("x-amz-checksum-type", kind)] if algorithm else []
    inner: list[Node] = [("Bucket", call.bucket), ("Key", call.key), ("UploadId", upload_id)]
    return document(("InitiateMultipartUploadResult", inner), headers=headers)


class Begun:
    """A multipart upload that was begun.

    Attributes:
        version: of the file that says so.
        metadata: what to keep with the object.
        algorithm: of the checksums of its parts; empty: there need not be any.
        kind: what the object's checksum is of.
    """

    def __init__(self, version: Version, content: bytes) -> None:
        self.version = version
        self.metadata: Metadata = metadata_of(version)
        try:
            told = json.loads(content)
            self.key, self.algorithm, self.kind = str(told["key"]), str(told["algorithm"]), str(told["kind"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise S3Error("NoSuchUpload", "what the upload began with was changed; abort it, and begin again") from None
        if self.algorithm and self.algorithm not in checksums.ALGORITHMS:
            self.algorithm = ""


def begun(call: Call) -> Begun:
    """The upload that a call names.

    Raises:
        S3Error: there is none.
    """
    upload_id = call.parameters["uploadId"]
    version = call.client.find(upload_name(call.bucket, upload_id), user_id=call.user)
    if version is not None and version.size <= _PIECE:
        found = Begun(version, call.client.get(version.file_id, user_id=call.user, version_id=version.version_id))
        if found.key == call.key:
            return found
    raise no_upload(upload_id)


def put_part(call: Call, _: Buckets, pieces: Iterable[BytesLike], is_short: bool) -> Reply:
    """UploadPart."""
    number = _part_number(call)
    upload = begun(call)
    check_supported(call)
    wanted = () if not upload.algorithm else (checksums.ALGORITHMS[upload.algorithm],)
    expected = replace(call.expected, wanted=call.expected.wanted or wanted)
    receiving = Receiving(pieces, Body(expected), Metadata(), call.now_ms)
    _push_part(call, upload, receiving, number, is_short=is_short)
    made = receiving.metadata
    headers = [item for item in checksum_headers(made.checksum) if item[0] != "x-amz-checksum-type"]
    return Reply(200, [("etag", f'"{made.etag}"'), *headers])


def copy_part(call: Call) -> Reply:
    """UploadPartCopy."""
    number = _part_number(call)
    upload = begun(call)
    source, _, source_id = named_source(call)
    offset, length = 0, source.size
    if (given := call.fields.get("x-amz-copy-source-range")) is not None:
        span = range_of({"range": given}, source.size)
        if span is None:
            raise S3Error("InvalidArgument", "x-amz-copy-source-range must have the form bytes=FIRST-LAST")
        offset, length = span
    if length > PUT_BYTES_MAX:
        raise S3Error("InvalidRequest", f"a part may have at most {PUT_BYTES_MAX} bytes; copy it in ranges")
    wanted = () if not upload.algorithm else (checksums.ALGORITHMS[upload.algorithm],)
    pieces = _pieces_of(call, source, offset, length)
    expected = Expected(size=length, wanted=wanted, needs_md5=call.expected.needs_md5)
    receiving = Receiving(pieces, Body(expected), Metadata(), call.now_ms)
    _push_part(call, upload, receiving, number, is_short=False)
    made = receiving.metadata
    inner: list[Node] = [("LastModified", iso(call.now_ms)), ("ETag", f'"{made.etag}"')]
    if made.checksum is not None:
        inner.append((f"Checksum{made.checksum.algorithm}", made.checksum.value))
    headers = [("x-amz-copy-source-version-id", source.version_id)] if source_id else []
    return document(("CopyPartResult", inner), headers=headers)


def complete(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """CompleteMultipartUpload. Callers that got no answer send it again, and get that of the first time."""
    bucket = buckets.settled(call)
    named = _named_parts(body)
    version = _completed_before(call, named)
    if version is not None:
        _remove_rest(call)
    else:
        try:
            version = _put_together(call, bucket, named)
        except S3Error:
            version = _completed_before(call, named)
            if version is None:  # nor was it done meanwhile, for a caller that did not wait for its answer
                raise
    metadata = metadata_of(version)
    inner: list[Node] = [
        ("Location", f"{call.scheme}://{call.host}{call.head.path}"),
        ("Bucket", call.bucket),
        ("Key", call.key),
        ("ETag", f'"{metadata.etag}"'),
    ]
    if metadata.checksum is not None:
        inner.append((f"Checksum{metadata.checksum.algorithm}", metadata.checksum.value))
        inner.append(("ChecksumType", metadata.checksum.kind))
    headers = version_header(bucket.versioning, version)
    headers += expiration_header(bucket, call.key, version.size, metadata.tags, metadata.time_ms)
    return document(("CompleteMultipartUploadResult", inner), headers=headers)


def _completed_before(call: Call, named: Sequence[tuple[int, Element]]) -> Version | None:
    """The object, if it is what the upload that a call names was completed to, with the same parts."""
    try:
        head = call.client.find(call.filename, user_id=call.user)
    except PermissionDenied:  # by an access key that may write the object, but not read it
        return None
    if head is None:
        return None
    metadata = metadata_of(head)
    if not metadata.upload_id or metadata.upload_id != call.parameters["uploadId"]:
        return None
    try:
        etag = checksums.multipart_etag(_given_etag(element) for _, element in named)
    except ValueError:  # no entity tags
        return None
    return head if metadata.etag == etag else None


def _put_together(call: Call, bucket: Bucket, named: Sequence[tuple[int, Element]]) -> Version:
    """Make the object of its parts, and remove these."""
    upload = begun(call)
    found = {int(one.filename[-5:]): one for one in _parts(call, call.parameters["uploadId"])}
    chosen = [_checked_part(found, number, element) for number, element in named]
    for part in chosen[:-1]:
        if part.size < PART_BYTES_MIN:
            raise S3Error(
                "EntityTooSmall",
                f"all parts but the last must have at least {PART_BYTES_MIN} bytes",
                PartNumber=str(int(part.filename[-5:])),
                ProposedSize=str(part.size),
            )
    told = [metadata_of(part) for part in chosen]
    metadata = replace(
        upload.metadata,
        etag=checksums.multipart_etag(one.etag for one in told),
        checksum=_checksum(call, upload, told, chosen),
        time_ms=call.now_ms,
        is_null=bucket.versioning != ENABLED,
        lock=or_default(upload.metadata.lock, bucket, call.bucket, call.now_ms),
        parts=tuple((size, len([*run])) for size, run in groupby(part.size for part in chosen)),
        upload_id=call.parameters["uploadId"],
    )
    condition = write_condition(call, call.filename)
    try:
        version = call.client.concatenate(
            [(part.file_id, part.version_id) for part in chosen],
            call.filename,
            user_id=call.user,
            time_ms=call.now_ms,
            attributes=metadata.attributes(),
            if_absent=condition.if_absent,
            if_head=condition.if_head,
        )
    except ConflictError:
        raise condition.lost() from None
    except FileNotFound:
        raise S3Error("NoSuchUpload", "parts of the upload are gone; it may have been completed or aborted") from None
    _remove(call, upload.version, found.values())
    return version


def abort(call: Call) -> Reply:
    """AbortMultipartUpload."""
    _abort(call, begun(call).version)
    return Reply(204)


def abort_all(call: Call) -> None:
    """End all uploads to the bucket of a call, which is removed: nobody could complete them, or would miss them."""
    start = uploads_prefix(call.bucket)
    after: str | None = None
    while True:
        page = call.client.list_page(user_id=call.user, prefix=start, after=after)
        for upload in page.files:
            _abort(call, upload)
        after = page.next_after
        if after is None:
            return


def _abort(call: Call, upload: Version) -> None:
    _remove(call, upload, _parts(call, upload_id_in(upload.filename)))


def list_parts(call: Call) -> Reply:
    """ListParts."""
    upload = begun(call)
    asked = call.parameters
    limit = count_of(asked.get("max-parts"), "max-parts", 1000)
    marker = count_of(asked.get("part-number-marker", "0"), "part-number-marker", PARTS_MAX)
    after = part_name(asked["uploadId"], marker)
    page = call.client.list_page(
        user_id=call.user, prefix=parts_prefix(asked["uploadId"]), after=after, limit=limit or 1, with_attributes=LISTED
    )
    files = page.files if limit else []
    more = page.next_after is not None and bool(limit)
    nodes: list[Node] = [("Bucket", call.bucket), ("Key", call.key), ("UploadId", asked["uploadId"])]
    nodes += [("PartNumberMarker", marker), ("MaxParts", limit), ("IsTruncated", more), ("StorageClass", "STANDARD")]
    if more:
        nodes.append(("NextPartNumberMarker", int(files[-1].filename[-5:])))
    if upload.algorithm:
        nodes += [("ChecksumAlgorithm", upload.algorithm), ("ChecksumType", upload.kind)]
    for part in files:
        metadata = metadata_of(part)
        entry: list[Node] = [
            ("PartNumber", int(part.filename[-5:])),
            ("LastModified", iso(metadata.time_ms)),
            ("ETag", f'"{metadata.etag}"'),
            ("Size", part.size),
        ]
        if metadata.checksum is not None:
            entry.append((f"Checksum{metadata.checksum.algorithm}", metadata.checksum.value))
        nodes.append(("Part", entry))
    return document(("ListPartsResult", [*nodes, owner(call), ("Initiator", owner(call)[1])]))


def list_uploads(call: Call, buckets: Buckets) -> Reply:
    """ListMultipartUploads."""
    buckets.get(call)
    asked = call.parameters
    limit = count_of(asked.get("max-uploads"), "max-uploads", 1000)
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    marker = (asked.get("key-marker", ""), asked.get("upload-id-marker", ""))
    start = uploads_prefix(call.bucket)
    known = sorted((key, one.filename.removeprefix(start), one.time_ms) for key, one in _uploads(call, start))
    nodes: list[Node] = []
    rolled: str | None = None
    last = ("", "")
    truncated = False
    for key, upload_id, time_ms in known:
        if not key.startswith(prefix) or (key, upload_id) <= marker or (not marker[1] and key == marker[0] != ""):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: at + len(delimiter)] if at >= 0 else None
        if common is not None and common in (rolled, marker[0]):
            continue
        if len(nodes) >= limit:
            truncated = bool(limit)
            break
        last = (common or key, "" if common else upload_id)
        if common is not None:
            rolled = common
            nodes.append(("CommonPrefixes", [("Prefix", common)]))
            continue
        entry: list[Node] = [("Key", key), ("UploadId", upload_id), ("Initiator", owner(call)[1]), owner(call)]
        nodes.append(("Upload", [*entry, ("StorageClass", "STANDARD"), ("Initiated", iso(time_ms))]))
    head: list[Node] = [
        ("Bucket", call.bucket), ("KeyMarker", marker[0]), ("UploadIdMarker", marker[1]), ("Prefix", prefix),
        ("Delimiter", delimiter), ("MaxUploads", limit), ("IsTruncated", truncated),
    ]  # fmt: skip
    if truncated:
        head += [("NextKeyMarker", last[0]), ("NextUploadIdMarker", last[1])]
    return document(("ListMultipartUploadsResult", [*head, *nodes]))


def _uploads(call: Call, start: str) -> Iterator[tuple[str, Version]]:
    after: str | None = None
    for _ in range(_UPLOADS_MAX // 1000):
        page = call.client.list_page(user_id=call.user, prefix=start, after=after, with_attributes=(UPLOAD_KEY,))
        for one in page.files:
            yield one.attributes.get(UPLOAD_KEY, b"").decode("utf-8", "replace"), one
        after = page.next_after
        if after is None:
            return


def _parts(call: Call, upload_id: str) -> Iterator[Version]:
    after: str | None = None
    prefix = parts_prefix(upload_id)
    for _ in range(PARTS_MAX // 1000 + 1):
        page = call.client.list_page(user_id=call.user, prefix=prefix, after=after, with_attributes=LISTED)
        yield from (one for one in page.files if one.filename[-5:].isdigit())
        after = page.next_after
        if after is None:
            return


def _remove(call: Call, upload: Version, parts: Iterable[Version]) -> None:
    """Remove the parts first: while the upload is there, it can be aborted again. Then those that came meanwhile."""
    _remove_parts(call, parts)
    with contextlib.suppress(FileNotFound):  # somebody else was faster
        call.client.delete(upload.file_id, user_id=call.user)
    _remove_parts(call, _parts(call, upload_id_in(upload.filename)))


def _remove_rest(call: Call) -> None:
    """Remove what is left of a completed upload, whose removal may have been interrupted."""
    upload_id = call.parameters["uploadId"]
    upload = call.client.find(upload_name(call.bucket, upload_id), user_id=call.user)
    if upload is not None:
        _remove(call, upload, _parts(call, upload_id))


def _remove_parts(call: Call, parts: Iterable[Version]) -> None:
    for outcome in call.client.delete_many([part.file_id for part in parts], user_id=call.user):
        if outcome.error is not None and not isinstance(outcome.error, FileNotFound):
            raise outcome.error


def _push_part(call: Call, upload: Begun, receiving: Receiving, number: int, *, is_short: bool) -> None:
    """Store a part; if its upload ended meanwhile, nobody else would remove it.

    Raises:
        S3Error: the upload is gone.
    """
    part = call.client.push(
        receiving.whole() if is_short else receiving.content(),
        user_id=call.user,
        filename=part_name(call.parameters["uploadId"], number),
        time_ms=call.now_ms,
        attributes=receiving.attributes,
    )
    if call.client.find(upload.version.filename, user_id=call.user) is None:
        _remove_parts(call, [part])
        raise no_upload(call.parameters["uploadId"])


def _pieces_of(call: Call, source: Version, offset: int, length: int) -> Iterator[bytes]:
    with call.client.open(source.file_id, user_id=call.user, version_id=source.version_id) as file:
        file.seek(offset)
        while length:
            piece = file.read(min(length, _PIECE))
            if not piece:
                return  # the body is then shorter than expected, which is noticed
            length -= len(piece)
            yield piece


def _part_number(call: Call) -> int:
    text = call.parameters.get("partNumber", "")
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= PARTS_MAX:
        raise S3Error("InvalidArgument", f"partNumber must be from 1 to {PARTS_MAX}", ArgumentName="partNumber")
    return int(text)


def _checksum_of_all(call: Call) -> tuple[str, str]:
    name = call.fields.get("x-amz-checksum-algorithm")
    kind = call.fields.get("x-amz-checksum-type", "").upper()
    if name is None:
        if kind:
            raise S3Error("InvalidRequest", "x-amz-checksum-type needs x-amz-checksum-algorithm")
        return "", ""
    algorithm = checksums.algorithm(name)
    kind = kind or algorithm.default_type
    possible = {FULL_OBJECT: algorithm.combine is not None, COMPOSITE: algorithm.name != "CRC64NVME"}
    if not possible.get(kind, False):
        raise S3Error("InvalidRequest", f"checksums of {algorithm.name} cannot be of type {kind}")
    return algorithm.name, kind


def _named_parts(body: bytes) -> list[tuple[int, Element]]:
    root = parsed(body, "CompleteMultipartUpload")
    named: list[tuple[int, Element]] = []
    for element in root.findall("Part"):
        text = needed(element, "PartNumber").strip()
        if not text.isascii() or not text.isdigit() or len(text) > 5:
            raise S3Error("MalformedXML", "PartNumber must be a number")
        named.append((int(text), element))
    if not 1 <= len(named) <= PARTS_MAX:
        raise S3Error("MalformedXML", f"from 1 to {PARTS_MAX} parts must be listed")
    numbers = [number for number, _ in named]
    if any(first >= second for first, second in pairwise(numbers)):
        raise S3Error("InvalidPartOrder", "parts must be listed by rising number")
    return named


def _checked_part(found: dict[int, Version], number: int, element: Element) -> Version:
    part = found.get(number)
    metadata = None if part is None else metadata_of(part)
    if part is None or metadata is None or metadata.etag != _given_etag(element):
        raise S3Error("InvalidPart", "a part was not uploaded, or has another entity tag", PartNumber=str(number))
    for name in checksums.ALGORITHMS:
        value = text_of(element, f"Checksum{name}")
        has = metadata.checksum
        if value is not None and (has is None or (has.algorithm, has.value) != (name, value.strip())):
            raise S3Error("InvalidPart", "a part has another checksum", PartNumber=str(number))
    return part


def _given_etag(element: Element) -> str:
    return needed(element, "ETag").strip().strip('"')


def _checksum(call: Call, upload: Begun, told: Sequence[Metadata], parts: Sequence[Version]) -> Checksum | None:
    if not upload.algorithm:
        return None
    algorithm = checksums.ALGORITHMS[upload.algorithm]
    values = [one.checksum.value for one in told if one.checksum and one.checksum.algorithm == algorithm.name]
    if len(values) != len(parts):
        raise S3Error("InvalidPart", f"a part has no {algorithm.name}, which was announced when the upload began")
    if upload.kind == FULL_OBJECT:
        value = checksums.combined(algorithm, zip(values, (part.size for part in parts), strict=True))
    else:
        value = checksums.composite(algorithm, values)
    given = call.fields.get(algorithm.header)
    if given is not None and given.partition("-")[0] != value.partition("-")[0]:
        raise S3Error("BadDigest", f"the parts together do not have the {algorithm.name} that the request says")
    return Checksum(algorithm.name, value, upload.kind)
