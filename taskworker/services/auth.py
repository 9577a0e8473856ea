"""AuthService of ``auth.proto``: users and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from storage.catalog import Usage
from storage.engine.upkeep import Upkeep
from storage.errors import InvalidArgument
from taskworker.auth import backup
from taskworker.auth import users as domain
from taskworker.auth.access_keys import AccessKeys, KeepsAccessKeys
from taskworker.auth.certificates import certificate_to_pem, fingerprint_of
from taskworker.auth.enrollment import Enrollment
from taskworker.auth.rights import Right, Role, Scope
from taskworker.auth.rotation import Rotation, Step
from taskworker.auth.sharing import Sharing
from taskworker.protos import auth_pb2
from taskworker.rpc.authorization import KnownCaller
from taskworker.rpc.binding import Caller

if TYPE_CHECKING:
    from taskworker.auth.oidc import OidcProvider

_NAME_CHARACTERS_SHOWN = 80
_LOGIN_LABEL = "identity token"
_ACCESS_KEYS_PAGE = 50
"""Each may have scopes of 64 KiB."""


class AuthService:
    """Manages the users of a server for its operators; thread-safe.

    Args:
        users: the users.
        sharing: what users share.
        storage: tells what users' files take; None: nothing does.
        rotation: returns what replaces the server's certificate authority; None: it has none.
        enrollment: the workers that joined with tokens; None: there are none.
        provider: knows users by identity tokens; None: none is accepted.
        access_keys: keeps the secrets of access keys; None: there are none.
    """

    def __init__(
        self,
        users: domain.Users,
        sharing: Sharing,
        rotation: Callable[[], Rotation | None] = lambda: None,
        enrollment: Enrollment | None = None,
        provider: OidcProvider | None = None,
        *,
        storage: Upkeep | None = None,
        access_keys: KeepsAccessKeys | None = None,
    ) -> None:
        self._sharing = sharing
        self._provider = provider
        self._users = users
        self._enrollment = enrollment
        self._storage = storage
        self._rotation = rotation
        self._access_keys = AccessKeys(users, access_keys)

    def WhoAmI(  # noqa: N802 - the names are the contract's
        self, _request: auth_pb2.WhoAmIRequest, caller: Caller
    ) -> auth_pb2.Identity:
        """Whose token it is, and what it allows."""
        if not isinstance(caller, KnownCaller):
            raise InvalidArgument("this server does not ask who is calling: everybody may do everything (--no-auth)")
        principal = caller.principal
        return auth_pb2.Identity(
            user=principal.user,
            role=principal.role,
            scopes=[scope.text for scope in principal.scopes],
            token_id=principal.token,
        )

    def GetAuthorities(  # noqa: N802
        self, _request: auth_pb2.GetAuthoritiesRequest, caller: Caller
    ) -> auth_pb2.Authorities:
        """The authorities that may vouch for this server."""
        is_operator = not isinstance(caller, KnownCaller) or caller.principal.has(Right.OPERATE)
        return _authorities(self._require_rotation(), is_operator=is_operator)

    def ChangeAuthority(  # noqa: N802
        self, request: auth_pb2.ChangeAuthorityRequest, _caller: Caller
    ) -> auth_pb2.Authorities:
        """Take a step of replacing the authority."""
        if request.step not in [*Step]:
            raise InvalidArgument(f"{request.step[:_NAME_CHARACTERS_SHOWN]!r} is no step: choose {', '.join(Step)}")
        rotation = self._require_rotation()
        rotation.take(Step(request.step), force=request.force)
        return _authorities(rotation, is_operator=True)

    def _require_rotation(self) -> Rotation:
        rotation = self._rotation()
        if rotation is None:
            raise InvalidArgument("this server has no certificate authority: it uses no TLS, and workers join without")
        return rotation

    def LogIn(self, request: auth_pb2.LogInRequest, _caller: Caller) -> auth_pb2.NewToken:  # noqa: N802
        """Trade an identity token for a token."""
        if self._provider is None:
            raise InvalidArgument("this server accepts no identity tokens; ask its operator for a token")
        made = self._users.log_in(self._provider.user_of(request.identity_token), _LOGIN_LABEL)
        return auth_pb2.NewToken(text=made.text, token=_token(made.token))

    def AddUser(self, request: auth_pb2.AddUserRequest, _caller: Caller) -> auth_pb2.User:  # noqa: N802
        """Add a user."""
        if request.role not in ("", *Role):
            raise InvalidArgument(
                f"{request.role[:_NAME_CHARACTERS_SHOWN]!r} is no role: choose {', '.join(Role)}",
            )
        return self._user(self._users.add(request.user, Role(request.role or Role.USER)), self._usages())

    def RemoveUser(  # noqa: N802
        self, request: auth_pb2.RemoveUserRequest, _caller: Caller
    ) -> auth_pb2.RemoveUserResponse:
        """Remove a user."""
        keys = [one.access_key_id for one in self._users.tokens(request.user)]
        tokens = self._users.remove(request.user)
        self._access_keys.ended(keys)
        self._sharing.forget(request.user)
        return auth_pb2.RemoveUserResponse(tokens=tokens)

    def DestroyKeys(  # noqa: N802
        self, request: auth_pb2.DestroyKeysRequest, _caller: Caller
    ) -> auth_pb2.DestroyKeysResponse:
        """Destroy the keys of a former user."""
        if any(one.name == request.user for one in self._users.users()):
            raise InvalidArgument(
                f"{request.user[:_NAME_CHARACTERS_SHOWN]!r} is a user: first remove the user (`taskworker user rm`)"
            )
        if self._storage is None:
            raise InvalidArgument("this server stores no files")
        return auth_pb2.DestroyKeysResponse(keys=self._storage.destroy_keys(request.user))

    def ListUsers(  # noqa: N802
        self, _request: auth_pb2.ListUsersRequest, _caller: Caller
    ) -> auth_pb2.ListUsersResponse:
        """All users."""
        usages = self._usages()
        return auth_pb2.ListUsersResponse(users=[self._user(one, usages) for one in self._users.users()])

    def SetQuota(self, request: auth_pb2.SetQuotaRequest, _caller: Caller) -> auth_pb2.User:  # noqa: N802
        """Set what a user may store."""
        before = self._users.user(request.user)
        files = request.files_max if request.HasField("files_max") else before.files_max
        count = request.bytes_max if request.HasField("bytes_max") else before.bytes_max
        user = self._users.set_quota(
            request.user,
            files_max=_quota(files, is_default=request.default_files, is_unlimited=request.unlimited_files),
            bytes_max=_quota(count, is_default=request.default_bytes, is_unlimited=request.unlimited_bytes),
        )
        return self._user(user, self._usages())

    def _usages(self) -> dict[str, Usage]:
        return {} if self._storage is None else {one.user_id: one for one in self._storage.usages()}

    def _user(self, user: domain.User, usages: Mapping[str, Usage]) -> auth_pb2.User:
        quota, usage = self._users.quota_of(user.name), usages.get(user.name, Usage())
        storage = auth_pb2.Storage(
            files=usage.files,
            bytes=usage.bytes + (0 if self._storage is None else self._storage.beside(user.name)),
            uncommitted_bytes=0 if self._storage is None else self._storage.uncommitted(user.name),
            files_max=quota.files,
            bytes_max=quota.bytes,
        )
        return auth_pb2.User(user=user.name, role=user.role, created_ms=user.created_ms, storage=storage)

    def ExportUsers(  # noqa: N802
        self, _request: auth_pb2.ExportUsersRequest, _caller: Caller
    ) -> auth_pb2.ExportedUsers:
        """A backup."""
        return auth_pb2.ExportedUsers(document=backup.exported(self._users, self._enrollment, self._sharing))

    def ImportUsers(  # noqa: N802
        self, request: auth_pb2.ExportedUsers, _caller: Caller
    ) -> auth_pb2.ImportUsersResponse:
        """Add what is in a backup."""
        added = backup.restored(request.document, self._users, self._enrollment, self._sharing)
        return auth_pb2.ImportUsersResponse(**added._asdict())

    def CreateToken(  # noqa: N802
        self, request: auth_pb2.CreateTokenRequest, _caller: Caller
    ) -> auth_pb2.NewToken:
        """Make a token."""
        create = self._access_keys.create if request.access_key else self._users.create_token
        made = create(
            request.user,
            scopes=map(Scope.parse, request.scopes),
            ttl_s=request.ttl_s or None,
            label=request.label,
        )
        return auth_pb2.NewToken(text=made.text, token=_token(made.token))

    def ListTokens(  # noqa: N802
        self, request: auth_pb2.ListTokensRequest, _caller: Caller
    ) -> auth_pb2.ListTokensResponse:
        """All tokens, without what makes them valid."""
        return auth_pb2.ListTokensResponse(tokens=map(_token, self._users.tokens(request.user)))

    def RevokeToken(self, request: auth_pb2.RevokeTokenRequest, _caller: Caller) -> auth_pb2.Token:  # noqa: N802
        """End a token."""
        ended = self._users.revoke(request.token_id)
        self._access_keys.ended([ended.access_key_id])
        return _token(ended)

    def GetAccessKey(  # noqa: N802
        self, request: auth_pb2.GetAccessKeyRequest, caller: Caller
    ) -> auth_pb2.AccessKey:
        """What a gateway needs to check signatures, and to act as the user."""
        if not isinstance(caller, KnownCaller):
            raise InvalidArgument(
                "this server does not ask who is calling (--no-auth), so that its access keys open nothing: give the "
                "gateway keys by its own options"
            )
        found = self._access_keys.find(request.access_key_id)
        return auth_pb2.AccessKey(
            access_key_id=found.access_key_id,
            secret=found.secret,
            user=found.user,
            scopes=[scope.text for scope in found.scopes],
            token_id=found.token_id,
            expires_ms=found.expires_ms,
        )

    def ListAccessKeys(  # noqa: N802
        self, request: auth_pb2.ListAccessKeysRequest, _caller: Caller
    ) -> auth_pb2.ListAccessKeysResponse:
        """Whom a gateway may act for."""
        found = self._users.access_keys(request.after, _ACCESS_KEYS_PAGE + 1)
        shown = found[:_ACCESS_KEYS_PAGE]
        return auth_pb2.ListAccessKeysResponse(
            keys=[
                auth_pb2.ListedAccessKey(
                    access_key_id=one.access_key_id, user=one.user, scopes=[scope.text for scope in one.scopes]
                )
                for one in shown
            ],
            next_after=shown[-1].access_key_id if len(found) > len(shown) else "",
        )


def _authorities(rotation: Rotation, *, is_operator: bool) -> auth_pb2.Authorities:
    oldest = rotation.authority.oldest_fingerprint
    return auth_pb2.Authorities(
        authorities=[
            auth_pb2.Authority(
                fingerprint=fingerprint_of(one),
                certificate=certificate_to_pem(one).decode("ascii"),
                issues_to_members=at == 0,
                issues_to_users=fingerprint_of(one) == oldest,
                created_ms=int(one.not_valid_before_utc.timestamp() * 1000),
                expires_ms=int(one.not_valid_after_utc.timestamp() * 1000),
            )
            for at, one in enumerate(rotation.authority.issuers())
        ],
        waiting=rotation.waiting() if is_operator else [],
    )


def _quota(value: int | None, *, is_default: bool, is_unlimited: bool) -> int | None:
    if is_default:
        return domain.DEFAULT_QUOTA
    return None if is_unlimited else value


def _token(token: domain.Token) -> auth_pb2.Token:
    return auth_pb2.Token(
        token_id=token.token_id,
        user=token.user,
        scopes=[scope.text for scope in token.scopes],
        label=token.label,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms,
        revoked_ms=token.revoked_ms,
        used_ms=token.used_ms,
        access_key_id=token.access_key_id,
    )
