"""The lifecycle of a bucket's objects: its rules are set, shown and removed, and told in replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from urllib.parse import quote

from taskworker.gateways.s3.buckets import Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, parsed
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.lifecycle_rules import enabled, rule_node, rules_in

_LEAST_SIZE = "x-amz-transition-default-minimum-object-size"
_LEAST_SIZE_DEFAULT = "all_storage_classes_128K"


def get_lifecycle(call: Call, buckets: Buckets) -> Reply:
    """GetBucketLifecycleConfiguration."""
    rules = buckets.understood(call).lifecycle
    if not rules:
        raise S3Error("NoSuchLifecycleConfiguration", "the bucket has no lifecycle rules", BucketName=call.bucket)
    nodes: list[Node] = [rule_node(rule) for rule in rules]
    return document(("LifecycleConfiguration", nodes), headers=[(_LEAST_SIZE, _LEAST_SIZE_DEFAULT)])


def put_lifecycle(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketLifecycleConfiguration."""
    buckets.get(call)
    least = call.fields.get(_LEAST_SIZE, _LEAST_SIZE_DEFAULT)
    if least != _LEAST_SIZE_DEFAULT:
        raise S3Error("NotImplemented", "there are no storage classes that objects could move to", Header=_LEAST_SIZE)
    rules = tuple(rules_in(parsed(body, "LifecycleConfiguration")))
    buckets.change(call, lambda bucket: replace(bucket, lifecycle=rules))
    return Reply(200, [(_LEAST_SIZE, least)])


def delete_lifecycle(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketLifecycle."""
    buckets.change(call, lambda bucket: replace(bucket, lifecycle=()))
    return Reply(204)


def expiration_header(
    bucket: Bucket | None, key: str, size: int, tags: Mapping[str, str], put_ms: int
) -> list[tuple[str, str]]:
    """The header that tells when an object expires, and by which rule; none if it does not."""
    if bucket is None or not bucket.lifecycle:
        return []
    told = [
        (expires_ms, rule.id)
        for rule in enabled(bucket.lifecycle)
        if rule.fits(key, size, tags) and (expires_ms := rule.expires_ms(put_ms)) is not None
    ]
    if not told:
        return []
    expires_ms, rule_id = min(told)
    date = formatdate(expires_ms / 1000, usegmt=True)
    return [("x-amz-expiration", f'expiry-date="{date}", rule-id="{quote(rule_id, errors="replace")}"')]
