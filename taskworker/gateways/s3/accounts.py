"""Who owns an access key, and how to act for that user."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from cachetools import LRUCache, TTLCache

from storage.clocks import monotonic_s
from storage.errors import InvalidArgument, PermissionDenied, StorageError
from storage.system.private_files import read_private
from taskworker.auth.rights import Right
from taskworker.client import Client
from taskworker.client.users import AccessKey, UserClient
from taskworker.errors import AccessKeyInvalid, SecretDamaged, Unauthenticated
from taskworker.gateways.s3.errors import S3Error

_log = logging.getLogger(__name__)
_Read = TypeVar("_Read")
_KEYS_BYTES_MAX = 1024 * 1024
_KEYS_MAX = 1000
"""Access keys whose accounts are kept, each with a connection to the pool."""
_FOR_ALL = frozenset(("files:read", "files:write"))
_KEPT_S = 60.0
"""How long a revoked key may still work for what the gateway itself answers; the pool refuses it at once."""
_UNKNOWN_MAX = 10_000
_UNKNOWN_S = 5.0
"""How long a key that does not exist, or one for all files of a user who has none, is not asked for again."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user, as an access key names it.

    Attributes:
        access_key_id: the key's name.
        secret: what requests are signed with.
        user: whose files it opens.
        client: the connection to act for the user.
        writes: what the names begin with that the key may change; an empty text: all of them.
        is_bound: whether the connection is the user's own, so that the pool knows who asks.
        is_guest: whether ``user`` is another one, who has shared something with the key's user.
        trusted: connections by which the gateway may read its own files about the user's buckets, whatever the key is
            for.
    """

    access_key_id: str
    secret: str
    user: str
    client: Client
    writes: tuple[str, ...] = ("",)
    is_bound: bool = False
    is_guest: bool = False
    trusted: Callable[[], Iterable[Client]] = tuple

    def read_own(self, read: Callable[[Client], _Read]) -> _Read:
        """What ``read`` returns of the gateway's own files, to decide by it; not to be shown to whoever has the key.

        Args:
            read: is called with a connection, or several if the first may not read them.

        Raises:
            PermissionDenied: none may.
        """
        try:
            return read(self.client)
        except PermissionDenied:
            for client in () if self.is_guest else self.trusted():
                with contextlib.suppress(PermissionDenied, Unauthenticated):
                    return read(client)
            raise

    @property
    def is_whole(self) -> bool:
        """Whether the key may change all files of the user, not only some."""
        return self.may_change("")

    def may_change(self, prefix: str) -> bool:
        """Whether the key may change all files of the user whose names begin so."""
        return not self.is_guest and prefix.startswith(self.writes)


class Accounts(Protocol):
    """Where access keys are looked up. Thread-safe."""

    def find(self, access_key_id: str) -> Account:
        """The account of an access key; may ask the pool.

        Raises:
            S3Error: there is no such key.
            StorageError: the pool cannot be asked.
        """

    def known(self, access_key_id: str) -> Account | None:
        """The account of an access key, if it can be told without asking the pool."""

    def drop(self, access_key_id: str) -> None:
        """Look this key up anew, as the pool does not know it any more."""

    def every(self, among: Container[str] | None = None) -> Iterator[Account]:
        """All accounts, for work that nobody asks for; those of one user follow each other.

        An account may be used until the next one is taken.

        Args:
            among: only those with these access keys.

        Raises:
            StorageError: the pool cannot be asked.
        """

    def close(self) -> None:
        """Close the connections."""


class FileAccounts:
    """Access keys in a file of the gateway's own, all served through one connection.

    Args:
        path: a private file with JSON: ``{"ACCESS-KEY-ID": {"secret": "…", "user": "…"}}``.
        client: a connection that may act for all of these users.

    Raises:
        InvalidArgument: there is no such file, or it is malformed.
        NotPrivate: others may read it.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, client: Client) -> None:
        self._client = client
        self._accounts = {name: Account(name, secret, user, client) for name, (secret, user) in _keys_in(path).items()}

    def find(self, access_key_id: str) -> Account:
        """The account of an access key; see :class:`Accounts`."""
        found = self._accounts.get(access_key_id)
        if found is None:
            raise unknown_key(access_key_id)
        return found

    def known(self, access_key_id: str) -> Account | None:
        """The account of an access key; see :class:`Accounts`."""
        return self._accounts.get(access_key_id)

    def drop(self, access_key_id: str) -> None:
        """Do nothing: what is in the file does not change."""

    def every(self, among: Container[str] | None = None) -> Iterator[Account]:
        """All accounts; see :class:`Accounts`."""
        for account in sorted(self._accounts.values(), key=lambda account: account.user):
            if among is None or account.access_key_id in among:
                yield account

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class PoolAccounts:
    """The access keys of a pool, which the gateway may ask for: its token needs the right ``gateway``.

    Args:
        address: where the pool is.
        clock_s: monotonic seconds.
    """

    def __init__(self, address: str, *, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._address = address
        self._users = UserClient(address)
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._own: Client | None = None
        self._for_all: dict[str, list[str]] = {}
        self._for_all_until_s = -math.inf
        self._without: TTLCache[str, bool] = TTLCache(_UNKNOWN_MAX, _UNKNOWN_S, timer=clock_s)
        self._kept: LRUCache[str, tuple[Account, float]] = LRUCache(_KEYS_MAX)
        self._unknown: TTLCache[str, bool] = TTLCache(_UNKNOWN_MAX, _UNKNOWN_S, timer=clock_s)

    def find(self, access_key_id: str) -> Account:
        """The account of an access key; see :class:`Accounts`."""
        with self._lock:
            if access_key_id in self._unknown:
                raise unknown_key(access_key_id)
            former, until = self._kept.get(access_key_id, (None, 0.0))
        if former is not None and self._clock_s() < until:
            return former
        key = self._asked(access_key_id)
        if former is not None and (former.secret, former.user) == (key.secret, key.user):
            found = former  # with its connection
        else:
            found = self._account(key, Client(self._address, token=key.token))
        with self._lock:
            self._kept[access_key_id] = found, self._clock_s() + _KEPT_S
        return found

    def known(self, access_key_id: str) -> Account | None:
        """The account of an access key; see :class:`Accounts`."""
        with self._lock:
            found, until = self._kept.get(access_key_id, (None, 0.0))
        return found if self._clock_s() < until else None

    def drop(self, access_key_id: str) -> None:
        """Look this key up anew, as the pool does not know it any more."""
        with self._lock:
            self._kept.pop(access_key_id, None)

    def every(self, among: Container[str] | None = None) -> Iterator[Account]:
        """All accounts; see :class:`Accounts`. Of a user who has a key for all files, only that one."""
        keys: dict[str, tuple[list[str], list[str]]] = {}
        for listed in self._users.access_keys():
            if among is None or listed.access_key_id in among:
                is_limited = not _FOR_ALL.issubset(listed.scopes)
                keys.setdefault(listed.user, ([], []))[is_limited].append(listed.access_key_id)
        for whole, limited in keys.values():
            for access_key_id in whole:
                account, client = self._opened(access_key_id)
                if account is not None:
                    with client:
                        yield account
                    break
            else:
                for access_key_id in limited:
                    account, client = self._opened(access_key_id)
                    if account is not None:
                        with client:
                            yield account

    def _opened(self, access_key_id: str) -> tuple[Account | None, AbstractContextManager[object]]:
        """An account, and what to close after its use; None if nobody can act by its key."""
        account = self.known(access_key_id)
        if account is not None:
            return account, nullcontext()
        try:
            key = self._users.access_key(access_key_id)
        except (AccessKeyInvalid, SecretDamaged) as error:  # it was revoked just now, or its secret is lost
            _log.info("there is no acting by an access key: %s", error)
            return None, nullcontext()
        client = Client(self._address, token=key.token)
        return self._account(key, client), client

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            accounts = [account for account, _ in self._kept.values()]
            self._kept.clear()
            own, self._own = self._own, None
        for account in accounts:
            account.client.close()
        if own is not None:
            own.close()
        self._users.close()

    def _account(self, key: AccessKey, client: Client) -> Account:
        return Account(
            key.access_key_id,
            key.secret,
            key.user,
            client,
            _writes(key.scopes),
            is_bound=True,
            trusted=lambda: self._trusted(key.user),
        )

    def _trusted(self, user: str) -> Iterator[Client]:
        """Keys of the user for all files; then the gateway's own login, which may be limited to looking keys up."""
        for access_key_id in self._keys_for_all_of(user):
            try:
                client = self.find(access_key_id).client
            except (StorageError, S3Error) as error:  # it was revoked just now, or its secret is lost
                _log.info("there is no acting by a key of %r for all files: %s", user, error)
                continue
            yield client
        with self._lock:
            if self._own is None:
                self._own = Client(self._address)
            own = self._own
        yield own

    def _keys_for_all_of(self, user: str) -> Sequence[str]:
        with self._lock:
            is_new = self._clock_s() < self._for_all_until_s and (user in self._for_all or user in self._without)
            if is_new:
                return self._for_all.get(user, ())
        found: dict[str, list[str]] = {}
        try:
            for listed in self._users.access_keys():
                if _FOR_ALL.issubset(listed.scopes):
                    found.setdefault(listed.user, []).append(listed.access_key_id)
        except StorageError as error:
            _log.warning("access keys cannot be listed: %s", error)
            return ()
        with self._lock:
            self._for_all, self._for_all_until_s = found, self._clock_s() + _KEPT_S
            if user not in found:
                self._without[user] = True
        return found.get(user, ())

    def _asked(self, access_key_id: str) -> AccessKey:
        try:
            return self._users.access_key(access_key_id)
        except AccessKeyInvalid:
            with self._lock:
                self._unknown[access_key_id] = True
                self._kept.pop(access_key_id, None)
            raise unknown_key(access_key_id) from None
        except StorageError as error:
            _log.warning("access keys cannot be looked up: %s", error)
            raise S3Error(
                "ServiceUnavailable", "access keys cannot be looked up now; the gateway's log says why"
            ) from None


def unknown_key(access_key_id: str) -> S3Error:
    """The error of a key that nobody has."""
    return S3Error(
        "InvalidAccessKeyId",
        "there is no such access key; it may have been revoked or have expired",
        AWSAccessKeyId=access_key_id,
    )


def _writes(scopes: Sequence[str]) -> tuple[str, ...]:
    """What the names of files begin with that these scopes let a key change. Those of a newer pool may be unknown."""
    pairs = [scope.partition(f"{Right.WRITE_FILES}:") for scope in scopes]
    limited = tuple(target for before, found, target in pairs if found and not before)
    return ("",) if {Right.WRITE_FILES, Right.OPERATE}.intersection(scopes) else limited


def _keys_in(path: Path) -> dict[str, tuple[str, str]]:
    content = read_private(path, _KEYS_BYTES_MAX)
    if content is None:
        raise InvalidArgument(f"there is no file {path}; write the access keys into it")
    try:
        keys = {name: (one["secret"], one["user"]) for name, one in json.loads(content).items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InvalidArgument(
            f'{path} must have the form {{"ACCESS-KEY-ID": {{"secret": "…", "user": "…"}}}}; correct it'
        ) from None
    for name, texts in keys.items():
        if not all(isinstance(text, str) and text for text in (name, *texts)) or "/" in name:
            raise InvalidArgument(f"{path}: access key {name!r} must have a secret and a user, and no slash in its id")
    return keys
