"""DeleteObjects: many objects by one request."""

from __future__ import annotations

from storage.errors import StorageError
from taskworker.gateways.s3.buckets import Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.failures import as_s3_error
from taskworker.gateways.s3.objects import removed

_KEYS_MAX = 1000


def delete_objects(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """DeleteObjects: each has an outcome of its own."""
    versioning = buckets.get(call).versioning
    if "content-md5" not in call.fields and not call.expected.checksums and call.expected.trailing is None:
        raise S3Error("InvalidRequest", "the request needs a Content-MD5 or a checksum of its body")
    root = parsed(body, "Delete")
    objects = root.findall("Object")
    if not 1 <= len(objects) <= _KEYS_MAX:
        raise S3Error("MalformedXML", f"from 1 to {_KEYS_MAX} objects must be listed")
    quiet = (text_of(root, "Quiet") or "").strip().lower() == "true"
    nodes: list[Node] = []
    for one in objects:
        key, version_id, match = needed(one, "Key"), text_of(one, "VersionId"), text_of(one, "ETag")
        named: list[Node] = [("Key", key)]
        if version_id is not None:
            named.append(("VersionId", version_id))
        try:
            told = dict(removed(call, key, version_id, versioning, match))
        except (S3Error, StorageError) as error:
            problem = as_s3_error(error) if isinstance(error, StorageError) else error
            nodes.append(("Error", [*named, ("Code", problem.code), ("Message", problem.message)]))
            continue
        if "x-amz-delete-marker" in told:
            named += [("DeleteMarker", True), ("DeleteMarkerVersionId", told["x-amz-version-id"])]
        if not quiet:
            nodes.append(("Deleted", named))
    return document(("DeleteResult", nodes))
