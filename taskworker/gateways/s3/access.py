"""Who else may use a bucket: its policy, ACLs, and what is said about the public and about owners."""

from __future__ import annotations

import threading
from dataclasses import replace

from storage.errors import InvalidArgument, StorageError
from taskworker.gateways.s3.bucket_policies import Grant, grants_in
from taskworker.gateways.s3.buckets import Bucket, Buckets, check_may_set
from taskworker.gateways.s3.calls import Call, Reply, document
from taskworker.gateways.s3.documents import Node, needed, parsed, text_of
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.listing import owner
from taskworker.gateways.s3.multipart import abort_all
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
    """PutBucketPolicy.

    What may be granted is noted before it is, so that whatever is granted when the gateway is killed can be taken back.
    """
    buckets.get(call)
    wanted = grants_in(body, call.bucket, call.user)
    with _alone_with(call):
        former = buckets.reread(call)
        granted = _granted(former)
        for_good = _given(call, for_good=True)
        if ending := sorted(wanted & (_given(call, for_good=False) - for_good) - granted):
            user, name = ending[0]
            raise S3Error(
                "InvalidRequest",
                f"{name!r} is shared with {user!r} for some time already, which a policy would change; take that back "
                "first (taskworker unshare)",
            )
        made = wanted - (for_good - granted)  # what the owner shared by other means is left alone
        _note(call, buckets, body.decode(), granted | made)
        try:
            _take_back(call, granted - made)
            _share(call, made)
        except (StorageError, S3Error):
            _restore(call, buckets, former, made)
            raise
        _note(call, buckets, body.decode(), made)
    return Reply(204)


def delete_policy(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucketPolicy."""
    check_may_set(call)
    buckets.get(call)
    with _alone_with(call):
        _take_back(call, _granted(buckets.reread(call)))
        _note(call, buckets, "", set())
    return Reply(204)


def delete_bucket(call: Call, buckets: Buckets) -> Reply:
    """DeleteBucket, with what its policy granted, and with uploads that are not complete."""

    def before(bucket: Bucket) -> None:
        _take_back(call, _granted(bucket))
        abort_all(call)

    with _alone_with(call):
        buckets.remove(call, before)
    return Reply(204)


def _alone_with(call: Call) -> threading.Lock:
    """Held while a policy is changed with its grants, so that those of two policies do not mix in this gateway."""
    return _STRIPES[hash((call.user, call.bucket)) % len(_STRIPES)]


def _policy(call: Call, buckets: Buckets) -> str:
    policy = buckets.understood(call).policy
    if not policy:
        raise S3Error("NoSuchBucketPolicy", "the bucket has no policy", BucketName=call.bucket)
    return policy


def _note(call: Call, buckets: Buckets, policy: str, granted: set[Grant]) -> None:
    buckets.change(call, lambda bucket: replace(bucket, policy=policy, granted=tuple(sorted(granted))))


def _restore(call: Call, buckets: Buckets, former: Bucket, made: set[Grant]) -> None:
    """Undo a change of a policy of which not all could be done."""
    granted = _granted(former)
    _take_back(call, made - granted)
    _share(call, granted - made)
    _note(call, buckets, former.policy, granted)


def _granted(bucket: Bucket) -> set[Grant]:
    return {Grant(*one) for one in bucket.granted}


def _given(call: Call, *, for_good: bool) -> set[Grant]:
    """What the owner has shared, by policies or otherwise; with ``for_good``, only what does not end by itself."""
    shares = call.client.shares(user_id=call.user).given
    return {Grant(one.with_user, one.name) for one in shares if one.expires_ms is None or not for_good}


def _share(call: Call, grants: set[Grant]) -> None:
    for grant in sorted(grants - _given(call, for_good=True)) if grants else ():
        try:
            call.client.share(grant.name, with_user=grant.user, user_id=call.user)
        except InvalidArgument as error:
            message = f"{grant.user[:80]!r} cannot be let read {grant.name[:80]!r}: {error}"
            raise S3Error("MalformedPolicy", message) from None


def _take_back(call: Call, grants: set[Grant]) -> None:
    for grant in _given(call, for_good=False).intersection(grants) if grants else ():
        try:
            call.client.unshare(grant.name, with_user=grant.user, user_id=call.user)
        except InvalidArgument:
            continue  # somebody else was faster


# -- the public, and owners -----------------------------------------------------------------------------


def get_public_block(call: Call, buckets: Buckets) -> Reply:
    """GetPublicAccessBlock."""
    block = buckets.understood(call).public_block
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
    ownership = buckets.understood(call).ownership
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
