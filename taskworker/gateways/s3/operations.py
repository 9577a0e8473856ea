"""Which operation of S3 a request asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from taskworker.gateways.s3 import access, deleting, lifecycle, listing, locking, multipart, objects
from taskworker.gateways.s3 import configuration as conf
from taskworker.gateways.s3.accounts import Account
from taskworker.gateways.s3.buckets import Buckets
from taskworker.gateways.s3.calls import Call, Reply
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.objects import EMPTY_ID

Work: TypeAlias = Callable[[Call, Buckets, bytes], Reply]


class Takes(Enum):
    """What an operation does with the body."""

    NOTHING = auto()
    DOCUMENT = auto()
    OBJECT = auto()
    PART = auto()
    FORM = auto()


_LONG = frozenset(("CompleteMultipartUpload", "CopyObject", "UploadPartCopy"))
"""Those whose error may follow a status of 200: of others, programs do not look for it there."""


_FOR_ANYBODY = frozenset(("GetObject", "HeadObject", "ListObjects", "ListObjectsV2", "HeadBucket", "GetBucketLocation"))
"""Those that anybody can do in a public bucket."""
_FOR_GUESTS = _FOR_ANYBODY | {"GetObjectAttributes", "GetObjectTagging", "ListObjectVersions"}
"""Those that grants let other users do."""


class Operation(NamedTuple):
    """An operation.

    Attributes:
        name: as in S3's reference.
        takes: what it does with the body.
        work: what it does; None for those that take an object or a part.
    """

    name: str
    takes: Takes
    work: Work | None = None

    @property
    def is_long(self) -> bool:
        """Whether it may take longer than callers wait for a reply to begin."""
        return self.name in _LONG


def _plain(work: Callable[[Call, Buckets], Reply]) -> Work:
    return lambda call, buckets, _: work(call, buckets)


def _alone(work: Callable[[Call], Reply]) -> Work:
    return lambda call, _buckets, _body: work(call)


def _missing(code: str, what: str) -> Work:
    def work(call: Call, buckets: Buckets, _: bytes) -> Reply:
        buckets.get(call)
        raise S3Error(code, f"the bucket has no {what}", BucketName=call.bucket)

    return work


def _reading(name: str, work: Callable[[Call, Buckets], Reply]) -> Operation:
    return Operation(name, Takes.NOTHING, _plain(work))


def _setting(name: str, work: Work) -> Operation:
    return Operation(name, Takes.DOCUMENT, work)


_SERVICE = {("GET", ""): _reading("ListBuckets", conf.list_buckets)}
_BUCKET = {
    ("GET", ""): _reading("ListObjects", listing.list_objects),
    ("GET", "list-type"): _reading("ListObjectsV2", listing.list_objects_v2),
    ("GET", "versions"): _reading("ListObjectVersions", listing.list_versions),
    ("GET", "uploads"): _reading("ListMultipartUploads", multipart.list_uploads),
    ("GET", "location"): _reading("GetBucketLocation", conf.location),
    ("GET", "versioning"): _reading("GetBucketVersioning", conf.get_versioning),
    ("GET", "tagging"): _reading("GetBucketTagging", conf.get_bucket_tags),
    ("GET", "cors"): _reading("GetBucketCors", conf.get_cors),
    ("GET", "acl"): _reading("GetBucketAcl", access.get_acl),
    ("GET", "policy"): _reading("GetBucketPolicy", access.get_policy),
    ("GET", "policyStatus"): _reading("GetBucketPolicyStatus", access.get_policy_status),
    ("GET", "lifecycle"): _reading("GetBucketLifecycleConfiguration", lifecycle.get_lifecycle),
    ("GET", "encryption"): Operation(
        "GetBucketEncryption",
        Takes.NOTHING,
        _missing("ServerSideEncryptionConfigurationNotFoundError", "encryption of its own; the pool encrypts all"),
    ),
    ("GET", "object-lock"): _reading("GetObjectLockConfiguration", locking.get_configuration),
    ("GET", "replication"): Operation(
        "GetBucketReplication", Takes.NOTHING, _missing("ReplicationConfigurationNotFoundError", "replication")
    ),
    ("GET", "website"): Operation("GetBucketWebsite", Takes.NOTHING, _missing("NoSuchWebsiteConfiguration", "website")),
    ("GET", "publicAccessBlock"): _reading("GetPublicAccessBlock", access.get_public_block),
    ("GET", "ownershipControls"): _reading("GetBucketOwnershipControls", access.get_ownership),
    ("HEAD", ""): _reading("HeadBucket", conf.head_bucket),
    ("PUT", ""): _setting("CreateBucket", conf.create_bucket),
    ("PUT", "versioning"): _setting("PutBucketVersioning", conf.put_versioning),
    ("PUT", "tagging"): _setting("PutBucketTagging", conf.put_bucket_tags),
    ("PUT", "cors"): _setting("PutBucketCors", conf.put_cors),
    ("PUT", "lifecycle"): _setting("PutBucketLifecycleConfiguration", lifecycle.put_lifecycle),
    ("PUT", "object-lock"): _setting("PutObjectLockConfiguration", locking.put_configuration),
    ("PUT", "acl"): _setting("PutBucketAcl", access.put_acl),
    ("DELETE", ""): _reading("DeleteBucket", access.delete_bucket),
    ("DELETE", "tagging"): _reading("DeleteBucketTagging", conf.delete_bucket_tags),
    ("PUT", "policy"): _setting("PutBucketPolicy", access.put_policy),
    ("PUT", "publicAccessBlock"): _setting("PutPublicAccessBlock", access.put_public_block),
    ("PUT", "ownershipControls"): _setting("PutBucketOwnershipControls", access.put_ownership),
    ("DELETE", "policy"): _reading("DeleteBucketPolicy", access.delete_policy),
    ("DELETE", "publicAccessBlock"): _reading("DeletePublicAccessBlock", access.delete_public_block),
    ("DELETE", "ownershipControls"): _reading("DeleteBucketOwnershipControls", access.delete_ownership),
    ("DELETE", "lifecycle"): _reading("DeleteBucketLifecycle", lifecycle.delete_lifecycle),
    ("DELETE", "cors"): _reading("DeleteBucketCors", conf.delete_cors),
    ("POST", "delete"): _setting("DeleteObjects", deleting.delete_objects),
}
_OBJECT = {
    ("GET", ""): _reading("GetObject", objects.get),
    ("HEAD", ""): _reading("HeadObject", objects.get),
    ("GET", "attributes"): _reading("GetObjectAttributes", objects.attributes),
    ("GET", "tagging"): _reading("GetObjectTagging", conf.get_object_tags),
    ("GET", "acl"): _reading("GetObjectAcl", access.get_acl),
    ("GET", "retention"): _reading("GetObjectRetention", locking.get_retention),
    ("GET", "legal-hold"): _reading("GetObjectLegalHold", locking.get_hold),
    ("GET", "uploadId"): Operation("ListParts", Takes.NOTHING, _alone(multipart.list_parts)),
    ("PUT", ""): Operation("PutObject", Takes.OBJECT),
    ("PUT", "copy"): _reading("CopyObject", objects.copy),
    ("PUT", "uploadId"): Operation("UploadPart", Takes.PART),
    ("PUT", "uploadId copy"): Operation("UploadPartCopy", Takes.NOTHING, _alone(multipart.copy_part)),
    ("PUT", "tagging"): _setting("PutObjectTagging", conf.put_object_tags),
    ("PUT", "retention"): _setting("PutObjectRetention", locking.put_retention),
    ("PUT", "legal-hold"): _setting("PutObjectLegalHold", locking.put_hold),
    ("PUT", "acl"): _setting("PutObjectAcl", access.put_acl),
    ("POST", "uploads"): _reading("CreateMultipartUpload", multipart.create),
    ("POST", "uploadId"): _setting("CompleteMultipartUpload", multipart.complete),
    ("DELETE", ""): _reading("DeleteObject", deleting.delete),
    ("DELETE", "uploadId"): Operation("AbortMultipartUpload", Takes.NOTHING, _alone(multipart.abort)),
    ("DELETE", "tagging"): _reading("DeleteObjectTagging", conf.delete_object_tags),
}

SUBRESOURCES = frozenset(
    (
        *("accelerate", "acl", "analytics", "attributes", "cors", "delete", "encryption", "intelligent-tiering"),
        *("inventory", "legal-hold", "lifecycle", "list-type", "location", "logging", "metadataConfiguration"),
        *("metadataTable", "metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus"),
        *("publicAccessBlock", "renameObject", "replication", "requestPayment", "restore", "retention", "select"),
        *("session", "tagging", "torrent", "uploadId", "uploads", "versioning", "versions", "website", "append"),
    )
)
"""Parameters that make a request one of another operation; all of S3's, also those that are not supported."""


