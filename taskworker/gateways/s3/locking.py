"""Object lock: of buckets, that of new versions, and that of versions that are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from storage import Version
from taskworker.gateways.s3.buckets import ENABLED, Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, number_in, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.locks import MODES, bypasses_governance, change_lock, lock_of, until_in
from taskworker.gateways.s3.objects import found
from taskworker.gateways.s3.steadiness import alone
from taskworker.gateways.s3.times import iso

_DAYS_MAX = 36_500
_YEARS_MAX = 100


def get_configuration(call: Call, buckets: Buckets) -> Reply:
    """GetObjectLockConfiguration."""
    lock = buckets.understood(call).object_lock
    if lock is None:
        raise S3Error("ObjectLockConfigurationNotFoundError", "the bucket has no object lock", BucketName=call.bucket)
    nodes: list[Node] = [("ObjectLockEnabled", ENABLED)]
    if lock:
        nodes.append(("Rule", [("DefaultRetention", [*lock.items()])]))
    return document(("ObjectLockConfiguration", nodes))


def put_configuration(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutObjectLockConfiguration."""
    buckets.get(call)
    root = parsed(body, "ObjectLockConfiguration")
    if needed(root, "ObjectLockEnabled") != ENABLED:
        raise S3Error("MalformedXML", "ObjectLockEnabled must be Enabled")
    default: dict[str, Any] = {}
    if root.find("Rule") is not None:
        retention = root.find("Rule/DefaultRetention")
        if retention is None:
            raise S3Error("MalformedXML", "a Rule needs DefaultRetention")
        default["Mode"] = _mode(needed(retention, "Mode"))
        days, years = text_of(retention, "Days"), text_of(retention, "Years")
        if (days is None) == (years is None):
            raise S3Error("MalformedXML", "DefaultRetention needs either Days or Years")
        name, text, most = ("Days", days, _DAYS_MAX) if days is not None else ("Years", years, _YEARS_MAX)
        default[name] = number_in(text or "", name, 1, most)

    def changed(bucket: Bucket) -> Bucket:
        if bucket.versioning != ENABLED:
            raise S3Error("InvalidBucketState", "object lock needs versioning; enable that first")
        return replace(bucket, object_lock=default)

    with alone(call.user, call.bucket):
        buckets.change(call, changed)
    return Reply(200)


def get_retention(call: Call, buckets: Buckets) -> Reply:
    """GetObjectRetention."""
    lock = lock_of(call, _locked(call, buckets))
    if not lock.mode:
        raise S3Error("NoSuchObjectLockConfiguration", "the version has no retention", Key=call.key)
    return document(("Retention", [("Mode", lock.mode), ("RetainUntilDate", iso(lock.until_ms))]))


def put_retention(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutObjectRetention."""
    version = _locked(call, buckets)
    root = parsed(body, "Retention")
    mode, until_ms = "", 0
    if len(root):
        mode = _mode(needed(root, "Mode"))
        until_ms = until_in(needed(root, "RetainUntilDate"), call.now_ms)
    bypasses = bypasses_governance(call)
    change_lock(call, version, lambda lock: lock.changed_to(mode, until_ms, call.now_ms, bypasses=bypasses))
    return Reply(200)


def get_hold(call: Call, buckets: Buckets) -> Reply:
    """GetObjectLegalHold."""
    lock = lock_of(call, _locked(call, buckets))
    if lock.hold is None:
        raise S3Error("NoSuchObjectLockConfiguration", "the version has no legal hold", Key=call.key)
    return document(("LegalHold", [("Status", "ON" if lock.hold else "OFF")]))


def put_hold(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutObjectLegalHold."""
    version = _locked(call, buckets)
    status = needed(parsed(body, "LegalHold"), "Status")
    if status not in ("ON", "OFF"):
        raise S3Error("MalformedXML", "Status must be ON or OFF")
    change_lock(call, version, lambda lock: replace(lock, hold=status == "ON"))
    return Reply(200)


def _locked(call: Call, buckets: Buckets) -> Version:
    if buckets.understood(call).object_lock is None:
        raise S3Error("InvalidRequest", "the bucket has no object lock; put-object-lock-configuration enables it")
    return found(call, call.filename, call.parameters.get("versionId"))[0]


def _mode(text: str) -> str:
    if text not in MODES:
        raise S3Error("MalformedXML", f"Mode must be {' or '.join(MODES)}")
    return text
