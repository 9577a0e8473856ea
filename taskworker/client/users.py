"""The operator's client for a server's users and their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from taskworker.auth.contexts import Access, AccessTo
from taskworker.auth.user_tokens import secret_of, token_with
from taskworker.client.operators import OperatorClient
from taskworker.errors import CallNotOffered
from taskworker.protos import auth_pb2
from taskworker.protos.auth_pb2_grpc import AuthServiceStub


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose token it is that this client sends, and what it allows; no ``scopes``: all that the role does."""

    user: str
    role: str
    scopes: list[str]
    token_id: str


@dataclass(frozen=True, slots=True)
class UserStatus:
    """A user of a server, what the user's files take on all volumes together, and may take; None: no limit."""

    user: str
    role: str
    created_ms: int
    files: int
    files_max: int | None
    bytes: int
    uncommitted_bytes: int
    bytes_max: int | None


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """A token; times in ms since 1970, None: never. What makes it valid is not part of it.

    ``access_key_id`` is that of the access key which it is; empty: it is none.
    """

    token_id: str
    user: str
    scopes: list[str]
    label: str
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    used_ms: int | None
    access_key_id: str


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key: its id, what requests are signed with, whose it is, and what it is limited to.

    ``expires_ms`` is in ms since 1970, None: never. With ``token``, a client acts as its user.
    """

    access_key_id: str
    secret: str = field(repr=False)
    user: str
    scopes: list[str]
    token_id: str
    expires_ms: int | None

    @property
    def token(self) -> str:
        """The token that it is."""
        return token_with(self.secret)


class ListedAccessKey(NamedTuple):
    """An access key without its secret: its id, whose it is, and what it is limited to."""

    access_key_id: str
    user: str
    scopes: list[str]


@dataclass(frozen=True, slots=True)
class AuthorityStatus:
    """A certificate authority of a server; times in ms since 1970, the fingerprint is the SHA-256 in hexadecimal."""

    fingerprint: str
    issues_to_members: bool
    issues_to_users: bool
    created_ms: int
    expires_ms: int
    certificate: str


@dataclass(frozen=True, slots=True)
class AuthoritiesStatus:
    """A server's certificate authorities, and the workers that have not learned of the last change yet."""

    authorities: list[AuthorityStatus]
    waiting: list[str]


class Restored(NamedTuple):
    """How many of each were added from a backup."""

    users: int
    tokens: int
    workers: int
    grants: int
    links: int


