"""What each call needs. A call that is not listed here is refused, whoever makes it.

Calls are named as in ``protos/``. A caller needs one of the listed rights. If the caller's token has this right only on
some names, the names in the call's messages must be among these.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from taskworker.auth.rights import Right


class Subject(StrEnum):
    """What the names are of, that a right may be limited to."""

    NONE = "nothing"
    FILE = "file"
    FUNCTION = "function"
    BUNDLE = "bundle"
    """A function whose name is in its bundle, where the service looks it up."""


class Requirement(NamedTuple):
    """What a call needs.

    Attributes:
        rights: the caller needs one of them; with :attr:`all_rights`, each of them.
        subject: what the names in its messages are of.
        is_public: nothing is needed, not even a token.
        needs_user: a token of any user is enough.
        all_rights: all rights are needed.
        takes_candidates: whoever may deploy may make this call for bundles that are tried out.
    """

    rights: frozenset[Right] = frozenset()
    subject: Subject = Subject.NONE
    is_public: bool = False
    needs_user: bool = False
    all_rights: bool = False
    takes_candidates: bool = False


def _one_of(*rights: Right, subject: Subject = Subject.NONE) -> Requirement:
    return Requirement(frozenset(rights), subject)


def _service(name: str, calls: Mapping[str, Requirement]) -> dict[str, Requirement]:
    return {f"{name}.{call}": requirement for call, requirement in calls.items()}


_PUBLIC = Requirement(is_public=True)
_ANY_USER = Requirement(needs_user=True)
_READ = _one_of(Right.READ_FILES, subject=Subject.FILE)
_WRITE = _one_of(Right.WRITE_FILES, subject=Subject.FILE)
_READ_AND_WRITE = Requirement(frozenset({Right.READ_FILES, Right.WRITE_FILES}), Subject.FILE, all_rights=True)
_PUSH = Requirement(frozenset({Right.WRITE_FILES, Right.DEPLOY}), Subject.FILE, takes_candidates=True)
_SHARE = _one_of(Right.WRITE_FILES)  # on all names: a share outlives the token with which it was made
_ROTATE_KEY = _one_of(Right.WRITE_FILES)  # on all names, as the key is that of all files
_CALL = _one_of(Right.CALL, subject=Subject.FUNCTION)
_DEPLOY = _one_of(Right.DEPLOY, subject=Subject.FUNCTION)
_DEPLOY_BUNDLE = _one_of(Right.DEPLOY, subject=Subject.BUNDLE)
_SEE_FUNCTION = _one_of(Right.CALL, Right.DEPLOY, Right.AUDIT, subject=Subject.FUNCTION)
_SEE_LOGS = _one_of(Right.DEPLOY, Right.AUDIT, subject=Subject.FUNCTION)
_AUDIT = _one_of(Right.AUDIT)
_JOIN = _one_of(Right.JOIN)
_OPERATE = _one_of(Right.OPERATE)
_GATEWAY = _one_of(Right.GATEWAY)
_MEMBERS_ONLY = _one_of(Right.MEMBER)

REQUIREMENTS: Mapping[str, Requirement] = {
    **_service(
        "taskworker.FileService", {"Push": _WRITE, "Get": _READ, "Revise": _WRITE, "Synchronous": _READ_AND_WRITE}
    ),
    **_service("taskworker.RPCService", {"CallFunction": _CALL}),
    **_service("taskworker.DNSService", {"ResolveDomain": _one_of(Right.CALL)}),
    **_service(
        "taskworker.store.StoreService",
        {
            "Describe": _ANY_USER,
            "PushStream": _PUSH,
            "PushFile": _PUSH,
            "Concatenate": _READ_AND_WRITE,
            "MissingChunks": _PUSH,
            "GetStream": _READ,
            "LocateShards": _READ,
            "PrepareChunks": _WRITE,
            "PlaceChunks": _WRITE,
            "SettleChunks": _WRITE,
            "GetFile": _READ,
            "GetManifest": _READ,
            "ReviseStream": _WRITE,
            "Stat": _READ,
            "History": _READ,
            "ListFiles": _READ,
            "ListVersions": _READ,
            "Delete": _WRITE,
            "DeleteVersion": _WRITE,
            "DeleteFiles": _WRITE,
            "RotateKey": _ROTATE_KEY,
            "PushMany": _WRITE,
            "GetMany": _READ,
            "GetFiles": _READ,
            "DeleteMany": _WRITE,
            "Stats": _AUDIT,
            "Scrub": _OPERATE,
            "Repair": _OPERATE,
            "Collect": _OPERATE,
            "Rebuild": _OPERATE,
        },
    ),
    **_service(
        "taskworker.functions.FunctionService",
        {
            "Deploy": _DEPLOY_BUNDLE,
            "Undeploy": _DEPLOY,
            "ListFunctions": _SEE_FUNCTION,
            "FunctionHistory": _SEE_FUNCTION,
            "Rollback": _DEPLOY,
            "ListHosts": _one_of(Right.DEPLOY, Right.AUDIT),
            "Logs": _SEE_LOGS,
        },
    ),
    **_service("taskworker.functions.StreamService", {"StreamFunction": _CALL}),
    **_service(
        "taskworker.functions.InvocationService",
        {"Invoke": _MEMBERS_ONLY, "InvokeStream": _MEMBERS_ONLY, "Prepare": _MEMBERS_ONLY, "Cancel": _MEMBERS_ONLY},
    ),
    **_service("taskworker.functions.HostingService", {"Offer": _JOIN, "FetchBundle": _JOIN}),
    # The token of a running call in each message says for whom it is; a worker passes it on.
    **_service("taskworker.outside.OutsideService", {"GetSecret": _JOIN, "CallExternalApi": _JOIN, "Resolve": _JOIN}),
    **_service(
        "taskworker.egress.EgressService",
        {"Allow": _OPERATE, "Deny": _OPERATE, "ListRules": _AUDIT, "AuditLog": _AUDIT},
    ),
    **_service(
        "taskworker.secrets.SecretService",
        {
            "SetSecret": _OPERATE,
            "RotateSecret": _OPERATE,
            "RemoveSecret": _OPERATE,
            "RemoveAllSecrets": _OPERATE,
            "ListSecrets": _AUDIT,
            "GrantSecret": _OPERATE,
            "RevokeSecret": _OPERATE,
            "RotateMasterKey": _OPERATE,
            "GetMasterKey": _OPERATE,
            "NoteMasterKeyCopied": _OPERATE,
        },
    ),
    **_service(
        "taskworker.pool.PoolService",
        {
            "Describe": _JOIN,
            "Join": _JOIN,
            "Heartbeat": _JOIN,
            "Leave": _JOIN,
            "Status": _AUDIT,
            "Drain": _OPERATE,
            "Forget": _OPERATE,
            "GetLayout": _AUDIT,
            "PreviewLayout": _OPERATE,
            "NewJoinToken": _OPERATE,
            "DenyWorker": _OPERATE,
            "EncryptExisting": _OPERATE,
            "Shred": _OPERATE,
        },
    ),
    **_service(
        "taskworker.auth.AuthService",
        {
            "WhoAmI": _ANY_USER,
            "GetAuthorities": _ANY_USER,
            # The identity token in the message says who it is.
            "LogIn": _PUBLIC,
            "ChangeAuthority": _OPERATE,
            "AddUser": _OPERATE,
            "RemoveUser": _OPERATE,
            "DestroyKeys": _OPERATE,
            "ListUsers": _AUDIT,
            "ExportUsers": _OPERATE,
            "ImportUsers": _OPERATE,
            "SetQuota": _OPERATE,
            "CreateToken": _OPERATE,
            "ListTokens": _AUDIT,
            "RevokeToken": _OPERATE,
            "GetAccessKey": _GATEWAY,
            "ListAccessKeys": _GATEWAY,
        },
    ),
    **_service(
        "taskworker.sharing.SharingService",
        {
            "Share": _SHARE,
            "Unshare": _SHARE,
            "ListShares": _one_of(Right.READ_FILES),
            "CreateLink": _SHARE,
            "ListLinks": _one_of(Right.READ_FILES),
            "RevokeLink": _SHARE,
            "Linked": _ANY_USER,
        },
    ),
    **_service("taskworker.audit.AuditService", {"ReadTrail": _AUDIT, "VerifyTrail": _AUDIT}),
    # A worker that enrolls has a token to join with, in the message.
    **_service("taskworker.members.EnrollmentService", {"Enroll": _PUBLIC}),
    **_service("taskworker.members.MemberService", {"Renew": _MEMBERS_ONLY}),
    # Load balancers and supervisors have no tokens. The answer is a state, and nothing else.
    **_service("grpc.health.v1.Health", {"Check": _PUBLIC, "Watch": _PUBLIC, "List": _PUBLIC}),
    **_service("grpc.reflection.v1alpha.ServerReflection", {"ServerReflectionInfo": _ANY_USER}),
}
"""By full name of the call."""

NOTHING_ALLOWED = _MEMBERS_ONLY
"""What a call needs that is not listed: more than anybody has."""
