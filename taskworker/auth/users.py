"""The users of a server, and their tokens.

All are in one document of the catalog, which is read once and written with every change. Only the time of a token's
last use is written seldom. A token is looked up by its SHA-256: how long that takes tells nothing about other tokens,
as nobody can choose the hash of what he sends.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec

from storage.clocks import wall_ms
from storage.errors import InvalidArgument, StorageError, StoreFull
from storage.write.quotas import NO_QUOTA, Quota
from taskworker.auth.documents import Documents
from taskworker.auth.rights import RIGHTS_OF, Principal, Role, Scope
from taskworker.auth.user_tokens import hash_of_token, is_token, new_token
from taskworker.errors import Unauthenticated

log = logging.getLogger("taskworker.auth")

DOCUMENT = "users"
USERS_MAX = 10_000
TOKENS_MAX = 20_000
TTL_S_MAX = 10 * 365 * 86_400.0
LABEL_CHARACTERS_MAX = 200
LOGIN_TTL_S = 12 * 3600.0
LOGINS_MAX = 20
"""Valid tokens of a user that were got with identity tokens."""
SCOPES_MAX = 64
_NAME_BYTES_MAX = 200
_NAME_PUNCTUATION = frozenset("._@+-")
_ID_BYTES = 6
_KEPT_MS = 30 * 86_400_000  # a token that ended is remembered for so long, to say why it is refused
_NOTED_MS = 600_000  # a last use is written at most so often


DEFAULT_QUOTA = -1
"""In place of a user's quota: what the server's operator chose for all users."""


class User(msgspec.Struct, frozen=True):
    """A user.

    Attributes:
        name: the name, which is also the owner of the user's files.
        role: what the user may do.
        created_ms: since when there is this user.
        files_max: how many files the user may have; None: any number.
        bytes_max: bytes that they may take on all volumes together; None: any number.
    """

    name: str
    role: Role
    created_ms: int
    files_max: int | None = DEFAULT_QUOTA
    bytes_max: int | None = DEFAULT_QUOTA


class Token(msgspec.Struct, frozen=True):
    """A token as the server keeps it.

    Attributes:
        token_id: names the token; no secret.
        user: whose it is.
        digest: its SHA-256.
        scopes: what it is limited to; empty: all rights of its user.
        label: what it is for.
        created_ms: when it was made.
        expires_ms: when it expires; 0: never.
        revoked_ms: when it was revoked; 0: it is not.
        used_ms: when it was last used, to within some minutes; 0: never.
        access_key_id: id of the access key that it is; empty: it is none.
    """

    token_id: str
    user: str
    digest: bytes
    scopes: tuple[Scope, ...] = ()
    label: str = ""
    created_ms: int = 0
    expires_ms: int = 0
    revoked_ms: int = 0
    used_ms: int = 0
    access_key_id: str = ""

    def ended_ms(self, now_ms: int) -> int:
        """When it ceased to be valid; 0: it is valid."""
        expired_ms = self.expires_ms if 0 < self.expires_ms <= now_ms else 0
        return min(filter(None, (self.revoked_ms, expired_ms)), default=0)


class NewToken(NamedTuple):
    """A token that was just made.

    Attributes:
        text: the token. It is not kept, and cannot be shown again.
        token: what is kept of it.
    """

    text: str
    token: Token


class _Kept(msgspec.Struct, frozen=True):
    users: dict[str, User] = {}
    tokens: tuple[Token, ...] = ()


_decoder = msgspec.msgpack.Decoder(_Kept)


class Users:
    """The users of a server and their tokens. Thread-safe.

    Args:
        documents: where they are stored.
        now_ms: milliseconds since 1970.
        default_quota: what users may store for whom nothing else is set.
    """

    def __init__(
        self, documents: Documents, now_ms: Callable[[], int] = wall_ms, default_quota: Quota = NO_QUOTA
    ) -> None:
        self.default_quota = default_quota
        self._documents = documents
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._used: dict[str, int] = {}  # by token id, not written yet
        self._noted_ms = now_ms()
        raw = documents.document(DOCUMENT)
        self._take(_decoder.decode(raw) if raw else _Kept())

    # -- who is calling --------------------------------------------------------------------------

    def principal_of(self, text: str) -> Principal:
        """Return who has this token.

        Raises:
            Unauthenticated: nobody has, or it has expired or was revoked. The text does not contain it.
        """
        digest = hash_of_token(text)
        token = self._by_digest.get(digest)
        if token is None or not secrets.compare_digest(token.digest, digest):
            if not is_token(text):
                raise Unauthenticated("this is no token: tokens begin with `twu1.` and have 48 characters")
            raise Unauthenticated("the token is not valid here: no user of this server has it; ask its operator")
        now_ms = self._now_ms()
        if token.ended_ms(now_ms):
            what = "was revoked" if token.revoked_ms else "has expired"
            raise Unauthenticated(f"the token {token.token_id} {what}; ask the server's operator for a new one")
        user = self._kept.users.get(token.user)
        if user is None:
            raise Unauthenticated(f"the user of token {token.token_id} was removed")
        self._note(token, now_ms)
        return Principal(user.name, user.role, token.scopes, token.token_id)

    def access_key(self, access_key_id: str) -> Token | None:
        """Return a valid access key; None if there is none."""
        token = self._by_access_key.get(access_key_id)
        if token is None or token.ended_ms(self._now_ms()) or token.user not in self._kept.users:
            return None
        return token

    def access_keys(self, after: str, limit: int) -> list[Token]:
        """Return at most ``limit`` valid access keys by their ids, after the id ``after``."""
        ids = sorted(one for one in list(self._by_access_key) if one > after)
        valid = (token for one in ids if (token := self.access_key(one)) is not None)
        return list(islice(valid, limit))

    def user_of(self, text: str) -> str:
        """Return the user whose token this is, be it valid or not; empty: nobody's. Nothing is noted or written."""
        token = self._by_digest.get(hash_of_token(text))
        return "" if token is None else token.user

    def _note(self, token: Token, now_ms: int) -> None:
        self._used[token.token_id] = now_ms
        if now_ms - self._noted_ms < _NOTED_MS or not self._lock.acquire(blocking=False):
            return
        try:
            self._noted_ms = now_ms
            self._save(self._kept)
        except StorageError as error:  # the caller wants something else, and gets it
            log.warning("when tokens were last used could not be written: %s", error)
        finally:
            self._lock.release()

    # -- users -----------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """All users, by name."""
        return sorted(self._kept.users.values(), key=lambda user: user.name)

    def user(self, name: str) -> User:
        """Return a user.

        Raises:
            InvalidArgument: there is no such user.
        """
        return self._require_user(name)

    def add(self, name: str, role: Role = Role.USER) -> User:
        """Add a user.

        Raises:
            InvalidArgument: nobody can have this name, or somebody has it.
            StoreFull: there are too many users.
        """
        check_name(name)
        with self._lock:
            kept = self._kept
            if name in kept.users:
                raise InvalidArgument(f"there is a user {name!r} already")
            if len(kept.users) >= USERS_MAX:
                raise StoreFull(f"there are {USERS_MAX:,} users, as many as are allowed; remove some")
            user = User(name, role, self._now_ms())
            self._save(msgspec.structs.replace(kept, users=kept.users | {name: user}))
            return user

    def set_quota(self, name: str, *, files_max: int | None, bytes_max: int | None) -> User:
        """Set what a user may store; ``DEFAULT_QUOTA`` stands for the server's default, None for no limit.

        Raises:
            InvalidArgument: there is no such user.
        """
        with self._lock:
            user = msgspec.structs.replace(self._require_user(name), files_max=files_max, bytes_max=bytes_max)
            self._save(msgspec.structs.replace(self._kept, users=self._kept.users | {name: user}))
            return user

    def quota_of(self, name: str) -> Quota:
        """What a user may store. The default does not count for operators, nor for owners with reserved names."""
        user = self._kept.users.get(name)
        default = NO_QUOTA if user is None or user.role is Role.OPERATOR else self.default_quota
        if user is None:
            return default if ":" in name else self.default_quota
        return Quota(
            default.bytes if user.bytes_max == DEFAULT_QUOTA else user.bytes_max,
            default.files if user.files_max == DEFAULT_QUOTA else user.files_max,
        )

    def make_operator(self, name: str) -> User:
        """Add an operator, or make a user one."""
        if name not in self._kept.users:
            return self.add(name, Role.OPERATOR)
        with self._lock:
            user = msgspec.structs.replace(self._require_user(name), role=Role.OPERATOR)
            if user != self._kept.users[name]:
                self._save(msgspec.structs.replace(self._kept, users=self._kept.users | {name: user}))
            return user

    def remove(self, name: str) -> int:
        """Remove a user, whose tokens end at once. The user's files stay.

        Returns:
            How many tokens ended.

        Raises:
            InvalidArgument: there is no such user, or it is the last operator.
        """
        with self._lock:
            kept = self._kept
            self._require_user(name)
            left = {other: user for other, user in kept.users.items() if other != name}
            if all(user.role is not Role.OPERATOR for user in left.values()):
                raise InvalidArgument(f"{name!r} is the last operator; make another user an operator first")
            tokens = tuple(token for token in kept.tokens if token.user != name)
            self._save(_Kept(left, tokens))
            return len(kept.tokens) - len(tokens)

    # -- tokens ----------------------------------------------------------------------------------

    def tokens(self, user: str = "") -> list[Token]:
        """All tokens, or those of one user, oldest first."""
        return [self._with_use(token) for token in self._kept.tokens if user in ("", token.user)]

    def create_token(
        self,
        user: str,
        *,
        scopes: Iterable[Scope] = (),
        ttl_s: float | None = None,
        label: str = "",
        access_key_id: str = "",
    ) -> NewToken:
        """Make a token of a user.

        Args:
            user: whose it is.
            scopes: what it is limited to; none: all rights of the user.
            ttl_s: for how many seconds it is valid; None: until it is revoked.
            label: what it is for.
            access_key_id: id of the access key that it shall be; empty: none.

        Raises:
            InvalidArgument: there is no such user, the user has no such right, or an argument is out of bounds.
            StoreFull: there are too many tokens.
        """
        chosen = tuple(dict.fromkeys(scopes))
        if len(chosen) > SCOPES_MAX or len(label) > LABEL_CHARACTERS_MAX:
            raise InvalidArgument(f"a token has at most {SCOPES_MAX} scopes, and a label of {LABEL_CHARACTERS_MAX}")
        if ttl_s is not None and not 1.0 <= ttl_s <= TTL_S_MAX:
            raise InvalidArgument(f"a token is valid for 1 second to 10 years, not for {ttl_s:g} s")
        with self._lock:
            owner = self._require_user(user)
            for scope in chosen:
                if scope.right not in RIGHTS_OF[owner.role]:
                    raise InvalidArgument(f"{user} is {_article(owner.role)}, and has no right to {scope.right}")
            now_ms = self._now_ms()
            tokens = [token for token in self._kept.tokens if not 0 < token.ended_ms(now_ms) < now_ms - _KEPT_MS]
            if len(tokens) >= TOKENS_MAX:
                raise StoreFull(f"there are {TOKENS_MAX:,} tokens, as many as are allowed; let them expire")
            text = new_token()
            token = Token(
                token_id=secrets.token_hex(_ID_BYTES),
                user=user,
                digest=hash_of_token(text),
                scopes=chosen,
                label=label,
                created_ms=now_ms,
                expires_ms=0 if ttl_s is None else now_ms + int(ttl_s * 1000),
                access_key_id=access_key_id,
            )
            self._save(msgspec.structs.replace(self._kept, tokens=(*tokens, token)))
        return NewToken(text, token)

    def log_in(self, user: str, label: str, ttl_s: float = LOGIN_TTL_S) -> NewToken:
        """Make a token of a user whom somebody else has identified; the oldest of many such tokens ends.

        Args:
            user: who it is.
            label: who has identified the user.
            ttl_s: for how many seconds it is valid.

        Raises:
            Unauthenticated: there is no such user.
            StoreFull: there are too many tokens.
        """
        if user not in self._kept.users:
            raise Unauthenticated(f"there is no user {user[:80]!r} here; ask the server's operator to add you")
        now_ms = self._now_ms()
        former = [one for one in self.tokens(user) if one.label == label and not one.ended_ms(now_ms)]
        for one in former[: max(0, len(former) - LOGINS_MAX + 1)]:
            with contextlib.suppress(InvalidArgument):  # it has just ended by itself
                self.revoke(one.token_id)
        return self.create_token(user, ttl_s=ttl_s, label=label)

    def revoke(self, token_id: str) -> Token:
        """End a token at once.

        Raises:
            InvalidArgument: there is no token of this id, or it ended already.
        """
        with self._lock:
            now_ms = self._now_ms()
            found = next((token for token in self._kept.tokens if token.token_id == token_id), None)
            if found is None or found.ended_ms(now_ms):
                raise InvalidArgument(f"there is no valid token {token_id[:80]!r}; list the tokens to see their ids")
            revoked = msgspec.structs.replace(found, revoked_ms=now_ms)
            tokens = tuple(revoked if token is found else token for token in self._kept.tokens)
            self._save(msgspec.structs.replace(self._kept, tokens=tokens))
            return revoked

    # -- backups ---------------------------------------------------------------------------------

    def restore(self, users: Iterable[User], tokens: Iterable[Token]) -> tuple[int, int]:
        """Add users and tokens of a backup, except those that are there already.

        Returns:
            How many users and tokens were added.

        Raises:
            InvalidArgument: nobody can have one of the names, or a token is of nobody, or has a right that its user has
                not. Nothing was added.
            StoreFull: there would be too many.
        """
        with self._lock:
            kept = self._kept
            added = {user.name: user for user in users if user.name not in kept.users}
            for name in added:
                check_name(name)
            everybody = kept.users | added
            known = {token.token_id for token in kept.tokens} | {token.digest for token in kept.tokens}
            missing = tuple(token for token in tokens if not known & {token.token_id, token.digest})
            for token in missing:
                owner = everybody.get(token.user)
                if owner is None or any(scope.right not in RIGHTS_OF[owner.role] for scope in token.scopes):
                    raise InvalidArgument(f"token {token.token_id[:80]!r} of the backup is of nobody who could have it")
            if len(everybody) > USERS_MAX or len(kept.tokens) + len(missing) > TOKENS_MAX:
                raise StoreFull(f"there would be more than {USERS_MAX:,} users or {TOKENS_MAX:,} tokens")
            self._save(_Kept(everybody, (*kept.tokens, *missing)))
            return len(added), len(missing)

    def save_uses(self) -> None:
        """Write when tokens were last used; called when the server stops."""
        with self._lock:
            if self._used:
                self._save(self._kept)

    # -- what is kept ----------------------------------------------------------------------------

    def _require_user(self, name: str) -> User:
        user = self._kept.users.get(name)
        if user is None:
            raise InvalidArgument(f"there is no user {name[:80]!r}; list the users to see their names")
        return user

    def _with_use(self, token: Token) -> Token:
        return msgspec.structs.replace(token, used_ms=max(token.used_ms, self._used.get(token.token_id, 0)))

    def _save(self, kept: _Kept) -> None:
        """Write everything, then use it. Needs the lock."""
        kept = msgspec.structs.replace(kept, tokens=tuple(map(self._with_use, kept.tokens)))
        self._documents.save_document(DOCUMENT, msgspec.msgpack.encode(kept))
        self._take(kept)
        written = {token.token_id: token.used_ms for token in kept.tokens}
        self._used = {name: used for name, used in dict(self._used).items() if used > written.get(name, used)}

    def _take(self, kept: _Kept) -> None:
        self._kept = kept
        self._by_digest: Mapping[bytes, Token] = {token.digest: token for token in kept.tokens}
        self._by_access_key: Mapping[str, Token] = {one.access_key_id: one for one in kept.tokens if one.access_key_id}


def check_name(name: str) -> None:
    """Check that a user may have this name.

    Raises:
        InvalidArgument: nobody can.
    """
    if ":" in name:
        raise InvalidArgument(f"{name[:80]!r} cannot be a user: names with a colon, such as system:, are reserved")
    fits = 0 < len(name.encode("utf-8", "surrogatepass")) <= _NAME_BYTES_MAX
    if not fits or not name[0].isalnum() or not all(one.isalnum() or one in _NAME_PUNCTUATION for one in name):
        raise InvalidArgument(
            f"{name[:80]!r} cannot be a user: a name has letters, digits and `._@+-`, begins with a letter or digit, "
            f"and takes at most {_NAME_BYTES_MAX} bytes"
        )
    if unicodedata.normalize("NFKC", name) != name:
        raise InvalidArgument(f"{name[:80]!r} cannot be a user: it has characters that look like others (not NFKC)")


def _article(role: Role) -> str:
    return f"{'an' if role[0] in 'ao' else 'a'} {role}"
