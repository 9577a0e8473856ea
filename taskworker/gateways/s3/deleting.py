"""DeleteObjects: many objects by one request."""

from __future__ import annotations

import logging

from storage.errors import StorageError
from taskworker.gateways.s3.buckets import Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.failures import as_s3_error
from taskworker.gateways.s3.objects import removed

_log = logging.getLogger(__name__)
_KEYS_MAX = 1000


def delete_objects(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """DeleteObjects: each has an outcome of its own, whatever becomes of the others.

    Raises:
        S3Error: the request is not what it should be; nothing was deleted.
    """
    versioning = buckets.get(call).versioning
    if "content-md5" not in call.fields and not call.expected.checksums and call.expected.trailing is None:
        raise S3Error("InvalidRequest", "the request needs a Content-MD5 or a checksum of its body")
    root = parsed(body, "Delete")
    objects = root.findall("Object")
    if not 1 <= len(objects) <= _KEYS_MAX:
        raise S3Error("MalformedXML", f"from 1 to {_KEYS_MAX} objects must be listed")
    quiet = (text_of(root, "Quiet") or "").strip().lower() == "true"
    asked = [(needed(one, "Key"), text_of(one, "VersionId"), text_of(one, "ETag")) for one in objects]
    nodes: list[Node] = []
    for key, version_id, match in asked:
        named: list[Node] = [("Key", key)]
        if version_id is not None:
            named.append(("VersionId", version_id))
        try:
            told = dict(removed(call, key, version_id, versioning, match))
        except Exception as error:
            problem = _problem(error)
            nodes.append(("Error", [*named, ("Code", problem.code), ("Message", problem.message)]))
            continue
        if "x-amz-delete-marker" in told:
            named += [("DeleteMarker", True), ("DeleteMarkerVersionId", told["x-amz-version-id"])]
        if not quiet:
            nodes.append(("Deleted", named))
    return document(("DeleteResult", nodes))


def _problem(error: Exception) -> S3Error:
    if isinstance(error, S3Error):
        return error
    if isinstance(error, StorageError):
        return as_s3_error(error)
    _log.error("an object could not be deleted", exc_info=error)
    return S3Error("InternalError", "the gateway failed unexpectedly; its log has the details")
