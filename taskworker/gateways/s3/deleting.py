"""Objects and versions are deleted: one, or many by one request."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from storage import DeleteOutcome, Version
from storage.errors import ConflictError, FileNotFound, InvalidArgument, PermissionDenied, StorageError, VersionNotFound
from taskworker.gateways.s3.buckets import ENABLED, Bucket, Buckets, check_undamaged, has_locks, read_settings, untold
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.conditions import matches
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.failures import as_s3_error
from taskworker.gateways.s3.locks import LOCK, check_unlocked, delete_unlocked
from taskworker.gateways.s3.metadata import Metadata, etag_of, metadata_of
from taskworker.gateways.s3.names import filename
from taskworker.gateways.s3.objects import EMPTY_ID, HISTORY_MAX, NULL_ID, version_id_of
from taskworker.gateways.s3.steadiness import steady

_log = logging.getLogger(__name__)
_KEYS_MAX = 1000
_PAGE = 100
"""Versions of a file that are looked at together; each may have attributes of 16 KiB."""
_TRIES = 20


def delete(call: Call, buckets: Buckets) -> Reply:
    """DeleteObject."""
    for name in ("x-amz-if-match-size", "x-amz-if-match-last-modified-time"):
        if name in call.fields:
            raise S3Error("NotImplemented", f"the header {name} is not supported; use If-Match", Header=name)
    headers = removed(call, call.key, call.parameters.get("versionId"), buckets, call.fields.get("if-match"))
    return Reply(204, headers)


def removed(
    call: Call, key: str, version_id: str | None, buckets: Buckets, match: str | None = None
) -> list[tuple[str, str]]:
    """Delete an object, or a version of it, and return what a reply tells of that.

    Raises:
        S3Error: it cannot be deleted.
    """
    with _steady_bucket(call, buckets) as bucket:
        return _removed_in(call, key, version_id, bucket, match)


def _removed_in(
    call: Call, key: str, version_id: str | None, bucket: Bucket, match: str | None
) -> list[tuple[str, str]]:
    for _ in range(_TRIES):
        try:
            told = _begun(call, key, version_id, bucket, match)
            if isinstance(told, Version):
                call.client.delete(told.file_id, user_id=call.user, if_head=told.version_id)
                return []
            return told
        except FileNotFound:
            return []  # somebody else was faster
        except ConflictError:
            continue  # it was put again just now, and may not fulfil the condition any more
    raise S3Error("OperationAborted", "other requests put this object all the time; try again")


@contextlib.contextmanager
def _steady_bucket(call: Call, buckets: Buckets) -> Iterator[Bucket]:
    """The bucket of a call; if it has no versions, it gets none meanwhile in this gateway.

    Raises:
        S3Error: there is none.
    """
    bucket = buckets.settled(call)
    if bucket.versioning:  # that never ends, and then no file is deleted with all of its versions
        yield bucket
        return
    with steady(call.user, call.bucket):
        yield buckets.reread(call)


def delete_unlocked_file(call: Call, head: Version) -> None:
    """Delete a file with all of its versions, if its bucket has no versions now, and none of them is locked.

    The bucket's settings are read again meanwhile, and not changed by this gateway until the file is deleted.

    Args:
        call: about which bucket of whom.
        head: the newest version of the file, as it was decided on.

    Raises:
        S3Error: the bucket has versions now, or one of them is locked, or that cannot be told or is damaged.
        ConflictError: another version is the newest one by now.
        FileNotFound: the file is gone.
    """
    with steady(call.user, call.bucket):
        try:
            kept = call.account.read_own(lambda client: read_settings(client, call.user, call.bucket))
        except PermissionDenied:
            raise untold() from None
        bucket = Bucket() if kept is None else kept[1]
        check_undamaged(bucket, call.bucket)
        if bucket.versioning:
            raise S3Error("OperationAborted", "the bucket was made to keep versions just now; try again")
        _check_file(call, bucket, head)
        call.client.delete(head.file_id, user_id=call.user, if_head=head.version_id)


def _begun(
    call: Call, key: str, version_id: str | None, bucket: Bucket, match: str | None
) -> list[tuple[str, str]] | Version:
    """Like :func:`removed`, but if all of a file may be deleted, its head is returned and nothing is done yet.

    Raises:
        S3Error: it cannot be deleted.
        ConflictError: there is a condition, and another version is the newest one by now.
    """
    if version_id == "":
        raise S3Error("InvalidArgument", EMPTY_ID, ArgumentName="versionId")
    name = filename(call.bucket, key)
    head = call.client.find(name, user_id=call.user)
    metadata = None if head is None else metadata_of(head)
    if match is not None:
        if head is None or metadata is None or metadata.is_marker:
            raise S3Error("NoSuchKey", "there is no object with this key", Key=key)
        if not matches(match, etag_of(head, metadata)):
            raise S3Error("PreconditionFailed", "the object has another entity tag", Condition="If-Match")
    if version_id is not None and (bucket.versioning or version_id != NULL_ID):
        return _removed_version(call, head, version_id, on_condition=match is not None)
    if bucket.versioning:
        return marked(call, name, bucket.versioning, None if match is None or head is None else head.version_id)
    if head is None:
        return []
    _check_file(call, bucket, head)
    return head


def _check_file(call: Call, bucket: Bucket, head: Version) -> None:
    """Check that a file of a bucket without versions may be deleted with its history.

    Raises:
        S3Error: a version of it is locked, or may be.
        ConflictError: it is changed just now.
    """
    may_have_locks = not bucket.created_ms and has_locks(call)
    for version in _history(call, head):
        if may_have_locks or LOCK in version.attributes:
            check_unlocked(call, version)


def _history(call: Call, head: Version) -> Iterator[Version]:
    """All versions of a file, newest first, a page at a time."""
    yield head
    before = head
    while before.parent_id is not None:
        try:
            page = call.client.history(head.file_id, user_id=call.user, limit=_PAGE, before=before.version_id)
        except VersionNotFound as error:
            raise ConflictError(f"versions are deleted just now: {error}", head=head.version_id) from None
        yield from page
        if len(page) < _PAGE:
            return
        before = page[-1]


def marked(call: Call, name: str, versioning: str, if_head: str | None = None) -> list[tuple[str, str]]:
    """Delete an object of a bucket with versions, by a marker; return what a reply tells of that.

    Raises:
        ConflictError, FileNotFound: ``if_head`` is given, and another version is the newest, or none is.
    """
    marker = Metadata(is_marker=True, is_null=versioning != ENABLED, time_ms=call.now_ms)
    version = call.client.push(
        b"",
        user_id=call.user,
        filename=name,
        time_ms=call.now_ms,
        attributes=marker.attributes(),
        if_head=if_head,
    )
    return [("x-amz-delete-marker", "true"), ("x-amz-version-id", version_id_of(version, marker))]


def _removed_version(call: Call, head: Version | None, version_id: str, *, on_condition: bool) -> list[tuple[str, str]]:
    """Delete a version or marker; the one before it is the newest then, if it was that. Nothing, if there is none.

    A condition is about the newest version, as with Amazon, and holds for as long as that is the newest.

    Raises:
        S3Error: the version is locked, or that cannot be told.
        ConflictError: there is a condition, and another version is the newest one by now.
    """
    headers = [("x-amz-version-id", version_id)]
    if head is None:
        return headers
    doomed = _versions_called(call, head, version_id)
    for version in doomed:
        try:
            delete_unlocked(call, version, head.version_id if on_condition else None)
        except (FileNotFound, VersionNotFound):
            continue  # somebody else was faster
    is_marker = any(metadata_of(version).is_marker for version in doomed[-1:])
    return [("x-amz-delete-marker", "true"), *headers] if is_marker else headers


def _versions_called(call: Call, head: Version, version_id: str) -> list[Version]:
    """The version with an id, or all versions without one, of which S3 shows the newest; the oldest first."""
    if version_id == NULL_ID:
        history = call.client.history(head.file_id, user_id=call.user, limit=HISTORY_MAX)
        return [version for version in reversed(history) if metadata_of(version).is_null]
    if version_id == head.version_id:
        return [head]
    try:
        return [call.client.stat(head.file_id, user_id=call.user, version_id=version_id)]
    except (VersionNotFound, InvalidArgument):
        return []


def delete_objects(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """DeleteObjects: each has an outcome of its own, whatever becomes of the others.

    Files that are deleted with all of their versions share messages and flushes.

    Raises:
        S3Error: the request is not what it should be; nothing was deleted.
    """
    buckets.get(call)
    if "content-md5" not in call.fields and not call.expected.checksums and call.expected.trailing is None:
        raise S3Error("InvalidRequest", "the request needs a Content-MD5 or a checksum of its body")
    root = parsed(body, "Delete")
    asked = _asked(root)
    quiet = (text_of(root, "Quiet") or "").strip().lower() == "true"
    with _steady_bucket(call, buckets) as bucket:
        begun = [_begun_or_failed(call, *one, bucket) for one in asked]
        whole = [one.file_id for one in begun if isinstance(one, Version)]
        outcomes = iter([*call.client.delete_many(whole, user_id=call.user)])
    nodes: list[Node] = []
    for (key, version_id, _), told in zip(asked, begun, strict=True):
        named: list[Node] = [("Key", key)]
        if version_id is not None:
            named.append(("VersionId", version_id))
        ended = _outcome_of(next(outcomes)) if isinstance(told, Version) else told
        if isinstance(ended, S3Error):
            nodes.append(("Error", [*named, ("Code", ended.code), ("Message", ended.message)]))
            continue
        headers = dict(ended)
        if "x-amz-delete-marker" in headers:
            named += [("DeleteMarker", True), ("DeleteMarkerVersionId", headers["x-amz-version-id"])]
        if not quiet:
            nodes.append(("Deleted", named))
    return document(("DeleteResult", nodes))


def _asked(root: Element) -> list[tuple[str, str | None, str | None]]:
    """The key, the version and the entity tag of each object that a document lists.

    Raises:
        S3Error: it is malformed, or has conditions that are not supported.
    """
    objects = root.findall("Object")
    if not 1 <= len(objects) <= _KEYS_MAX:
        raise S3Error("MalformedXML", f"from 1 to {_KEYS_MAX} objects must be listed")
    if not all(needed(one, "Key") for one in objects):
        raise S3Error("MalformedXML", "the Key of an object is empty")
    for name in ("LastModifiedTime", "Size"):
        if any(one.find(name) is not None for one in objects):
            raise S3Error("NotImplemented", f"deleting on condition of {name} is not supported; use ETag")
    return [(needed(one, "Key"), text_of(one, "VersionId"), text_of(one, "ETag")) for one in objects]


def _begun_or_failed(
    call: Call, key: str, version_id: str | None, match: str | None, bucket: Bucket
) -> list[tuple[str, str]] | Version | S3Error:
    """What became of one object; if it is to be deleted with all of its versions and others, its head."""
    try:
        if match is not None:  # many files cannot be deleted on conditions at once
            return _removed_in(call, key, version_id, bucket, match)
        return _begun(call, key, version_id, bucket, None)
    except Exception as error:
        return _problem(error)


def _outcome_of(outcome: DeleteOutcome) -> list[tuple[str, str]] | S3Error:
    if outcome.error is None or isinstance(outcome.error, FileNotFound):  # somebody else was faster
        return []
    return _problem(outcome.error)


def _problem(error: Exception) -> S3Error:
    if isinstance(error, S3Error):
        return error
    if isinstance(error, StorageError):
        return as_s3_error(error)
    _log.error("an object could not be deleted", exc_info=error)
    return S3Error("InternalError", "the gateway failed unexpectedly; its log has the details")
