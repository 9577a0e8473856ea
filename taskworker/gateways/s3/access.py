"""Who else may use a bucket: its policy, ACLs, and what is said about the public and about owners."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace

from storage.errors import InvalidArgument
from taskworker.gateways.s3.bucket_policies import Grant, grants_in
from taskworker.gateways.s3.buckets import Bucket, Buckets
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.listing import owner
from taskworker.gateways.s3.objects import ACLS, check_private, found

_FULL = "FULL_CONTROL"
_GRANTEE = 'Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"'
_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
OWNERSHIPS = ("BucketOwnerEnforced", "BucketOwnerPreferred")
_STRIPES = [threading.Lock() for _ in range(64)]

# -- ACLs -----------------------------------------------------------------------------------------------


def get_acl(call: Call, buckets: Buckets) -> Reply:
    """GetBucketAcl and GetObjectAcl: all is the owner's."""
    buckets.get(call)
    if call.key:
        found(call, call.filename, call.parameters.get("versionId"))
    grant: list[Node] = [(_GRANTEE, owner(call)[1]), ("Permission", _FULL)]
    return document(("AccessControlPolicy", [owner(call), ("AccessControlList", [("Grant", grant)])]))


def put_acl(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketAcl and PutObjectAcl: only what is so anyway."""
    buckets.get(call)
    if call.key:
        found(call, call.filename, call.parameters.get("versionId"))
    check_private(call)
    if body.strip():
        if not _is_the_owners(call, body):
            raise S3Error("NotImplemented", "only the owner can be in an ACL; let others read by put-bucket-policy")
    elif call.fields.get("x-amz-acl") not in ACLS:
        raise S3Error("MissingSecurityHeader", "the request has neither an ACL nor the header x-amz-acl")
    return Reply(200)


def _is_the_owners(call: Call, body: bytes) -> bool:
    root = parsed(body, "AccessControlPolicy")
    named = root.findtext("Owner/ID")
    grants = root.findall("AccessControlList/Grant")
    return named in (None, call.user) and all(
        text_of(grant, "Permission") == _FULL and grant.findtext("Grantee/ID") == call.user for grant in grants
    )


# -- policies -------------------------------------------------------------------------------------------


def get_policy(call: Call, buckets: Buckets) -> Reply:
    """GetBucketPolicy."""
    return Reply(200, [("content-type", "application/json")], _policy(call, buckets).encode())


def get_policy_status(call: Call, buckets: Buckets) -> Reply:
    """GetBucketPolicyStatus: no policy makes anything public."""
    _policy(call, buckets)
    return document(("PolicyStatus", [("IsPublic", False)]))


def put_policy(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketPolicy."""
    buckets.get(call)
    made = grants_in(body, call.bucket, call.user)
    with _alone_with(call):
        former = _grants(call, buckets.reread(call))
        _take_back(call, former - made)
        buckets.change(call, lambda bucket: replace(bucket, policy=body.decode()))
        shares = call.client.shares(user_id=call.user).given
        shared = {Grant(one.with_user, one.name) for one in shares if one.expires_ms is None}
        for grant in sorted(made - shared):
            _share(call, grant)
    return Reply(204)


def delete_policy(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketPolicy."""
    buckets.get(call)
    with _alone_with(call):
        _take_back(call, _grants(call, buckets.reread(call)))
        buckets.change(call, lambda bucket: replace(bucket, policy=""))
    return Reply(204)


def delete_bucket(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucket, with what its policy granted."""
    with _alone_with(call):
        buckets.remove(call, lambda bucket: _take_back(call, _grants(call, bucket)))
    return Reply(204)


def _alone_with(call: Call) -> threading.Lock:
    """Held while a policy is changed with its grants, so that those of two policies do not mix in this gateway."""
    return _STRIPES[hash((call.user, call.bucket)) % len(_STRIPES)]


def _policy(call: Call, buckets: Buckets) -> str:
    policy = buckets.get(call).policy
    if not policy:
        raise S3Error("NoSuchBucketPolicy", "the bucket has no policy", BucketName=call.bucket)
    return policy


def _grants(call: Call, bucket: Bucket) -> set[Grant]:
    """What a policy that is kept grants; nothing, if others wrote one that makes no sense."""
    try:
        return grants_in(bucket.policy.encode("utf-8", "surrogatepass"), call.bucket, call.user)
    except S3Error:
        return set()


def _share(call: Call, grant: Grant) -> None:
    try:
        call.client.share(grant.name, with_user=grant.user, user_id=call.user)
    except InvalidArgument as error:
        raise S3Error(
            "MalformedPolicy", f"{grant.user[:80]!r} cannot be let read {grant.name[:80]!r}: {error}"
        ) from None


def _take_back(call: Call, grants: Iterable[Grant]) -> None:
    given = {Grant(one.with_user, one.name) for one in call.client.shares(user_id=call.user).given} if grants else set()
    for grant in given.intersection(grants):
        try:
            call.client.unshare(grant.name, with_user=grant.user, user_id=call.user)
        except InvalidArgument:
            continue  # somebody else was faster


# -- the public, and owners -----------------------------------------------------------------------------


def get_public_block(call: Call, buckets: Buckets) -> Reply:
    """GetPublicAccessBlock."""
    block = buckets.get(call).public_block
    if block is None:
        raise S3Error(
            "NoSuchPublicAccessBlockConfiguration", "nothing was said about public access", BucketName=call.bucket
        )
    return document(("PublicAccessBlockConfiguration", [(name, name in block) for name in _BLOCKS]))


def put_public_block(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutPublicAccessBlock: policies and ACLs make nothing public, whatever is said."""
    buckets.get(call)
    root = parsed(body, "PublicAccessBlockConfiguration")
    told = {child.tag: (child.text or "").strip().lower() for child in root}
    if not {*told} <= {*_BLOCKS} or not {*told.values()} <= {"true", "false"}:
        raise S3Error("MalformedXML", f"there may be {', '.join(_BLOCKS)}, each true or false")
    block = tuple(name for name in _BLOCKS if told.get(name) == "true")
    buckets.change(call, lambda bucket: replace(bucket, public_block=block))
    return Reply(200)


def delete_public_block(call: Call, buckets: Buckets) -> Reply:
    """DeletePublicAccessBlock."""
    buckets.change(call, lambda bucket: replace(bucket, public_block=None))
    return Reply(204)


def get_ownership(call: Call, buckets: Buckets) -> Reply:
    """GetBucketOwnershipControls."""
    ownership = buckets.get(call).ownership
    if not ownership:
        raise S3Error("OwnershipControlsNotFoundError", "nothing was said about owners", BucketName=call.bucket)
    return document(("OwnershipControls", [("Rule", [("ObjectOwnership", ownership)])]))


def put_ownership(call: Call, buckets: Buckets, body: bytes) -> Reply:
    """PutBucketOwnershipControls: objects are the bucket owner's, whoever puts them."""
    buckets.get(call)
    rules = parsed(body, "OwnershipControls").findall("Rule")
    if len(rules) != 1:
        raise S3Error("MalformedXML", "OwnershipControls needs one Rule")
    ownership = checked_ownership(needed(rules[0], "ObjectOwnership"))
    buckets.change(call, lambda bucket: replace(bucket, ownership=ownership))
    return Reply(200)


def delete_ownership(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketOwnershipControls."""
    buckets.change(call, lambda bucket: replace(bucket, ownership=""))
    return Reply(204)


def checked_ownership(text: str) -> str:
    """What may be said about who owns objects.

    Raises:
        S3Error: it is not so, or nonsense.
    """
    if text == "ObjectWriter":
        raise S3Error("NotImplemented", "all objects are the bucket owner's, whoever puts them")
    if text not in OWNERSHIPS:
        raise S3Error("MalformedXML", f"ObjectOwnership must be {' or '.join(OWNERSHIPS)}")
    return text
