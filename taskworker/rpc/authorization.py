"""Finds out who calls, and refuses what the caller may not do, before a service sees anything of the call.

The token in a call's metadata says who calls, and ``auth.requirements`` what the call needs. A ``user_id`` in a message
must be the caller's own. If it is empty, it becomes that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from storage.errors import FileNotFound, PermissionDenied
from taskworker.auth.requirements import NOTHING_ALLOWED, REQUIREMENTS, Requirement, Subject
from taskworker.auth.rights import CANDIDATE_OWNER, Principal, Right
from taskworker.errors import Unauthenticated
from taskworker.protos import store_pb2, taskworker_pb2
from taskworker.rpc.admission import Entry, Gate, Place
from taskworker.rpc.conversion import parsed
from taskworker.rpc.guests import Grants, Guests, HeadOf, Hidden, LinkedCalls, with_author
from taskworker.rpc.message_fields import ids_in, messages_at, names_in, paths_to_owners
from taskworker.rpc.refusals import Refusals
from taskworker.rpc.shown_versions import ShownVersions
from taskworker.rpc.token_channel import METADATA_KEY

_SCHEME = "bearer "
_INHERITED = (("part", "header"),)
"""Where an empty ``user_id`` stands for that of an earlier message."""

Check = Callable[[Any], Any]
"""Returns a message that the caller may send, or raises PermissionDenied or FileNotFound."""


class Authenticator(Protocol):
    """Knows tokens."""

    def principal_of(self, text: str) -> Principal:
        """Return who has this token; raise Unauthenticated if nobody has."""

    def user_of(self, text: str) -> str:
        """Return the user whose token this is, be it valid or not; empty: nobody's."""


class AuditOfMethod(Protocol):
    """Is told of one method's calls."""

    def ended(
        self, context: grpc.ServicerContext, caller: object, request: object, response: object, error: Exception | None
    ) -> None:
        """Take note of a call that ended, well or with an error."""


class Audit(Protocol):
    """Is told of calls."""

    def of_method(self, method: MethodDescriptor) -> AuditOfMethod:
        """Return what is told of one method's calls."""


class _WithMetadata(Protocol):
    def invocation_metadata(self) -> object: ...


Identify = Callable[[Any], Principal]
"""Returns who makes a call, from gRPC's ServicerContext; raises Unauthenticated or PermissionDenied."""


class KnownCaller:
    """A caller of which it is known who it is; apart from that, gRPC's ServicerContext."""

    __slots__ = ("_context", "guest_of", "hidden", "principal")

    def __init__(self, context: object, principal: Principal) -> None:
        self._context = context
        self.principal = principal
        self.guest_of = ""  # the owner of the files, if it is another who has shared them
        self.hidden: Hidden = _nothing_hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def user_of(caller: object) -> str | None:
    """Return the user who calls; None if no guard has looked at the call. Whoever has a link is nobody's user."""
    if not isinstance(caller, KnownCaller):
        return None
    return caller.principal.user if caller.principal.link is None else ""


def note_of(caller: object) -> str:
    """The note of a version for which the call's message has none: who stores it, among the files of another."""
    return with_author("", caller.principal.user) if isinstance(caller, KnownCaller) and caller.guest_of else ""


def is_guest(caller: object) -> bool:
    """Whether the caller works on files that another has shared; known once the first message was checked."""
    return isinstance(caller, KnownCaller) and bool(caller.guest_of)


def hidden_from(caller: object) -> Hidden:
    """Which files of a call on many the caller does not see; known once the first message was checked."""
    return caller.hidden if isinstance(caller, KnownCaller) else _nothing_hidden


def _nothing_hidden(_name: str, _file_id: str) -> None:
    return None


def require_right(caller: object, right: Right, name: str) -> None:
    """Check that a caller may use a right on something of this name, which only the service could find out.

    A caller that no guard has looked at may do everything.

    Raises:
        PermissionDenied: the caller may not.
    """
    if isinstance(caller, KnownCaller) and not caller.principal.may(right, name):
        raise PermissionDenied(f"the token allows to {right} other names than {name[:80]!r}")


def by_token(authenticator: Authenticator) -> Identify:
    """Identify callers by the tokens that they send."""
    return lambda caller: authenticator.principal_of(token_of(caller.invocation_metadata()))


