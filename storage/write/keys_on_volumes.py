"""The users' keys of a store, and what is left of shredding keys, as its volumes have them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from storage.errors import FormatError, StoreFull
from storage.fleet.fleet import Fleet
from storage.keys import Kind, ShardKey, kind_of
from storage.sealing.keyring import Keyring, SealedKeys, decode_sealed_keys
from storage.sealing.remains import RemainsPart, decode_part
from storage.shards import CorruptShard, Shard, ShardStore, VolumeUnavailable
from storage.write.gifts import Gift
from storage.write.key_records import KEYS_IDS, REMAINS_IDS, keys_record
from storage.write.version_secrets import VersionSecrets

log = logging.getLogger(__name__)

_READ_MAX = 64  # a volume has one, and briefly two
_REMAINS_READ_MAX = 1024


class KeysOnVolumes:
    """Stores keys on volumes, removes former copies there, and reads what there is.

    Args:
        volumes: the store's volumes.
        keyring: the users' keys.
        secrets: has what is left of shredding keys.
    """

    def __init__(self, volumes: Fleet[Any], keyring: Keyring, secrets: VersionSecrets) -> None:
        self._volumes = volumes
        self._keyring = keyring
        self._secrets = secrets

    def give(self, slot: int, gift: Gift) -> None:
        """Store the newest keys on a volume, say whether it has them, and remove former copies there."""
        volume = self._volumes.volume(slot)
        raw, remains = self._keyring.encoded(), self._secrets.records
        shard = keys_record(raw)
        there = volume is not None and self._is_on(slot, volume, [shard, *remains])
        gift.given.set_result(there)
        if there:
            self._remove_former(slot, shard.key, raw)
            self._remove_former_remains(slot)

    def _is_on(self, slot: int, volume: ShardStore, shards: list[Shard]) -> bool:
        """Whether a volume has the keys, and what is left of shredding keys; stores what it lacks."""
        there = False
        with self._volumes.guard(slot, volume):
            try:
                if lacking := volume.missing([shard.key for shard in shards]):
                    for at in lacking:  # one by one, as they may be large
                        volume.append([shards[at]], urgent=True)
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
            others = [*self.keys_on(slot, volume, but=kept)]
            known = {sealed.key_id for sealed in decode_sealed_keys(raw).keys} if others else ()
            if former := [key for key, found in others if self._has_only(slot, found, known)]:
                volume.remove(former)

    def _remove_former_remains(self, slot: int) -> None:
        """Remove what is left of shredding keys by former turns, but nothing that is not known, or cannot be judged."""
        volume = self._volumes.volume(slot)
        if volume is None or not self._volumes.trusts(slot) or self._secrets.is_lacking:
            return
        with self._volumes.guard(slot, volume):
            records = self._secrets.records
            kept = {record.key for record in records}
            former = [key for key, part in self.remains_on(slot, volume, kept) if self._is_of_no_use(slot, part)]
            if former and self._secrets.records is records:  # else a turn has just stored more
                volume.remove(former)

    def _is_of_no_use(self, slot: int, part: RemainsPart | None) -> bool:
        if part is None or self._secrets.is_of_no_use(part):
            return True
        log.warning("volume %s has secrets of versions that this catalog may lack", self._volumes.name(slot))
        return False

    def remains_on(
        self, slot: int, volume: ShardStore, but: Collection[ShardKey] = ()
    ) -> Iterator[tuple[ShardKey, RemainsPart | None]]:
        """What a volume has of what is left of shredding keys; None for a part that cannot be read."""
        for key in [*islice(volume.keys(*REMAINS_IDS), _REMAINS_READ_MAX)]:
            if kind_of(key) != Kind.MARK or key in but:
                continue
            try:
                shard = volume.read(key)
                yield key, None if shard is None else decode_part(bytes(shard.payload))
            except (CorruptShard, FormatError) as error:
                log.warning("what is left of shredding keys is bad on %s: %s", self._volumes.name(slot), error)
                yield key, None

    def _has_only(self, slot: int, found: SealedKeys | None, known: Collection[bytes]) -> bool:
        if found is None or all(
            sealed.key_id in known or self._keyring.is_destroyed(sealed.key_id) for sealed in found.keys
        ):
            return True
        if not all(self._keyring.has(sealed.key_id) for sealed in found.keys):
            log.warning("volume %s has keys of users that this catalog does not know", self._volumes.name(slot))
        return False

    def keys_on(
        self, slot: int, volume: ShardStore, but: ShardKey | None = None
    ) -> Iterator[tuple[ShardKey, SealedKeys | None]]:
        """The copies on a volume, without the one under the key ``but``; None for one that cannot be read."""
        for key in [*islice(volume.keys(*KEYS_IDS), _READ_MAX)]:
            if kind_of(key) != Kind.MARK or key == but:
                continue
            try:
                shard = volume.read(key)
                yield key, None if shard is None else decode_sealed_keys(bytes(shard.payload))
            except (CorruptShard, FormatError) as error:
                log.warning("a copy of the users' keys on volume %s is bad: %s", self._volumes.name(slot), error)
                yield key, None

    def remains_read(self, slot: int, volume: ShardStore) -> Iterator[RemainsPart]:
        """What a volume has of what is left of shredding keys, sealed with keys that are here."""
        with self._volumes.guard(slot, volume):
            for _, part in self.remains_on(slot, volume):
                if part is not None and self._keyring.has(part.key_id):
                    yield part
