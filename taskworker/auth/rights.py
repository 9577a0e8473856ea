"""What users may do: the rights of their roles, and the scopes that limit tokens to a part of these."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from storage.errors import InvalidArgument

CANDIDATE_OWNER = "taskworker:candidates"
"""The user who owns bundles while they are tried out. Whoever may deploy may push files of this user."""
TARGET_CHARACTERS_MAX = 1024
"""Length of a scope's prefix or name: that of a filename."""


class Right(StrEnum):
    """Something that a caller may be allowed to do. Its value is the scope that allows it."""

    READ_FILES = "files:read"
    WRITE_FILES = "files:write"
    CALL = "call"
    DEPLOY = "deploy"
    AUDIT = "audit"
    JOIN = "join"
    GATEWAY = "gateway"
    """To ask for the secrets of access keys, as front doors do that check signatures made with them."""
    OPERATE = "operate"
    """All of the others, except those of members, also in the name of other users."""
    MEMBER = "member"
    """To be a member of the pool. Certificates give it; no role and no token does."""


class Role(StrEnum):
    """What a user is."""

    OPERATOR = "operator"
    DEPLOYER = "deployer"
    USER = "user"
    AUDITOR = "auditor"


_USERS = frozenset({Right.READ_FILES, Right.WRITE_FILES, Right.CALL})
RIGHTS_OF: dict[Role, frozenset[Right]] = {
    Role.OPERATOR: frozenset(Right) - {Right.MEMBER},
    Role.DEPLOYER: _USERS | {Right.DEPLOY},
    Role.USER: _USERS,
    Role.AUDITOR: frozenset({Right.AUDIT}),
}
"""The rights of each role."""

_WITH_PREFIX = frozenset({Right.READ_FILES, Right.WRITE_FILES, Right.DEPLOY})
_WITH_NAME = frozenset({Right.CALL})


class Scope(msgspec.Struct, frozen=True):
    """A right that a token has, and what it is limited to.

    Attributes:
        right: the right.
        target: for calls, the name of a function; for files and deployments, what names begin with; empty: no limit.
    """

    right: Right
    target: str = ""

    @property
    def text(self) -> str:
        """The scope as users write it."""
        return f"{self.right}:{self.target}" if self.target else str(self.right)

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Inverse of :attr:`text`.

        Raises:
            InvalidArgument: it is no scope.
        """
        for right in Right:
            name, separator, target = text[: len(right)], text[len(right) : len(right) + 1], text[len(right) + 1 :]
            if right is Right.MEMBER or name != right or separator not in ("", ":") or (separator and not target):
                continue
            if target and right not in _WITH_PREFIX | _WITH_NAME:
                raise InvalidArgument(f"scope {text[:80]!r}: {right} is not limited to names")
            if len(target) > TARGET_CHARACTERS_MAX:
                raise InvalidArgument(f"a scope's name has at most {TARGET_CHARACTERS_MAX} characters")
            return cls(right, target)
        raise InvalidArgument(
            f"{text[:80]!r} is no scope: write files:read[:PREFIX], files:write[:PREFIX], call[:FUNCTION], "
            "deploy[:PREFIX], audit, join, gateway or operate"
        )

    def allows(self, right: Right, target: str) -> bool:
        """Whether this scope allows to use a right on something of this name."""
        if self.right is Right.OPERATE:
            return right is not Right.MEMBER
        if self.right is not right:
            return False
        return not self.target or (target == self.target if right in _WITH_NAME else target.startswith(self.target))


class LinkTarget(NamedTuple):
    """What a link is for.

    Attributes:
        file_id: a file.
        version_id: a version of it; empty: always the newest one.
    """

    file_id: str
    version_id: str = ""


class Principal(NamedTuple):
    """Who is calling.

    Attributes:
        user: name of the user.
        role: what the user is.
        scopes: what the token is limited to; empty: to nothing, it has all rights of the role.
        token: id of the token, which is no secret.
        call: token of the running call on whose behalf the caller acts; empty: none.
        link: what the caller's link is for; None: the caller has a token.
    """

    user: str
    role: Role
    scopes: tuple[Scope, ...] = ()
    token: str = ""
    call: str = ""
    link: LinkTarget | None = None

    def has(self, right: Right) -> bool:
        """Whether the principal has a right, if only on some names."""
        return right in RIGHTS_OF[self.role] and (
            not self.scopes or any(scope.right in (right, Right.OPERATE) for scope in self.scopes)
        )

    def may(self, right: Right, target: str) -> bool:
        """Whether the principal may use a right on something of this name; empty: on everything."""
        return right in RIGHTS_OF[self.role] and (
            not self.scopes or any(scope.allows(right, target) for scope in self.scopes)
        )

    def may_act_for(self, user: str) -> bool:
        """Whether the principal may act in the name of this user."""
        return user == self.user or self.has(Right.OPERATE)


class PoolPrincipal(Principal):
    """The pool, as its workers know it. It names the user in every message itself."""

    __slots__ = ()

    def has(self, right: Right) -> bool:
        """See :class:`Principal`."""
        return right is Right.MEMBER

    def may(self, right: Right, _target: str) -> bool:
        """See :class:`Principal`."""
        return right is Right.MEMBER

    def may_act_for(self, _user: str) -> bool:
        """See :class:`Principal`."""
        return True


POOL = PoolPrincipal("", Role.OPERATOR, (), "pool")
