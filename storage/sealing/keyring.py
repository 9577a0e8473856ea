"""All users' keys of a store, in memory, and their sealed form."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from storage.errors import FormatError, InvalidArgument, KeyRequired, SealBroken
from storage.sealing.aead import KEY_BYTES, SALT_BYTES, TAG_BYTES, decrypt, encrypt, message_key
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.sealing.user_keys import EPOCH_MAX, KEY_ID_BYTES, UserKey, UserKeys

log = logging.getLogger(__name__)

KEYS_MAX = 50_000
KEYS_OF_USER_MAX = 1_000
"""One a week for 19 years. No user can take all keys of a store."""
_MASTER_ID_BYTES = 8
_BOUND = b"TaskWorker user key "

_KeyId = Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
_MasterId = Annotated[bytes, msgspec.Meta(min_length=_MASTER_ID_BYTES, max_length=_MASTER_ID_BYTES)]
_Salt = Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
_Sealed = Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=1024)]
_Secret = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]


class SealedKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A user's key as it is stored.

    Attributes:
        key_id: random bytes that name it.
        master_id: id of the master key that seals it.
        salt: random bytes; no other key is sealed with them.
        sealed: :class:`_Content`, encrypted.
    """

    key_id: _KeyId
    master_id: _MasterId
    salt: _Salt
    sealed: _Sealed