class Sharing:
    """What the users of a server share.

    Args:
        calls: the places for all calls.
        refusals: delays those of users who are refused too often.
        user_of_token: returns the user whose token this is, be it valid or not; empty: nobody's.

    Attributes:
        refusals: the argument.
    """

    def __init__(self, calls: Gate, refusals: Refusals, user_of_token: Callable[[str], str]) -> None:
        self.refusals = refusals
        self._calls = calls
        self._user_of_token = user_of_token

    def user_of(self, metadata: object) -> str:
        """The user whose call begins. All callers without a token count as one user, who has no name."""
        token = _shown_token(metadata)
        return "" if token is None else self._user_of_token(token)

    def place(self, user: str) -> Place:
        """Take one of the places for all calls.

        Raises:
            ServerBusy: the user holds too many.
        """
        return self._calls.place(user).take()


class Guard:
    """Guards the calls of a server.

    Args:
        identify: finds out who makes a call.
        head_of: looks up files; None: there are none.
        user_of_token: returns the user whose token this is, be it valid or not; empty: nobody's. None: the places for
            calls are not divided among users.
        audit: is told of calls; None: nothing is.
        grants: knows what users have shared; None: nothing is.
        entry: gives calls their places, where callers are known by their certificates.

    Attributes:
        audit: see above.
        entry: see above.
    """

    def __init__(
        self,
        identify: Identify,
        head_of: HeadOf | None = None,
        user_of_token: Callable[[str], str] | None = None,
        audit: Audit | None = None,
        grants: Grants | None = None,
        entry: Entry | None = None,
    ) -> None:
        self.audit = audit
        self.entry = entry
        self._identify = identify
        self._user_of_token = user_of_token
        self._head_of = head_of
        self._grants = grants
        self._sharing: Sharing | None = None
        self._shown = ShownVersions()

    def divide(self, calls: Gate, refusals: Refusals) -> bool:
        """Divide the places for all calls of the server among its users, and delay their refusals.

        Returns:
            Whether that is so: not if users cannot be told apart.
        """
        if self._user_of_token is not None:
            self._sharing = Sharing(calls, refusals, self._user_of_token)
        return self._sharing is not None

    def _shared(self) -> Sharing | None:
        return self._sharing

    def of_method(self, method: MethodDescriptor) -> MethodGuard:
        """Return the guard of one method."""
        requirement = REQUIREMENTS.get(method.full_name, NOTHING_ALLOWED)
        guests = None
        if self._grants is not None and self._head_of is not None:
            guests = Guests(method.full_name, self._grants, self._head_of)
        return MethodGuard(method, requirement, self._identify, self._head_of, guests, self._shared, self._shown)


