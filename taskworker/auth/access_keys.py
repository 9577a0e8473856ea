"""Access keys: tokens with an id, and a secret with which requests are signed instead of being sent along.

Whoever checks a signature needs the secret itself, so that it is kept sealed, beside the hash by which the token is
known. An access key is for files only: what a gateway could do with its secret is no more than its user's files.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol

from storage.errors import InvalidArgument, StorageError
from taskworker.auth.rights import Right, Scope
from taskworker.auth.user_tokens import secret_of
from taskworker.auth.users import NewToken, Users
from taskworker.errors import AccessKeyInvalid

log = logging.getLogger("taskworker.auth")

_ID_PREFIX = "TW"
_ID_CHARACTERS = 18
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_OF_FILES = (Right.READ_FILES, Right.WRITE_FILES)


class KeepsAccessKeys(Protocol):
    """Keeps the secrets of access keys, sealed."""

    def keep(self, access_key_id: str, secret: str, *, others: Collection[str]) -> None:
        """Keep a secret, and of all other ones those of ``others``."""

    def find(self, access_key_id: str) -> str | None:
        """Return a secret; None if it is not there."""

    def forget(self, access_key_ids: Collection[str]) -> None:
        """Drop secrets, if they are there."""


class AccessKey(NamedTuple):
    """A valid access key.

    Attributes:
        access_key_id: names it; no secret.
        secret: what requests are signed with.
        user: whose it is.
        scopes: what it is limited to.
        token_id: the id of the token that it is.
        expires_ms: when it expires, milliseconds since 1970; 0: never.
    """

    access_key_id: str
    secret: str
    user: str
    scopes: tuple[Scope, ...]
    token_id: str
    expires_ms: int


class AccessKeys:
    """The access keys of a server. Thread-safe.

    Args:
        users: the users, and their tokens.
        kept: keeps the secrets; None: nothing does, so that there can be no access keys.
    """

    def __init__(self, users: Users, kept: KeepsAccessKeys | None) -> None:
        self._users = users
        self._kept = kept
        self._lock = threading.Lock()  # held while one is made, whose secret must not be dropped as unknown

    def create(
        self, user: str, *, scopes: Iterable[Scope] = (), ttl_s: float | None = None, label: str = ""
    ) -> NewToken:
        """Make an access key of a user; the secret is that in the token.

        Args:
            user: whose it is.
            scopes: what it is limited to; none: all files of the user.
            ttl_s: for how many seconds it is valid; None: until it is revoked.
            label: what it is for.

        Raises:
            InvalidArgument: there is no such user, a scope is of something else than files, or an argument is out of
                bounds.
            SecretsUnavailable, SecretDamaged: the secret cannot be sealed.
            StoreFull: there are too many tokens.
        """
        kept = self._require_kept()
        chosen = tuple(scopes) or tuple(Scope(right) for right in _OF_FILES)
        for scope in chosen:
            if scope.right not in _OF_FILES:
                raise InvalidArgument(f"an access key is for files only; {scope.text} needs a token of its own")
        with self._lock:
            made = self._users.create_token(user, scopes=chosen, ttl_s=ttl_s, label=label, access_key_id=_new_id())
            try:
                known = {one.access_key_id for one in self._users.tokens()}
                kept.keep(made.token.access_key_id, secret_of(made.text), others=known)
            except BaseException:
                with contextlib.suppress(StorageError):  # nobody has seen it
                    self._users.revoke(made.token.token_id)
                raise
        return made

    def find(self, access_key_id: str) -> AccessKey:
        """Return a valid access key.

        Raises:
            AccessKeyInvalid: there is none, it has expired or was revoked, or its secret is lost.
            SecretsUnavailable, SecretDamaged: the secret cannot be read now.
        """
        kept = self._require_kept()
        token = self._users.access_key(access_key_id)
        secret = None if token is None else kept.find(access_key_id)
        if token is None or secret is None:
            raise AccessKeyInvalid(
                f"there is no valid access key {access_key_id[:40]!r}; ask the pool's operator for one"
            )
        return AccessKey(access_key_id, secret, token.user, token.scopes, token.token_id, token.expires_ms)

    def ended(self, access_key_ids: Iterable[str]) -> None:
        """Drop the secrets of access keys that have ended, or leave it to the making of the next one."""
        ended = {one for one in access_key_ids if one}
        if self._kept is None or not ended:
            return
        try:
            self._kept.forget(ended)
        except StorageError as error:
            log.warning("the sealed secrets of ended access keys could not be dropped yet: %s", error)

    def _require_kept(self) -> KeepsAccessKeys:
        if self._kept is None:
            raise InvalidArgument("this server keeps no secrets, and so no access keys: they are for pools")
        return self._kept


def _new_id() -> str:
    return _ID_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_ID_CHARACTERS))
