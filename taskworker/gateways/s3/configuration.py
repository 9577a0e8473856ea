"""What can be set for buckets and objects: versions, tags, rules for browsers; and what cannot."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree.ElementTree import Element

from storage.errors import ConflictError, FileNotFound
from taskworker.gateways.s3.access import checked_ownership
from taskworker.gateways.s3.buckets import ENABLED, SUSPENDED, Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of, texts_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.kept_settings import region_of
from taskworker.gateways.s3.listing import count_of, owner
from taskworker.gateways.s3.locks import LOCK, kept_lock
from taskworker.gateways.s3.metadata import checked_tags
from taskworker.gateways.s3.objects import check_private, found, version_header, version_id_of
from taskworker.gateways.s3.steadiness import alone
from taskworker.gateways.s3.times import iso

_BUCKET_TAGS_MAX = 50
_CORS_RULES_MAX = 100
_METHODS = frozenset(("GET", "PUT", "POST", "DELETE", "HEAD"))


def list_buckets(call: Call, buckets: Buckets) -> Reply:
    """ListBuckets."""
    asked = call.parameters
    limit = count_of(asked.get("max-buckets"), "max-buckets", 10_000)
    prefix, after = asked.get("prefix", ""), asked.get("continuation-token", "")
    every = [one for one in buckets.every(call) if one[0].startswith(prefix) and one[0] > after]
    shown = every[:limit]
    nodes: list[Node] = [
        owner(call),
        ("Buckets", [("Bucket", [("Name", name), ("CreationDate", iso(made_ms))]) for name, made_ms in shown]),
    ]
    if prefix:
        nodes.append(("Prefix", prefix))
    if len(every) > len(shown) > 0:
        nodes.append(("ContinuationToken", shown[-1][0]))
    return document(("ListAllMyBucketsResult", nodes))


def create_bucket(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """CreateBucket."""
    has_lock = call.fields.get("x-amz-bucket-object-lock-enabled", "").lower() == "true"
    check_private(call)
    ownership = call.fields.get("x-amz-object-ownership")
    if ownership is not None:
        checked_ownership(ownership)
    region = (text_of(parsed(body, "CreateBucketConfiguration"), "LocationConstraint") or "") if body.strip() else ""
    try:
        region_of(region)
    except ValueError:
        raise S3Error("InvalidArgument", "LocationConstraint must be the name of a region") from None
    lockable = Bucket(versioning=ENABLED, object_lock={}) if has_lock else Bucket()
    buckets.make(call, replace(lockable, region=region, ownership=ownership or ""))
    return Reply(200, [("location", f"/{call.bucket}")])


def head_bucket(call: Call, buckets: Buckets) -> Reply:
    """HeadBucket."""
    return Reply(200, [("x-amz-bucket-region", buckets.get(call).region or "us-east-1")])


def location(call: Call, buckets: Buckets) -> Reply:
    """GetBucketLocation."""
    return document(("LocationConstraint", buckets.get(call).region))


def get_versioning(call: Call, buckets: Buckets) -> Reply:
    """GetBucketVersioning."""
    status = buckets.understood(call).versioning
    return document(("VersioningConfiguration", [("Status", status)] if status else []))


def put_versioning(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketVersioning."""
    buckets.get(call)
    root = parsed(body, "VersioningConfiguration")
    status = text_of(root, "Status")
    if status not in (ENABLED, SUSPENDED):
        raise S3Error("MalformedXML", f"Status must be {ENABLED} or {SUSPENDED}")
    if text_of(root, "MfaDelete") == "Enabled":
        raise S3Error("NotImplemented", "MFA delete is not supported")

    def changed(bucket: Bucket) -> Bucket:
        if bucket.object_lock is not None and status != ENABLED:
            raise S3Error("InvalidBucketState", "versioning of a bucket with object lock cannot be suspended")
        return replace(bucket, versioning=status)

    with alone(call.user, call.bucket):
        buckets.change(call, changed)
    return Reply(200)


def get_bucket_tags(call: Call, buckets: Buckets) -> Reply:
    """GetBucketTagging."""
    tags = buckets.understood(call).tags
    if not tags:
        raise S3Error("NoSuchTagSet", "the bucket has no tags", BucketName=call.bucket)
    return _tagging(dict(tags))


