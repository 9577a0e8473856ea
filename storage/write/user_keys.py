"""Keeps the users' keys of a store, sealed: in its catalog, and on every volume, from which a rebuild takes them.

The catalog has them as a document. On a volume, they are a record of the kind of marks, with an id of its own. A key is
durable in both places before anything is sealed with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Set
from concurrent.futures import wait
from contextlib import AbstractContextManager
from typing import Any

from storage.catalog import DESTROYED_KEYS, USER_KEYS, Catalog
from storage.erasure import ErasureProfile
from storage.errors import CatalogBehind, FormatError, InsufficientWorkers, InvalidArgument
from storage.fleet.fleet import Fleet
from storage.formats.sealed_versions import VersionSecret
from storage.reports import ShredReport
from storage.runtime import Runtime
from storage.sealing.keyring import Keyring, decode_sealed_keys
from storage.sealing.master_keys import MasterKeys
from storage.sealing.remains import sealed_remains
from storage.sealing.secret_trees import LeafSet, SecretTree
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey, UserKeys
from storage.write.gifts import Gift, Gifts, count
from storage.write.keys_on_volumes import KeysOnVolumes
from storage.write.version_secrets import SHREDDING_USER, VersionSecrets

log = logging.getLogger(__name__)

_CATALOG_USER = "system:catalog"  # no user can have this name
_READ_MAX = 64  # a volume has one, and briefly two
_REMAINS_READ_MAX = 1024
_GIVERS = 16  # threads that give keys to volumes that are far away


class UserKeyStore:
    """The users' keys of a store. Thread-safe.

    Args:
        catalog: the store's catalog.
        volumes: the store's volumes.
        profile: the store's own erasure profile.
        masters: the master keys; None: none were given.
        runtime: source of random bytes.
        seals: whether new files are sealed, and the catalog.
        is_lost: whether the catalog is lost and has to be rebuilt. Then it is sealed once a key has proved right.

    Raises:
        InvalidArgument: new files shall be sealed, but there is no master key.
        KeyRequired: the store is encrypted, and its key was not given, or another one was.
        FormatError: the catalog's keys are damaged, and no volume has them.
    """

    def __init__(
        self, catalog: Catalog, volumes: Fleet[Any], profile: ErasureProfile, masters: MasterKeys | None,
        runtime: Runtime, *, seals: bool, is_lost: bool,
    ) -> None:  # fmt: skip
        self.seals = seals
        self._token_bytes = runtime.token_bytes
        self._catalog = catalog
        self._volumes = volumes
        self._profile = profile
        self._masters = masters
        self._keyring = Keyring(masters, runtime.token_bytes)
        self._changing = threading.RLock()  # not held while volumes are asked
        self._shredding = threading.Lock()
        self._secrets = VersionSecrets(catalog, self._keyring, self._changing)
        self._givers = runtime.executor(_GIVERS, "give-keys") if volumes.remote else None
        self._on_volumes = KeysOnVolumes(volumes, self._keyring, self._secrets)
        self._gifts = Gifts(self._on_volumes.give, self._givers)
        self._is_open = False
        self._waiting_key: UserKey | None = None  # gives secrets once it is on enough volumes
        self._made = self._spread_upto = 0  # changes of the keys so far, and how many are on enough volumes
        self._load()
        self._made = min(1, len(self._keyring))  # before a crash, there may have been no time to spread them
        if seals and masters is None:
            raise InvalidArgument("a store that encrypts needs a key")
        self._open_catalog(is_lost=is_lost)
        self._load_secrets()

    def _load_secrets(self) -> None:
        try:
            self._secrets.load()
        except FormatError as error:
            log.error("the catalog's shredding keys are damaged, and taken from the volumes: %s", error)
            self._recover_secrets()
        self._is_open = True

    def _load(self) -> None:
        destroyed = self._catalog.document(DESTROYED_KEYS) or b""
        self._keyring.destroy({destroyed[at : at + KEY_ID_BYTES] for at in range(0, len(destroyed), KEY_ID_BYTES)})
        raw = self._catalog.document(USER_KEYS)
        if not raw:
            return
        try:
            self._keyring.take(decode_sealed_keys(raw))
        except FormatError as error:
            log.error("the catalog's keys of users are damaged, and taken from the volumes: %s", error)
            if not self._recover_keys():
                raise
        if self._keyring.locked() and self._masters is not None:
            self._take_from_volumes()  # the catalog may be a copy from before the master key was changed
        if locked := self._keyring.locked():
            raise self._keyring.lacking(locked)
        if self._keyring.needs_rewrapping() and self._masters is not None:
            self.use_masters(self._masters)

    def _open_catalog(self, *, is_lost: bool) -> None:
        """Unlock the catalog, or seal it. Its key is one of the users' keys, so the master key may be changed."""
        key_id = self._catalog.sealed_with
        if key_id:
            if not self._keyring.has(key_id) and self._masters is not None:
                self._take_from_volumes()
            self._catalog.unlock(self._keyring.find(key_id).secret, self._token_bytes)
        elif self.seals and not is_lost:
            self._seal_catalog()

    def _seal_catalog(self) -> None:
        log.info("the catalog is being encrypted")
        key = self._keyring.keys_of(_CATALOG_USER).current or self._make(_CATALOG_USER)
        self._catalog.seal(key.key_id, key.secret, self._token_bytes)

    # -- finding ---------------------------------------------------------------------------------

    def find(self, key_id: bytes) -> UserKey:
        """See :class:`~storage.sealing.user_keys.KeyFinder`."""
        return self._keyring.find(key_id)

    def keys_of(self, user_id: str) -> UserKeys:
        """See :class:`~storage.sealing.user_keys.KeyFinder`."""
        return self._keyring.keys_of(user_id)

    def secret_of(self, key_id: bytes, leaf: int) -> bytes:
        """See :class:`~storage.sealing.user_keys.KeyFinder`."""
        return self._secrets.secret_of(key_id, leaf)

    def new_secret(self) -> VersionSecret:
        """Return the secret for a new version. Only one thread at a time may call this.

        Raises:
            InsufficientWorkers: there is no key for it, and a new one could not be stored safely.
        """
        if not self._secrets.is_ready:
            self._make_ready()
        return self._secrets.take()

    @property
    def locked(self) -> set[bytes]:
        """The ids of master keys that are needed, but not here."""
        return self._keyring.locked()

    @property
    def master_id(self) -> str:
        """The id of the master key, if there are keys that it seals, or will be; otherwise empty."""
        return self._masters.current.id.hex() if self._masters is not None and (self.seals or len(self)) else ""

    def __len__(self) -> int:
        return len(self._keyring)

    def current(self, user_id: str) -> UserKey:
        """Return the key for new data of a user, and make one if there is none.

        Raises:
            InsufficientWorkers: a new key could not be stored safely.
            InvalidArgument: the user has the name of a key of the store's own.
            KeyRequired: there is no master key.
        """
        _require_user(user_id)
        key = self._keyring.keys_of(user_id).current
        if key is None:
            with self._changing:
                key = self._keyring.keys_of(user_id).current or self._make(user_id)
        if not self._secrets.is_ready:
            self._make_ready()
        self._spread_enough()
        return key

    def _make_ready(self) -> None:
        """Make a key that gives secrets to new versions, and use it once it is stored safely.

        Raises:
            InsufficientWorkers: it could not be. The next call tries the same key again.
        """
        with self._changing:
            key = self._waiting_key
            if key is None or not self._keyring.has(key.key_id):
                key = self._waiting_key = self._make(SHREDDING_USER)
        self._spread_enough()
        with self._changing:
            if not self._secrets.is_ready and self._keyring.has(key.key_id):
                self._secrets.use(key)
                self._waiting_key = None

    # -- changing --------------------------------------------------------------------------------

    def rotate(self, user_id: str) -> UserKey:
        """Give a user a new key for new data. Former keys still open old data.

        Raises:
            InsufficientWorkers: it could not be stored safely.
            InvalidArgument: the user has the name of a key of the store's own, or has had too many keys.
            KeyRequired: there is no master key.
        """
        _require_user(user_id)
        with self._changing:
            key = self._make(user_id)
        self._spread_enough()
        return key

    def _make(self, user_id: str) -> UserKey:
        key, raw = self._keyring.made(user_id, is_counted=user_id != SHREDDING_USER)
        self._catalog.save_document(USER_KEYS, raw)
        self._keyring.take(decode_sealed_keys(raw))
        self._made += 1  # last: whoever sees this number spreads the key
        return key

    def destroy(self, user_id: str) -> int:
        """Destroy a user's keys, in the catalog and on the volumes that are there; return how many there were.

        What they encrypted can never be read again, once the master key was replaced as well, and copies of the former
        one are destroyed: copies of the keys that are elsewhere are sealed with that.

        Raises:
            InvalidArgument: it is no user, but the catalog.
        """
        if user_id == _CATALOG_USER:
            raise InvalidArgument("the key of the catalog is still needed")
        if user_id == SHREDDING_USER:
            raise InvalidArgument("shredding keys are destroyed by shredding what was deleted")
        with self._changing:
            key_ids = self._keyring.keys_of(user_id).ids
            if not key_ids:
                return 0
            before = self._catalog.document(DESTROYED_KEYS) or b""
            self._catalog.save_documents(
                {USER_KEYS: self._keyring.without(key_ids), DESTROYED_KEYS: before + b"".join(sorted(key_ids))}
            )
            self._keyring.destroy(key_ids)
            self._made += 1
        self.spread()
        self.spread()  # again, as another thread may have stored the former keys meanwhile
        return len(key_ids)

    def shred(
        self,
        living: Callable[[Set[bytes]], Mapping[bytes, LeafSet]],
        pausing: Callable[[], AbstractContextManager[object]],
        check_current: Callable[[], None],
    ) -> ShredReport:
        """Destroy the secrets of all versions that were deleted, in the catalog and on the volumes that are there.

        Until the end, nothing is destroyed; an interrupted call has to be made again. Versions may be stored, read and
        deleted meanwhile. What was destroyed stays readable for whoever has an old disk until the master key was
        replaced, and copies of the former one are destroyed; see :meth:`destroy`.

        Args:
            living: returns the secrets of the versions that exist, by the ids of the keys it is given; those of others
                are destroyed.
            pausing: keeps :meth:`new_secret` from being called; versions with earlier secrets are in the catalog then.
            check_current: raises an error if the catalog may lack versions.

        Raises:
            InsufficientWorkers: too few volumes took what is to stay.
            FormatError: something that is needed to know what stays cannot be read.
            CatalogBehind: the catalog may lack versions, or volumes have shown more meanwhile.
        """
        with self._shredding:
            if len(self._volumes.online()) < self._needed:
                raise InsufficientWorkers(
                    f"{self._needed} volumes are needed to keep the keys that stay; bring more volumes back first"
                )
            self._require_secrets()
            changes = self._secrets.changes
            with self._changing:
                key = self._make(SHREDDING_USER)
            self._spread_enough()
            with pausing(), self._changing:
                self._secrets.use(key)
            former = self._secrets.former(key)
            kept = living(self._secrets.known - {key.key_id})
            trees = self._secrets.cut_to(former, kept)
            parts = tuple(sealed_remains(key, trees, self._token_bytes))
            check_current()
            self._replace_secrets(former, parts, trees, changes)
            self.spread()
            self.spread()  # again, as another thread may have stored the former keys meanwhile
            return ShredReport(sum(map(len, kept.values())), len(former), sum(map(len, trees.values())))

    def _require_secrets(self) -> None:
        """Check that it is known what is left of keys that were destroyed before.

        Raises:
            FormatError: it is not.
        """
        if self._secrets.is_lacking:
            self._recover_secrets()
        if self._secrets.is_lacking:
            raise FormatError(
                "what is left of former shredding keys is damaged in the catalog, and no volume that is there has it: "
                "nothing was shredded; bring more volumes back, and try again"
            )

    def _replace_secrets(
        self, former: Set[bytes], parts: tuple[bytes, ...], trees: Mapping[bytes, SecretTree], changes: int
    ) -> None:
        """Have what is left of shredding keys in the catalog and on enough volumes, in the place of these keys.

        Raises:
            CatalogBehind: a rebuild has begun, or volumes have shown more of former keys, since ``changes`` was read.
        """
        with self._changing:
            self._secrets.offer(parts)
            self._made += 1
        try:
            self._spread_enough()
            with self._changing:
                if self._secrets.changes != changes or self._secrets.is_lacking:
                    raise CatalogBehind("volumes showed more than was known, so nothing was shredded: shred again")
                destroyed = self._catalog.document(DESTROYED_KEYS) or b""
                self._catalog.save_documents(
                    self._secrets.documents(parts)
                    | {USER_KEYS: self._keyring.without(former), DESTROYED_KEYS: destroyed + b"".join(sorted(former))}
                )
                self._secrets.use_remains(parts, trees)  # first, so that what stays can be read at any moment
                self._keyring.destroy(former)
                self._secrets.forget_destroyed()
                self._made += 1
        except BaseException:
            self._secrets.withdraw()
            raise

    def use_masters(self, masters: MasterKeys) -> None:
        """Seal all keys with another master key, in the catalog and on the volumes that are there.

        Volumes that are away have the former seals until they are back. Data is not sealed again.
        """
        with self._changing:
            if not self.seals and not len(self._keyring):
                return
            raw = self._keyring.rewrapped(masters)
            self._catalog.save_document(USER_KEYS, raw)
            self._keyring.use(masters, raw)
            self._masters = masters
        self.spread()
        self.spread()  # again, as another thread may have taken the former seals for the latest ones meanwhile

    # -- on the volumes --------------------------------------------------------------------------

    def spread(self, slots: Collection[int] | None = None) -> int:
        """Store the keys on volumes that lack them, and remove former copies; return how many have the keys.

        Args:
            slots: slots of the volumes; None: all.

        Raises:
            StoreClosed: the store is being closed.
            StoreUnavailable: the machine has no thread for it.
        """
        given = self._spread(slots)
        if self._secrets.is_lacking and self._is_open:
            self._recover_secrets()
            given = self._spread(slots)
        return given

    def _spread(self, slots: Collection[int] | None) -> int:
        gifts = self._give_each(slots)
        wait([gift.ended for gift in gifts])
        return sum(gift.given.result() for gift in gifts)

    def _give_each(self, slots: Collection[int] | None = None) -> list[Gift]:
        """Begin to store the keys on volumes. Those that are far away are asked at the same time."""
        if not len(self._keyring) and not self._keyring.has_destroyed():
            return []
        return [self._gifts.begin(slot) for slot, _ in self._volumes.online() if slots is None or slot in slots]

    @property
    def _needed(self) -> int:
        """How many volumes have to have something, so that it survives losses."""
        return min(self._profile.n - self._profile.k + 1, len(self._volumes))

    def _spread_enough(self) -> None:
        """Store the keys on more volumes than may be lost at once, unless they are. The others get them later.

        Raises:
            InsufficientWorkers: too few volumes took them.
        """
        made = self._made
        if self._spread_upto >= made:
            return
        needed = self._needed
        there = count([gift.given for gift in self._give_each()], needed)
        if there < needed:
            raise InsufficientWorkers(
                f"the user's new key has to be on {needed} volumes before anything is stored, and {there} took it so "
                "far; try again when more of them answer"
            )
        self._spread_upto = max(self._spread_upto, made)

    @property
    def is_giving(self) -> bool:
        """Whether a volume is being given keys, so that others who have some for it may wait."""
        return self._gifts.is_giving

    def close(self) -> None:
        """End threads."""
        if self._givers is not None:
            self._givers.shutdown()

    def recover(self) -> bool:
        """For a rebuild, add the keys that the volumes have; return whether there are any.

        Volumes may lie, but only the master key's owner can make a key. Those that no master key at hand opens are
        dropped if it opens others.
        """
        found = self._recover_keys()
        if self._keyring.has_opened():
            self._recover_secrets()
            self._secrets.begin_anew()
        return found

    def _recover_keys(self) -> bool:
        with self._changing:
            before = len(self._keyring)
            self._take_from_volumes()
            if self._keyring.has_opened():
                self._keyring.drop_locked()
                if len(self._keyring) != before or not self._catalog.document(USER_KEYS):
                    self._catalog.save_document(USER_KEYS, self._keyring.encoded())
                if self.seals and not self._catalog.sealed_with:
                    self._seal_catalog()
        return bool(len(self._keyring))

    def _recover_secrets(self) -> None:
        """Add what the volumes have of what is left of shredding keys."""
        while not self._recover_secrets_once():
            log.info("the volumes are asked again for what is left of shredding keys, as it has changed meanwhile")

    def _recover_secrets_once(self) -> bool:
        changes = self._secrets.changes
        online = self._volumes.online()
        trees = self._secrets.found(
            part for slot, volume in online for part in self._on_volumes.remains_read(slot, volume)
        )
        with self._changing:
            if self._secrets.changes != changes:
                return False
            if trees is not None:
                sealed = tuple(sealed_remains(self._make(SHREDDING_USER), trees, self._token_bytes))
                self._catalog.save_documents(self._secrets.documents(sealed))
                self._secrets.use_remains(sealed, trees)
                self._made += 1
        return True

    def _take_from_volumes(self) -> None:
        for slot, volume in self._volumes.online():
            with self._volumes.guard(slot, volume):
                for _, found in self._on_volumes.keys_on(slot, volume):
                    if found is not None:
                        self._keyring.take(found)


def _require_user(user_id: str) -> None:
    """Refuse the names of keys that are the store's own: a user's files would be lost with such a key."""
    if user_id in (_CATALOG_USER, SHREDDING_USER):
        raise InvalidArgument(f"no user can be named {user_id}: the store's own keys have this name")