class UserClient(OperatorClient):
    """The users of a server, and their tokens. Thread-safe; a context manager.

    Raises errors of the engine's family: ``Unauthenticated``, ``PermissionDenied``, ``InvalidArgument``,
    ``StorageUnavailable``.

    Args:
        address: address of the server.
        access: what to show, and to whom; None: as the context for the address says.
        token: the token to show in place of the context's; only without ``access``.
    """

    timeout_s = 30.0

    def __init__(self, address: str, *, access: Access | None = None, token: str | None = None) -> None:
        if access is None and token is not None:
            access = AccessTo(address)()._replace(token=token)
        super().__init__(address, access=access)
        self._stub = AuthServiceStub(self.channel)

    def log_in(self, identity_token: str) -> str:
        """Trade an identity token of the server's OpenID Connect provider for a token of the user whom it names."""
        return self._call(self._stub.LogIn, auth_pb2.LogInRequest(identity_token=identity_token)).text

    def who_am_i(self) -> Identity:
        """Whose token it is that this client sends."""
        told = self._call(self._stub.WhoAmI, auth_pb2.WhoAmIRequest())
        return Identity(told.user, told.role, list(told.scopes), told.token_id)

    def authorities(self) -> AuthoritiesStatus:
        """The authorities that may vouch for the server."""
        return _authorities(self._call(self._stub.GetAuthorities, auth_pb2.GetAuthoritiesRequest()))

    def change_authority(self, step: str, *, force: bool = False) -> AuthoritiesStatus:
        """Take a step of replacing the server's authority: ``add-next``, ``promote`` or ``drop-former``.

        Args:
            step: which one.
            force: whether to take it although some workers do not know of the one before.
        """
        request = auth_pb2.ChangeAuthorityRequest(step=step, force=force)
        return _authorities(self._call(self._stub.ChangeAuthority, request))

    def add(self, user: str, role: str = "user") -> UserStatus:
        """Add a user; the role is ``operator``, ``deployer``, ``user`` or ``auditor``."""
        return _user(self._call(self._stub.AddUser, auth_pb2.AddUserRequest(user=user, role=role)))

    def remove(self, user: str) -> int:
        """Remove a user, and return how many tokens ended. The user's files stay."""
        return self._call(self._stub.RemoveUser, auth_pb2.RemoveUserRequest(user=user)).tokens

    def destroy_keys(self, user: str) -> int:
        """Destroy the keys of a former user who has no files any more; return how many there were.

        Raises:
            InvalidArgument: there is such a user, or the user has files.
        """
        return self._call(self._stub.DestroyKeys, auth_pb2.DestroyKeysRequest(user=user)).keys

    def users(self) -> list[UserStatus]:
        """All users, by name."""
        return [_user(one) for one in self._call(self._stub.ListUsers, auth_pb2.ListUsersRequest()).users]

    def export(self) -> bytes:
        """All users, hashes of their tokens, what they share, and workers that joined with tokens, as a document."""
        return self._call(self._stub.ExportUsers, auth_pb2.ExportUsersRequest()).document

    def restore(self, document: bytes) -> Restored:
        """Add what was exported, and is not there already."""
        added = self._call(self._stub.ImportUsers, auth_pb2.ExportedUsers(document=document))
        return Restored(added.users, added.tokens, added.workers, added.grants, added.links)

    def set_quota(
        self, user: str, *, files: int | Literal["default", "none"] | None = None,
        bytes_: int | Literal["default", "none"] | None = None,
    ) -> UserStatus:  # fmt: skip
        """Set what a user may store, in all versions of all files.

        Args:
            user: the user.
            files: number of files; ``default``: the server's default; ``none``: no limit; None: as before.
            bytes_: bytes on all volumes together; likewise.
        """
        request = auth_pb2.SetQuotaRequest(
            user=user,
            files_max=files if isinstance(files, int) else None,
            bytes_max=bytes_ if isinstance(bytes_, int) else None,
            default_files=files == "default",
            default_bytes=bytes_ == "default",
            unlimited_files=files == "none",
            unlimited_bytes=bytes_ == "none",
        )
        return _user(self._call(self._stub.SetQuota, request))

    def create_token(
        self, user: str, *, scopes: Sequence[str] = (), ttl_s: float | None = None, label: str = ""
    ) -> tuple[str, TokenStatus]:
        """Make a token of a user, and return it. It cannot be shown again.

        Args:
            user: whose it is.
            scopes: what it is limited to, such as ``files:read:reports/``; none: all rights of the user.
            ttl_s: for how many seconds it is valid; None: until it is revoked.
            label: what it is for.
        """
        request = auth_pb2.CreateTokenRequest(user=user, scopes=scopes, ttl_s=ttl_s or 0.0, label=label)
        made = self._call(self._stub.CreateToken, request)
        return made.text, _token(made.token)

    def create_access_key(
        self, user: str, *, scopes: Sequence[str] = (), ttl_s: float | None = None, label: str = ""
    ) -> AccessKey:
        """Make an access key of a user, with which requests of S3 are signed; the arguments are as above.

        Without ``scopes``, it is for all files of the user.
        """
        request = auth_pb2.CreateTokenRequest(
            user=user, scopes=scopes, ttl_s=ttl_s or 0.0, label=label, access_key=True
        )
        made = self._call(self._stub.CreateToken, request)
        token = _token(made.token)
        if not token.access_key_id:
            self.revoke(token.token_id)
            raise CallNotOffered("the server is of a release that has no access keys; upgrade it")
        return AccessKey(
            token.access_key_id, secret_of(made.text), token.user, token.scopes, token.token_id, token.expires_ms
        )

    def access_key(self, access_key_id: str) -> AccessKey:
        """What is needed to check signatures made with an access key, and to act as its user. Needs the right gateway.

        Raises:
            AccessKeyInvalid: there is none, or it has expired or was revoked.
            SecretsUnavailable: the pool's master key cannot be used.
            InvalidArgument: the server does not ask who is calling (--no-auth), or is no pool.
        """
        found = self._call(self._stub.GetAccessKey, auth_pb2.GetAccessKeyRequest(access_key_id=access_key_id))
        expires_ms = found.expires_ms or None
        return AccessKey(found.access_key_id, found.secret, found.user, list(found.scopes), found.token_id, expires_ms)

    def access_keys(self) -> Iterator[ListedAccessKey]:
        """All valid access keys by their ids, page by page. Needs the right gateway.

        Raises:
            CallNotOffered: the server is of a release that does not list them.
        """
        after = ""
        while True:
            page = self._call(self._stub.ListAccessKeys, auth_pb2.ListAccessKeysRequest(after=after))
            yield from (ListedAccessKey(one.access_key_id, one.user, list(one.scopes)) for one in page.keys)
            after = page.next_after
            if not after:
                return

    def tokens(self, user: str = "") -> list[TokenStatus]:
        """All tokens, or those of one user, oldest first."""
        answer = self._call(self._stub.ListTokens, auth_pb2.ListTokensRequest(user=user))
        return [_token(one) for one in answer.tokens]

    def revoke(self, token_id: str) -> TokenStatus:
        """End a token at once."""
        return _token(self._call(self._stub.RevokeToken, auth_pb2.RevokeTokenRequest(token_id=token_id)))


def _authorities(answer: auth_pb2.Authorities) -> AuthoritiesStatus:
    authorities = [
        AuthorityStatus(
            one.fingerprint,
            one.issues_to_members,
            one.issues_to_users,
            one.created_ms,
            one.expires_ms,
            one.certificate,
        )
        for one in answer.authorities
    ]
    return AuthoritiesStatus(authorities, list(answer.waiting))


def _user(user: auth_pb2.User) -> UserStatus:
    storage = user.storage
    return UserStatus(
        user.user,
        user.role,
        user.created_ms,
        storage.files,
        storage.files_max if storage.HasField("files_max") else None,
        storage.bytes,
        storage.uncommitted_bytes,
        storage.bytes_max if storage.HasField("bytes_max") else None,
    )


def _token(token: auth_pb2.Token) -> TokenStatus:
    return TokenStatus(
        token_id=token.token_id,
        user=token.user,
        scopes=list(token.scopes),
        label=token.label,
        created_ms=token.created_ms,
        expires_ms=token.expires_ms or None,
        revoked_ms=token.revoked_ms or None,
        used_ms=token.used_ms or None,
        access_key_id=token.access_key_id,
    )
