"""The keys of users, in epochs: new data is sealed with the latest one, and the former ones still open old data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blake3 import blake3

from storage.errors import KeyRequired
from storage.sealing.aead import derived, message_key

KEY_ID_BYTES = 16
EPOCH_MAX = (1 << 24) - 1  # three bytes at the end of each sealed object

_OBJECTS = "TaskWorker 2026-11 user key: chunks and nodes"
_VERSIONS = "TaskWorker 2026-11 user key: versions"
_NAMES = "TaskWorker 2026-11 user key: names of chunks in the catalog"


class UserKey:
    """A user's key of one epoch; its ``repr`` shows nothing secret.

    Args:
        user_id: the user.
        epoch: number of the key, from 1.
        key_id: random bytes that name it, and reveal nothing about the user.
        secret: 32 random bytes.
    """

    __slots__ = ("epoch", "key_id", "names", "objects", "secret", "user_id", "versions")

    def __init__(self, user_id: str, epoch: int, key_id: bytes, secret: bytes) -> None:
        self.user_id = user_id
        self.epoch = epoch
        self.key_id = key_id
        self.secret = secret
        self.objects = derived(secret, _OBJECTS)
        self.versions = derived(secret, _VERSIONS)
        self.names = derived(secret, _NAMES)

    def __repr__(self) -> str:
        return f"<UserKey {self.key_id.hex()}, epoch {self.epoch}>"

    def opener(self, kind: int, plain_id: bytes) -> bytes:
        """Return the key of the only object of a kind whose content has this hash."""
        return message_key(self.objects, plain_id + bytes([kind]))

    def name_of(self, plain_id: bytes) -> bytes:
        """Return the name, in the catalog, of a chunk whose content has this hash; it does not reveal the hash."""
        return blake3(plain_id, key=self.names).digest()


class UserKeys:
    """All keys of one user. Immutable.

    An epoch may have several keys: if a catalog was replaced by an older copy, a key may have been made a second time.

    Args:
        user_id: the user.
        every: the keys.
    """

    __slots__ = ("_every", "user_id")

    def __init__(self, user_id: str, *every: UserKey) -> None:
        self.user_id = user_id
        self._every = tuple(sorted(every, key=lambda key: (key.epoch, key.key_id)))

    @property
    def current(self) -> UserKey | None:
        """The key of the latest epoch; None if there is no key."""
        return self._every[-1] if self._every else None

    def of_epoch(self, epoch: int) -> list[UserKey]:
        """Return the keys of an epoch, nearly always one.

        Raises:
            KeyRequired: there is none.
        """
        found = [key for key in self._every if key.epoch == epoch]
        if not found:
            raise KeyRequired(f"the key of epoch {epoch} of the file's owner is not here; run rebuild, which finds it")
        return found

    def openers(self, epoch: int, kind: int, plain_id: bytes) -> list[bytes]:
        """See :class:`ObjectKeys`."""
        return [key.opener(kind, plain_id) for key in self.of_epoch(epoch)]

    def openers_by_epoch(self, kind: int, plain_id: bytes) -> dict[int, bytes]:
        """Return the keys that may open an object, by epoch; of several in one epoch, the last one."""
        return {key.epoch: key.opener(kind, plain_id) for key in self._every}

    def with_key(self, key: UserKey) -> UserKeys:
        """Return these keys and another one."""
        return UserKeys(self.user_id, *(one for one in self._every if one.key_id != key.key_id), key)

    def without(self, key_id: bytes) -> UserKeys:
        """Return these keys except one."""
        return UserKeys(self.user_id, *(one for one in self._every if one.key_id != key_id))

    @property
    def ids(self) -> frozenset[bytes]:
        """The ids of these keys."""
        return frozenset(key.key_id for key in self._every)

    def __len__(self) -> int:
        return len(self._every)


class ObjectKeys(Protocol):
    """Knows the keys that open chunks and nodes."""

    def openers(self, epoch: int, kind: int, plain_id: bytes) -> Sequence[bytes]:
        """Return the keys that may open an object, nearly always one.

        Args:
            epoch: the epoch that the object names.
            kind: its kind.
            plain_id: hash of its content.

        Raises:
            KeyRequired: there is none.
        """


class KeyFinder(Protocol):
    """Finds the keys that open sealed versions."""

    def find(self, key_id: bytes) -> UserKey:
        """Return a key by its id.

        Raises:
            KeyRequired: it is not here.
        """

    def keys_of(self, user_id: str) -> UserKeys:
        """Return all keys of a user."""

    def secret_of(self, key_id: bytes, leaf: int) -> bytes:
        """Return the secret of a version by its name.

        Raises:
            KeyRequired: it was destroyed, or its key is not here.
        """