def operation_of(head: Head, bucket: str, key: str) -> Operation:
    """The operation that a request asks for.

    Raises:
        S3Error: there is none, or it is not supported.
    """
    if key and head.parameters.get("versionId") == "":
        raise S3Error("InvalidArgument", EMPTY_ID, ArgumentName="versionId")
    asked = sorted(SUBRESOURCES.intersection(head.parameters))
    which = asked[0] if asked else ""
    if len(asked) > 1:
        raise S3Error("InvalidArgument", f"only one of {', '.join(asked)} can be asked for at once")
    if head.method == "PUT" and key and "x-amz-copy-source" in head.fields and which in ("", "uploadId"):
        which = f"{which} copy".strip()
    table = _OBJECT if key else _BUCKET if bucket else _SERVICE
    found = table.get((head.method, which))
    if found is not None:
        return found
    if asked or head.method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        what = f"{head.method} of {'an object' if key else 'a bucket' if bucket else 'the service'}"
        with_what = f" with ?{asked[0]}" if asked else ""
        raise S3Error("NotImplemented", f"{what}{with_what} is not supported")
    raise S3Error("MethodNotAllowed", f"the method {head.method[:20]} is not one of S3's")


def require_public(head: Head, operation: Operation) -> None:
    """Refuse what the public cannot do in a bucket that it may read.

    Raises:
        S3Error: it reads something else than objects as they are now, or lists of them.
    """
    if operation.name not in _FOR_ANYBODY or "versionId" in head.parameters:
        raise S3Error("AccessDenied", "only objects as they are now can be read without a signature")


def visiting(account: Account, operation: Operation, fields: Mapping[str, str], *, is_signed: bool) -> Account:
    """The account to act by: that of the caller, who may be a guest of the bucket's owner, if the request names one.

    Raises:
        S3Error: the bucket is not the named owner's, and no guest can do this, or be sure who is let in.
    """
    owner = fields.get("x-amz-expected-bucket-owner", account.user)
    if owner == account.user:
        return account
    if not is_signed or not account.is_bound or operation.name not in _FOR_GUESTS:
        raise S3Error("AccessDenied", "the bucket is not of this owner, or lets other users do no such thing")
    return replace(account, user=owner, is_guest=True)