class _Content(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    epoch: Annotated[int, msgspec.Meta(ge=1, le=EPOCH_MAX)]
    secret: _Secret


class SealedKeys(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The sealed keys of a store, ordered by their ids."""

    format: Literal[1]
    keys: Annotated[list[SealedKey], msgspec.Meta(max_length=KEYS_MAX)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SealedKeys).decode
_decode_content = msgspec.msgpack.Decoder(_Content).decode


def decode_sealed_keys(raw: bytes) -> SealedKeys:
    """Decode sealed keys; refuse any but their canonical form.

    Raises:
        FormatError: they are malformed.
    """
    try:
        found = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"the users' keys are malformed: {error}") from error
    if _encode(found) != raw:
        raise FormatError("the users' keys are not in canonical form")
    return found


@dataclass(frozen=True, slots=True)
class _Held:
    """A key with its sealed form; ``key`` is None if no master key at hand opens it."""

    sealed: SealedKey
    key: UserKey | None


class Keyring:
    """The keys of all users of a store. Thread-safe; does no I/O.

    Args:
        masters: the master keys at hand; None: none are, and no key can be opened or made.
        token_bytes: source of random bytes.
    """

    def __init__(self, masters: MasterKeys | None, token_bytes: Callable[[int], bytes]) -> None:
        self._masters = masters
        self._token_bytes = token_bytes
        self._lock = threading.Lock()
        self._held: dict[bytes, _Held] = {}
        self._users: dict[str, UserKeys] = {}
        self._destroyed: frozenset[bytes] = frozenset()

    # -- finding ---------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether there is a master key, so that new data can be sealed."""
        return self._masters is not None

    def __len__(self) -> int:
        return len(self._held)

    def has(self, key_id: bytes) -> bool:
        """Whether there is a key with this id."""
        return key_id in self._held

    def has_opened(self) -> bool:
        """Whether a master key at hand opens any key."""
        return bool(self._users)

    def is_destroyed(self, key_id: bytes) -> bool:
        """Whether the key with this id was destroyed."""
        return key_id in self._destroyed

    def has_destroyed(self) -> bool:
        """Whether any key was destroyed."""
        return bool(self._destroyed)

    def find(self, key_id: bytes) -> UserKey:
        """Return a key by its id.

        Raises:
            KeyRequired: it is not here, or cannot be opened.
        """
        held = self._held.get(key_id)
        if held is not None and held.key is not None:
            return held.key
        if held is None and self._masters is not None:
            raise KeyRequired(f"the user's key {key_id.hex()} is lost, and with it what it encrypts")
        raise self.lacking({held.sealed.master_id} if held is not None else set())

    def keys_of(self, user_id: str) -> UserKeys:
        """Return all keys of a user."""
        return self._users.get(user_id) or UserKeys(user_id)

    def locked(self) -> set[bytes]:
        """Return the ids of the master keys that are needed for keys that cannot be opened."""
        return {held.sealed.master_id for held in self._held.values() if held.key is None}

    def lacking(self, master_ids: set[bytes]) -> KeyRequired:
        """Return the error for data that is sealed with master keys which are not here."""
        named = ", ".join(sorted(master_id.hex() for master_id in master_ids)) or "one that is not known here"
        given = "no key was given" if self._masters is None else f"the key given is {self._masters.current.id.hex()}"
        return KeyRequired(f"the store is encrypted with the key {named}, and {given}: give the right key")

    # -- changing --------------------------------------------------------------------------------

    def take(self, found: SealedKeys) -> None:
        """Add sealed keys, and open those that a master key at hand opens. Keys that are open already stay as they are.

        Keys that were changed after they were sealed are left out.
        """
        with self._lock:
            for sealed in found.keys:
                held = self._held.get(sealed.key_id)
                if (held is not None and held.key is not None) or sealed.key_id in self._destroyed:
                    continue
                try:
                    key = self._opened(sealed)
                except SealBroken as error:
                    log.warning("the user's key %s is left out: %s", sealed.key_id.hex(), error)
                    continue
                if held is None or key is not None:
                    self._keep(_Held(sealed, key))

    def _opened(self, sealed: SealedKey) -> UserKey | None:
        master = self._masters.find(sealed.master_id) if self._masters is not None else None
        if master is None:
            return None
        raw = decrypt(message_key(master.wrap, sealed.salt), sealed.sealed, _BOUND + sealed.key_id)
        try:
            content = _decode_content(raw)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SealBroken(f"a user's key cannot be read: {error}") from error
        return UserKey(content.user_id, content.epoch, sealed.key_id, content.secret)

    def _keep(self, held: _Held) -> None:
        self._held[held.sealed.key_id] = held
        if held.key is not None:
            self._users[held.key.user_id] = self.keys_of(held.key.user_id).with_key(held.key)

    def without(self, key_ids: Set[bytes]) -> bytes:
        """Return the sealed keys of the store except some, in canonical form; see :meth:`destroy`."""
        with self._lock:
            left = [held.sealed for held in self._held.values() if held.sealed.key_id not in key_ids]
        return _encode(SealedKeys(1, sorted(left, key=lambda sealed: sealed.key_id)))

    def destroy(self, key_ids: Set[bytes]) -> None:
        """Forget keys for good: they are not taken again."""
        with self._lock:
            self._destroyed |= key_ids
            for key_id in key_ids:
                held = self._held.pop(key_id, None)
                if held is not None and held.key is not None:
                    user = held.key.user_id
                    self._users[user] = self.keys_of(user).without(key_id)

    def drop_locked(self) -> None:
        """Forget keys that no master key at hand opens."""
        with self._lock:
            self._held = {key_id: held for key_id, held in self._held.items() if held.key is not None}

    def made(self, user_id: str, *, is_counted: bool = True) -> tuple[UserKey, bytes]:
        """Make a key of the next epoch for a user, without adding it.

        Args:
            user_id: the user.
            is_counted: whether to refuse a user who has had too many; not for the store's own keys.

        Returns:
            The key, and the sealed keys of the store with it; once these are durable, :meth:`take` them.

        Raises:
            KeyRequired: there is no master key.
            FormatError: there are too many keys, or epochs of this user.
            InvalidArgument: this user has too many keys.
        """
        if self._masters is None:
            raise self.lacking(self.locked())
        current = self.keys_of(user_id).current
        epoch = 1 if current is None else current.epoch + 1
        if len(self._held) >= KEYS_MAX or epoch > EPOCH_MAX:
            raise FormatError(f"a store has at most {KEYS_MAX:,} keys of users, and this one has reached a limit")
        if is_counted and len(self.keys_of(user_id)) >= KEYS_OF_USER_MAX:
            raise InvalidArgument(f"user {user_id} has had {KEYS_OF_USER_MAX:,} keys, and gets no more")
        key = UserKey(user_id, epoch, self._token_bytes(KEY_ID_BYTES), self._token_bytes(KEY_BYTES))
        return key, self.encoded(self._sealed(key, self._masters.current))

    def _sealed(self, key: UserKey, master: MasterKey) -> SealedKey:
        salt = self._token_bytes(SALT_BYTES)
        content = _encode(_Content(key.user_id, key.epoch, key.secret))
        sealed = encrypt(message_key(master.wrap, salt), content, _BOUND + key.key_id)
        return SealedKey(key.key_id, master.id, salt, sealed)

    def encoded(self, *more: SealedKey) -> bytes:
        """Return the sealed keys of the store, and ``more``, in canonical form."""
        with self._lock:
            every = [*(held.sealed for held in self._held.values()), *more]
        return _encode(SealedKeys(1, sorted(every, key=lambda sealed: sealed.key_id)))

    def needs_rewrapping(self) -> bool:
        """Whether some keys are sealed with a former master key."""
        if self._masters is None:
            return False
        current = self._masters.current.id
        return any(held.key is not None and held.sealed.master_id != current for held in self._held.values())

    def rewrapped(self, masters: MasterKeys) -> bytes:
        """Return the sealed keys of the store, all sealed with the current key of ``masters``; see :meth:`use`."""
        with self._lock:
            every = [
                self._sealed(held.key, masters.current) if held.key is not None else held.sealed
                for held in self._held.values()
            ]
        return _encode(SealedKeys(1, sorted(every, key=lambda sealed: sealed.key_id)))

    def use(self, masters: MasterKeys, raw: bytes) -> None:
        """Use other master keys, and the keys that :meth:`rewrapped` returned, once these are durable."""
        found = decode_sealed_keys(raw)
        with self._lock:
            self._masters = masters
            for sealed in found.keys:
                held = self._held.get(sealed.key_id)
                self._keep(
                    _Held(sealed, held.key if held is not None and held.key is not None else self._opened(sealed))
                )
