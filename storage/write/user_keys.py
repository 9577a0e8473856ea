"""Keeps the users' keys of a store, sealed: in its catalog, and on every volume, from which a rebuild takes them.

The catalog has them as a document. On a volume, they are a record of the kind of marks, with an id of its own. A key is
durable in both places before anything is sealed with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, as_completed, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from blake3 import blake3

from storage.catalog import DESTROYED_KEYS, USER_KEYS, Catalog
from storage.erasure import ErasureProfile
from storage.errors import FormatError, InsufficientWorkers, InvalidArgument, StoreClosed, StoreFull, StoreUnavailable
from storage.fleet.fleet import Fleet
from storage.formats.manifest import object_id
from storage.keys import ID_BYTES, Kind, ShardKey, kind_of, shard_key
from storage.runtime import Runtime
from storage.sealing.keyring import Keyring, SealedKeys, decode_sealed_keys
from storage.sealing.master_keys import MasterKeys
from storage.sealing.user_keys import KEY_ID_BYTES, UserKey, UserKeys
from storage.shards import CorruptShard, Shard, ShardStore, VolumeUnavailable
from storage.stripes.stripes import metadata_stripe
from storage.submitting import submitted

log = logging.getLogger(__name__)

_CATALOG_USER = "system:catalog"  # no user can have this name
_HASH_BYTES = 16
# Right after the ids of marks, so that they are found without a full scan. No hash begins with so many zeros.
_PREFIX = bytes(ID_BYTES - _HASH_BYTES - 1) + b"\1"
_IDS = (_PREFIX, bytes(ID_BYTES - _HASH_BYTES - 1) + b"\2")
_READ_MAX = 64  # a volume has one, and briefly two
_GIVERS = 16  # threads that give keys to volumes that are far away


@dataclass(slots=True, eq=False)
class _Gift:
    """The keys on their way to a volume.

    Attributes:
        given: whether the volume has them.
        ended: former copies there are removed as well.
    """

    given: Future[bool] = field(default_factory=Future)
    ended: Future[None] = field(default_factory=Future)


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
        self._waiting = threading.Lock()  # guards the next two
        self._giving: set[int] = set()  # slots of the volumes that are given keys
        self._next: dict[int, _Gift] = {}  # by slot: what such a volume is given after that
        self._givers = runtime.executor(_GIVERS, "give-keys") if volumes.remote else None
        self._made = self._spread_upto = 0  # changes of the keys so far, and how many are on enough volumes
        self._load()
        self._made = min(1, len(self._keyring))  # before a crash, there may have been no time to spread them
        if seals and masters is None:
            raise InvalidArgument("a store that encrypts needs a key")
        self._open_catalog(is_lost=is_lost)

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
            if not self.recover():
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
            KeyRequired: there is no master key.
        """
        key = self._keyring.keys_of(user_id).current
        if key is None:
            with self._changing:
                key = self._keyring.keys_of(user_id).current or self._make(user_id)
        self._spread_enough()
        return key

    # -- changing --------------------------------------------------------------------------------

    def rotate(self, user_id: str) -> UserKey:
        """Give a user a new key for new data. Former keys still open old data.

        Raises:
            InsufficientWorkers: it could not be stored safely.
            KeyRequired: there is no master key.
        """
        with self._changing:
            key = self._make(user_id)
        self._spread_enough()
        return key

    def _make(self, user_id: str) -> UserKey:
        key, raw = self._keyring.made(user_id)
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
        gifts = self._give_each(slots)
        wait([gift.ended for gift in gifts])
        return sum(gift.given.result() for gift in gifts)

    def _give_each(self, slots: Collection[int] | None = None) -> list[_Gift]:
        """Begin to store the keys on volumes. Those that are far away are asked at the same time."""
        if not len(self._keyring) and not self._keyring.has_destroyed():
            return []
        return [self._begin(slot) for slot, _ in self._volumes.online() if slots is None or slot in slots]

    def _begin(self, slot: int) -> _Gift:
        """Have a volume given the keys. While it is given earlier ones, one further gift waits, which is for all."""
        if self._givers is None:
            gift = _Gift()
            self._give(slot, gift)
            return gift
        with self._waiting:
            waiting = self._next.get(slot)
            if waiting is not None:
                return waiting
            gift = self._next[slot] = _Gift()
            if slot in self._giving:
                return gift
            self._giving.add(slot)
        try:
            submitted("the store is closed", self._givers, self._give_all, slot)
        except (StoreClosed, StoreUnavailable) as error:  # it never runs
            with self._waiting:
                self._giving.discard(slot)
                self._next.pop(slot, None)
            gift.given.set_exception(error)
            gift.ended.set_result(None)
        return gift

    def _give_all(self, slot: int) -> None:
        while True:
            with self._waiting:
                gift = self._next.pop(slot, None)
                if gift is None:
                    self._giving.discard(slot)
                    return
            self._give(slot, gift)

    def _give(self, slot: int, gift: _Gift) -> None:
        """Store the newest keys on a volume, say whether it has them, and remove former copies there."""
        try:
            volume = self._volumes.volume(slot)
            raw = self._keyring.encoded()
            shard = _shard_of(raw)
            there = volume is not None and self._is_on(slot, volume, shard)
            gift.given.set_result(there)
            if there:
                self._remove_former(slot, shard.key, raw)
        except Exception as error:
            if gift.given.done():
                log.exception("former copies of the users' keys on volume %s remain", self._volumes.name(slot))
            else:
                gift.given.set_exception(error)
        finally:
            if not gift.given.done():  # the thread is being ended
                gift.given.set_result(False)
            gift.ended.set_result(None)

    def _spread_enough(self) -> None:
        """Store the keys on more volumes than may be lost at once, unless they are. The others get them later.

        Raises:
            InsufficientWorkers: too few volumes took them.
        """
        made = self._made
        if self._spread_upto >= made:
            return
        needed = min(self._profile.n - self._profile.k + 1, len(self._volumes))
        there = _count([gift.given for gift in self._give_each()], needed)
        if there < needed:
            raise InsufficientWorkers(
                f"the user's key is on {there} volumes, {needed} are needed for it to survive losses; bring more back"
            )
        self._spread_upto = max(self._spread_upto, made)

    @property
    def is_giving(self) -> bool:
        """Whether a volume is being given keys, so that others who have some for it may wait."""
        return bool(self._giving)

    def close(self) -> None:
        """End threads."""
        if self._givers is not None:
            self._givers.shutdown()

    def _is_on(self, slot: int, volume: ShardStore, shard: Shard) -> bool:
        """Whether a volume has the keys; stores them if it lacks them."""
        there = False
        with self._volumes.guard(slot, volume):
            try:
                if volume.missing([shard.key]):
                    volume.append([shard], urgent=True)
                    volume.sync()
                there = True
            except (StoreFull, VolumeUnavailable) as error:
                log.warning("volume %s could not be given the users' keys yet: %s", self._volumes.name(slot), error)
                self._volumes.note_write_refused(slot, error)
        return there and self._volumes.volume(slot) is volume

    def _remove_former(self, slot: int, kept: ShardKey, raw: bytes) -> None:
        """Remove former copies, but none that has other keys: it may be newer, or this catalog may be an old one."""
        volume = self._volumes.volume(slot)
        if volume is None or not self._volumes.trusts(slot):
            return
        with self._volumes.guard(slot, volume):
            others = [*self._found_on(slot, volume, but=kept)]
            known = {sealed.key_id for sealed in decode_sealed_keys(raw).keys} if others else ()
            if former := [key for key, found in others if self._has_only(slot, found, known)]:
                volume.remove(former)

    def _has_only(self, slot: int, found: SealedKeys | None, known: Collection[bytes]) -> bool:
        if found is None or all(
            sealed.key_id in known or self._keyring.is_destroyed(sealed.key_id) for sealed in found.keys
        ):
            return True
        if not all(self._keyring.has(sealed.key_id) for sealed in found.keys):
            log.warning("volume %s has keys of users that this catalog does not know", self._volumes.name(slot))
        return False

    def _found_on(
        self, slot: int, volume: ShardStore, but: ShardKey | None = None
    ) -> Iterator[tuple[ShardKey, SealedKeys | None]]:
        """The copies on a volume, without the one under the key ``but``; None for one that cannot be read."""
        for key in [*islice(volume.keys(*_IDS), _READ_MAX)]:
            if kind_of(key) != Kind.MARK or key == but:
                continue
            try:
                shard = volume.read(key)
                yield key, None if shard is None else decode_sealed_keys(bytes(shard.payload))
            except (CorruptShard, FormatError) as error:
                log.warning("a copy of the users' keys on volume %s is bad: %s", self._volumes.name(slot), error)
                yield key, None

    def recover(self) -> bool:
        """For a rebuild, add the keys that the volumes have; return whether there are any.

        Volumes may lie, but only the master key's owner can make a key. Those that no master key at hand opens are
        dropped if it opens others.
        """
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

    def _take_from_volumes(self) -> None:
        for slot, volume in self._volumes.online():
            with self._volumes.guard(slot, volume):
                for _, found in self._found_on(slot, volume):
                    if found is not None:
                        self._keyring.take(found)


def _count(given: Iterable[Future[bool]], enough: int) -> int:
    """How many of these turn out true, or ``enough`` as soon as so many do."""
    there = 0
    for one in as_completed(given):
        there += one.result()
        if there >= enough:
            break
    return there


def _shard_of(raw: bytes) -> Shard:
    """Return the record of the keys on a volume."""
    identifier = _PREFIX + object_id(raw)[:_HASH_BYTES]
    return Shard(shard_key(metadata_stripe(Kind.MARK, identifier, 1), 0), len(raw), blake3(raw).digest(), raw)