def put_bucket_tags(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketTagging."""
    buckets.get(call)
    tags = tuple(_tags_in(body, _BUCKET_TAGS_MAX).items())
    buckets.change(call, lambda bucket: replace(bucket, tags=tags))
    return Reply(204)


def delete_bucket_tags(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketTagging."""
    buckets.change(call, lambda bucket: replace(bucket, tags=()))
    return Reply(204)


def get_object_tags(call: Call, _: Buckets) -> Reply:
    """GetObjectTagging."""
    version, metadata = found(call, call.filename, call.parameters.get("versionId"))
    return _tagging(metadata.tags, ("x-amz-version-id", version_id_of(version, metadata)))


def put_object_tags(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutObjectTagging."""
    return _with_tags(call, buckets, _tags_in(body))


def delete_object_tags(call: Call, buckets: Buckets) -> Reply:
    """DeleteObjectTagging."""
    _with_tags(call, buckets, {})
    return Reply(204)


def get_cors(call: Call, buckets: Buckets) -> Reply:
    """GetBucketCors."""
    rules = buckets.understood(call).cors
    if not rules:
        raise S3Error("NoSuchCORSConfiguration", "the bucket has no rules for browsers", BucketName=call.bucket)
    return document(("CORSConfiguration", [("CORSRule", _cors_node(rule)) for rule in rules]))


def put_cors(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketCors."""
    buckets.get(call)
    rules = [_cors_rule(one) for one in parsed(body, "CORSConfiguration").findall("CORSRule")]
    if not 1 <= len(rules) <= _CORS_RULES_MAX:
        raise S3Error("MalformedXML", f"there must be from 1 to {_CORS_RULES_MAX} rules")
    buckets.change(call, lambda bucket: replace(bucket, cors=tuple(rules)))
    return Reply(200)


def delete_cors(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketCors."""
    buckets.change(call, lambda bucket: replace(bucket, cors=()))
    return Reply(204)


def _tagging(tags: Any, *headers: tuple[str, str]) -> Reply:
    entries: list[Node] = [("Tag", [("Key", name), ("Value", value)]) for name, value in tags.items()]
    return document(("Tagging", [("TagSet", entries)]), headers=headers)


def _tags_in(body: bytes, most: int = 10) -> dict[str, str]:
    tags = parsed(body, "Tagging").find("TagSet")
    if tags is None:
        raise S3Error("MalformedXML", "Tagging lacks TagSet")
    return checked_tags([(needed(tag, "Key"), needed(tag, "Value")) for tag in tags.findall("Tag")], most)


def _with_tags(call: Call, buckets: Buckets, tags: dict[str, str]) -> Reply:
    bucket = buckets.settled(call)
    version, metadata = found(call, call.filename, call.parameters.get("versionId"))
    may_be_locked = bucket.object_lock is not None or LOCK in version.attributes
    lock = kept_lock(call, version) if may_be_locked else None
    head = call.client.find(call.filename, user_id=call.user)
    if head is None or head.version_id != version.version_id:
        raise S3Error("NotImplemented", "tags of former versions cannot be changed")
    try:
        made = call.client.copy(
            version.file_id,
            call.filename,
            user_id=call.user,
            version_id=version.version_id,
            attributes=replace(metadata, tags=tags, lock=lock).attributes(),
            if_head=version.version_id,
        )
    except (ConflictError, FileNotFound):
        raise S3Error("OperationAborted", "the object was changed by another request; try again") from None
    return Reply(200, version_header(bucket.versioning, made))


def _cors_rule(element: Element) -> dict[str, Any]:
    rule = {
        name: [*texts_of(element, name)] for name in ("AllowedOrigin", "AllowedMethod", "AllowedHeader", "ExposeHeader")
    }
    if not rule["AllowedOrigin"] or not rule["AllowedMethod"] or not _METHODS.issuperset(rule["AllowedMethod"]):
        raise S3Error("MalformedXML", f"a rule needs AllowedOrigin, and AllowedMethod of {', '.join(sorted(_METHODS))}")
    if any(text.count("*") > 1 for text in (*rule["AllowedOrigin"], *rule["AllowedHeader"])):
        raise S3Error("InvalidRequest", "origins and headers may have one * at most")
    kept: dict[str, Any] = {name: texts for name, texts in rule.items() if texts}
    age = text_of(element, "MaxAgeSeconds")
    if age is not None:
        kept["MaxAgeSeconds"] = count_of(age, "MaxAgeSeconds", 10**9)
    if (name := text_of(element, "ID")) is not None:
        kept["ID"] = name
    return kept


def _cors_node(rule: dict[str, Any]) -> list[Node]:
    nodes: list[Node] = []
    for name, texts in rule.items():
        nodes += [(name, str(text)) for text in (texts if isinstance(texts, list) else [texts])]
    return nodes