class MethodGuard:
    """Guards one method."""

    def __init__(
        self,
        method: MethodDescriptor,
        requirement: Requirement,
        identify: Identify,
        head_of: HeadOf | None,
        guests: Guests | None,
        shared: Callable[[], Sharing | None],
        shown: ShownVersions,
    ) -> None:
        self._shared = shared
        # Workers' calls are never turned away for what users do. Callers without a token count as one user.
        self._is_divided = requirement.rights != {Right.JOIN}
        self._call = f"{method.containing_service.name}.{method.name}"
        self._requirement = requirement
        self._identify = identify
        self._head_of = head_of
        self._guests = guests
        self._linked = LinkedCalls(method.full_name, head_of, shown)
        self._owners = list(paths_to_owners(method.input_type))

    def sharing(self) -> Sharing | None:
        """What users share for these calls; None: they take nothing of it."""
        return self._shared() if self._is_divided else None

    def identified(self, context: _WithMetadata) -> object:
        """Return the caller as the service gets it.

        Raises:
            Unauthenticated: the caller shows no valid token.
        """
        if self._requirement.is_public:
            return context
        return KnownCaller(context, self._identify(context))

    def admit(self, caller: object) -> Check:
        """Return the check for each of a caller's messages.

        Raises:
            PermissionDenied: the caller has no right to make this call.
        """
        if not isinstance(caller, KnownCaller):
            return _unchecked
        principal = caller.principal
        if principal.link is not None:
            self._linked.require_allowed()
            return partial(self._linked.limited, principal.user, principal.token, principal.link)
        if not self._requirement.needs_user:
            self._require_right(principal)
        return partial(self._checked, principal, caller)

    def _require_right(self, principal: Principal) -> None:
        requirement = self._requirement
        found = [principal.has(right) for right in requirement.rights]
        if not (all(found) if requirement.all_rights else any(found)):
            needed = (" and " if requirement.all_rights else " or ").join(sorted(requirement.rights))
            raise PermissionDenied(
                f"{self._call} needs the right {needed}, which this token of {principal.user} has not"
            )
        if requirement.subject is Subject.NONE and not self._may(principal, ""):
            raise PermissionDenied(f"{self._call} needs a right that is not limited to some names")

    def _may(self, principal: Principal, name: str) -> bool:
        found = [principal.may(right, name) for right in self._requirement.rights]
        return all(found) if self._requirement.all_rights else any(found)

    def _checked(self, principal: Principal, caller: KnownCaller, message: Any) -> Any:
        if not isinstance(message, Message):
            return message  # a view of data, which belongs to what an earlier message names
        if self._guests is not None and self._guests.admit(principal, caller, message, self._owners):
            return message
        found = [
            self._check_owner(principal, holder, is_inherited=path in _INHERITED)
            for path in self._owners
            for holder in messages_at(message, path)
        ]
        if isinstance(message, taskworker_pb2.SynchronousRequest):
            self._check_state(principal, message)
        if any(found) or self._requirement.needs_user:
            return message
        if self._requirement.takes_candidates and found and not principal.has(Right.WRITE_FILES):
            raise PermissionDenied(f"this token of {principal.user} has no right to write files")
        if self._requirement.subject is Subject.FILE:
            self._check_files(principal, message)
        elif self._requirement.subject is Subject.FUNCTION and not self._may(
            principal, getattr(message, "function_name", "")
        ):
            raise PermissionDenied(f"this token of {principal.user} has a right to other functions only")
        return message

    def _check_owner(self, principal: Principal, holder: Any, *, is_inherited: bool) -> bool:
        """Check the ``user_id`` of a message; return whether it is that of the owner of candidates."""
        owner: str = holder.user_id
        if not owner:
            if not is_inherited:
                holder.user_id = principal.user
            return False
        if owner == CANDIDATE_OWNER and self._requirement.takes_candidates and principal.has(Right.DEPLOY):
            if isinstance(holder, store_pb2.PushHeader):
                # Who pays for it, and since when it waits, is not for the caller to say.
                holder.note = principal.user
                holder.ClearField("time_ms")
            return True
        if not principal.may_act_for(owner):
            raise PermissionDenied(
                f"this token is of user {principal.user}, who cannot act for {owner[:80]!r}; leave user_id empty"
            )
        return False

    def _check_state(self, principal: Principal, message: taskworker_pb2.SynchronousRequest) -> None:
        """Check the owner in a message within the message."""
        if message.difference:
            state = parsed(store_pb2.SyncState.FromString, message.difference, "difference")
            before = state.user_id
            self._check_owner(principal, state, is_inherited=False)
            if state.user_id != before:
                message.difference = state.SerializeToString()

    def _check_files(self, principal: Principal, message: Message) -> None:
        if self._may(principal, ""):
            return
        for name in names_in(message):
            if not self._may(principal, name):
                raise PermissionDenied(f"this token of {principal.user} has a right to other files only")
        for file_id in ids_in(message):
            # Outside of the names it is limited to, a token does not learn what there is.
            if self._head_of is None or not self._may(principal, self._head_of(file_id, principal.user).filename):
                raise FileNotFound(f"there is no file {file_id[:80]!r}; list the files to see what there is")


def _unchecked(message: Any) -> Any:
    return message


def _shown(metadata: object) -> list[object]:
    return [value for key, value in metadata or () if key == METADATA_KEY]  # type: ignore[attr-defined]


def _shown_token(metadata: object) -> str | None:
    """The token of a call; None if there is none, or more than one."""
    found = _shown(metadata)
    if len(found) == 1 and isinstance(found[0], str) and found[0][: len(_SCHEME)].lower() == _SCHEME:
        return found[0][len(_SCHEME) :].strip()
    return None


def token_of(metadata: object) -> str:
    """Return the token in a call's metadata.

    Raises:
        Unauthenticated: there is none.
    """
    token = _shown_token(metadata)
    if token is not None:
        return token
    what = "sends no token" if not _shown(metadata) else "sends a token in a form that is not understood"
    raise Unauthenticated(
        f"the caller {what}, and this server serves nobody whom it does not know; get a token from its operator, and "
        "`taskworker login` with it (or send `authorization: Bearer TOKEN`); if the caller is of a release without "
        "tokens, install this server's"
    )
