"""Tells the audit trail of calls: which were refused, and which changed something that only some may change.

What a record says of a call's messages are ids, and names of users, functions, secrets, workers and outside hosts.
Values, content, notes, tokens and names of files are never in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from storage.errors import InvalidArgument, PermissionDenied
from taskworker.audit.records import TEXT_CHARACTERS_MAX, Entry
from taskworker.audit.trail import Trail
from taskworker.auth.requirements import NOTHING_ALLOWED, REQUIREMENTS
from taskworker.auth.rights import Right
from taskworker.auth.tls import peer_of_call
from taskworker.errors import Unauthenticated, WorkerRefused
from taskworker.rpc import status
from taskworker.rpc.authorization import KnownCaller

_REFUSALS = (Unauthenticated, PermissionDenied, WorkerRefused)
_CHANGING_RIGHTS = frozenset({Right.OPERATE, Right.DEPLOY, Right.MEMBER, Right.JOIN})
_ALSO = frozenset(
    {
        "taskworker.members.EnrollmentService.Enroll",
        "taskworker.auth.AuthService.LogIn",
        "taskworker.auth.AuthService.GetAccessKey",
        "taskworker.store.StoreService.RotateKey",
        *(f"taskworker.sharing.SharingService.{call}" for call in ("Share", "Unshare", "CreateLink", "RevokeLink")),
        "taskworker.audit.AuditService.ReadTrail",
        "taskworker.audit.AuditService.VerifyTrail",
    }
)
# Calls that workers and their functions make all the time, and change no rights.
_NOT = frozenset(
    {
        "taskworker.pool.PoolService.Describe",
        "taskworker.pool.PoolService.Heartbeat",
        "taskworker.functions.HostingService.Offer",
        "taskworker.outside.OutsideService.GetSecret",
        "taskworker.outside.OutsideService.CallExternalApi",
        "taskworker.outside.OutsideService.Resolve",
        "taskworker.functions.FunctionService.ListHosts",
    }
)
# They are counted, as whoever may make them may do so as often as he likes.
_OFTEN = frozenset(
    {
        "taskworker.auth.AuthService.LogIn",
        "taskworker.auth.AuthService.GetAccessKey",
        "taskworker.audit.AuditService.ReadTrail",
        "taskworker.audit.AuditService.VerifyTrail",
    }
)
_SHOWN = (
    "user",
    "user_id",
    "with_user",
    "role",
    "scopes",
    "token_id",
    "access_key_id",
    "grant_id",
    "link_id",
    "file_id",
    "version_id",
    "function_name",
    "host",
    "rule",
    "worker",
    "worker_id",
    "zone",
    "owner",
)
_SHOWN_OF_SECRETS = ("name", "function_name", "host", "hosts")
_ITEMS_MAX = 8


class CallAudit:
    """Tells a trail of the calls of a server.

    Args:
        trail: what to tell.
    """

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def of_method(self, method: MethodDescriptor) -> MethodAudit:
        """Return what tells of one method's calls."""
        return MethodAudit(method, self._trail)


class MethodAudit:
    """Tells of the calls of one method."""

    def __init__(self, method: MethodDescriptor, trail: Trail) -> None:
        name = method.full_name
        requirement = REQUIREMENTS.get(name, NOTHING_ALLOWED)
        self._trail = trail
        self._call = f"{method.containing_service.name}.{method.name}"
        self._is_change = name in _ALSO or (
            bool(requirement.rights) and requirement.rights <= _CHANGING_RIGHTS and name not in _NOT
        )
        self._is_often = name in _OFTEN
        self._shown = _SHOWN_OF_SECRETS if method.containing_service.name == "SecretService" else _SHOWN

    def ended(
        self, context: grpc.ServicerContext, caller: object, request: object, response: object, error: Exception | None
    ) -> None:
        """Tell of a call that ended.

        Args:
            context: gRPC's.
            caller: the caller, if it is known; otherwise anything.
            request: its message; None: a stream.
            response: the answer; None: a stream, or it failed.
            error: why it failed; None: it did not.
        """
        acted_for = _acts_for_another(caller, request)
        is_refused = isinstance(error, _REFUSALS)
        if not is_refused and not self._is_change and not acted_for:
            return
        who, token = _who(context, caller)
        found = [part for one in (request, response) if isinstance(one, Message) for part in _shown(one, self._shown)]
        on = " ".join(dict.fromkeys(found))[:TEXT_CHARACTERS_MAX]
        entry = Entry(who, token, self._call, on, context.peer() or "", status.code_name(error))
        if error is None and self._is_change and not self._is_often:
            self._trail.add(entry)
        else:
            self._trail.count(entry)


def _who(context: grpc.ServicerContext, caller: object) -> tuple[str, str]:
    if isinstance(caller, KnownCaller):
        principal = caller.principal
        return (principal.user, principal.token) if principal.link is None else (f"link/{principal.token}", "")
    try:
        member = peer_of_call(cast(Mapping[str, Iterable[bytes]], context.auth_context()))
    except InvalidArgument:
        return "", ""
    return f"{member.kind}/{member.name}", ""


def _acts_for_another(caller: object, request: object) -> bool:
    """Whether somebody works on the files of another user: an operator, a user with a grant, or with a link."""
    if not isinstance(caller, KnownCaller):
        return False
    if caller.guest_of or caller.principal.link is not None:
        return True
    if not isinstance(request, Message):
        return False
    owner: Any = getattr(request, "user_id", "")
    return bool(owner) and owner != caller.principal.user


def _shown(message: Message, names: tuple[str, ...], depth: int = 0) -> Iterator[str]:
    for field, value in message.ListFields():
        inner = field.message_type
        if field.name in names and inner is None:
            texts = [value] if isinstance(value, str) else list(value)[:_ITEMS_MAX]
            yield from (f"{field.name}={text}" for text in texts if isinstance(text, str) and text)
        elif depth == 0 and inner is not None and not inner.GetOptions().map_entry:
            for one in [value] if isinstance(value, Message) else list(value)[:_ITEMS_MAX]:
                yield from _shown(one, names, depth + 1)
