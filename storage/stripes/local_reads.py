"""Reading healthy stripes from local disks: data shards go straight into the reader's buffer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from storage.erasure import code_for_key
from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import BYTE, ShardKey, StripeKey, data_shards, shard_count, shard_key
from storage.shards import ShardStore
from storage.stripes.checked_reads import CheckedReader, ShardReads
from storage.stripes.lookup import ShardLookup
from storage.stripes.quarantine import HealRequests, Quarantine
from storage.stripes.recovery import Recovery
from storage.stripes.shard_map import ShardMap


class LocalReads:
    """Reads one shard after another from its place. Thread-safe.

    See :class:`~storage.stripes.fast_reads.FastReads`.

    Args:
        fleet: the stores.
        lookup: finds the location of a shard in a store.
        checked: reads shards again that could not be read, to find out why.
        quarantine: sets bad shards aside.
        recovery: finds out from the whole object which shards are wrong.
        heal_requests: called for stripes that lack shards.
    """

    healed_together = 1

    def __init__(
        self, fleet: Fleet[Any], lookup: ShardLookup, checked: CheckedReader, quarantine: Quarantine,
        recovery: Recovery, heal_requests: HealRequests,
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._lookup = lookup
        self._checked = checked
        self._quarantine = quarantine
        self._recovery = recovery
        self._heal_requests = heal_requests
        self._local = threading.local()

    def together(self, object_bytes: int) -> int:
        """Return 1, as reading several objects together is not faster."""
        return 1

    def read(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        missing = self._fill(stripe, target)
        if missing:
            self._look_into(stripe, missing, len(target))
        return missing is not None

    def fill(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        return self._fill(stripe, target) is not None

    def read_together(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Sequence[tuple[StripeKey, memoryview]]:
        """Return all objects, to be read one by one."""
        return reads

    def read_located(self, wanted: Sequence[tuple[StripeKey, ShardMap]]) -> dict[StripeKey, memoryview]:
        """Read nothing."""
        return {}

    def close(self) -> None:
        """Do nothing, as there are no background threads."""

    def _fill(self, stripe: StripeKey, target: memoryview) -> list[int] | None:
        """Fill ``target``; return the missing data shards that were replaced, or None if too few shards were read."""
        k = data_shards(stripe)
        length = len(target)
        shard_length = -(-length // k)
        holders = self._fleet.holders(stripe)
        missing: list[int] = []
        for slot in range(k):
            part = target[slot * shard_length : (slot + 1) * shard_length]
            buffers = [part] if len(part) == shard_length else [part, _padding(shard_length - len(part))]
            if not self._read_one(holders[slot], ShardKey(stripe + BYTE[slot]), buffers, shard_length):
                missing.append(slot)
        if not missing or self._fill_from_parity(stripe, target, shard_length, missing):
            return missing
        return None

    def _read_one(self, holder: int, key: ShardKey, buffers: list[memoryview], length: int) -> bool:
        volume: ShardStore | None = self._fleet.volume(holder)
        if volume is None:
            return False
        try:
            return volume.read_into(key, buffers, length)
        except (StorageError, OSError) as error:
            self._fleet.could_not_read(holder, volume, error)
            return False

    def _fill_from_parity(self, stripe: StripeKey, target: memoryview, shard_length: int, missing: list[int]) -> bool:
        """Compute missing data shards in place from parity; return False if there is not enough parity."""
        k, n = data_shards(stripe), shard_count(stripe)
        if len(target) != k * shard_length:
            return False  # padded objects are left to recovery: target has no room for their last shards
        holders = self._fleet.holders(stripe)
        extra: dict[int, memoryview] = {}
        for slot in range(k, n):
            if len(extra) == len(missing):
                break
            block = self._block(len(extra), shard_length)
            if self._read_one(holders[slot], ShardKey(stripe + BYTE[slot]), [block], shard_length):
                extra[slot] = block
        if len(extra) < len(missing):
            return False
        cut = {slot: target[slot * shard_length : (slot + 1) * shard_length] for slot in range(k)}
        have = {slot: block for slot, block in cut.items() if slot not in missing} | extra
        slots = sorted(have)
        code_for_key(k, n).decode_into([have[s] for s in slots], slots, missing, [cut[s] for s in missing])
        return True

    def _block(self, index: int, length: int) -> memoryview:
        """Return this thread's reusable buffer for the index-th parity shard of a read."""
        blocks: dict[int, bytearray] = self._local.__dict__.setdefault("blocks", {})
        block = blocks.get(index)
        if block is None or len(block) < length:
            block = blocks[index] = bytearray(length)
        return memoryview(block)[:length]

    def _look_into(self, stripe: StripeKey, slots: list[int], length: int) -> None:
        """Find out why shards could not be read, and request healing unless their volumes wait for repair."""
        holders = self._fleet.holders(stripe)
        for slot in slots:
            key, volume = shard_key(stripe, slot), self._fleet.volume(holders[slot])
            if volume is None or holders[slot] in self._fleet.incomplete:
                continue
            place = self._lookup.locate(holders[slot], key)
            reads = ShardReads()
            shard = self._checked.read(holders[slot], volume, key, place, reads)
            if shard is not None and shard.object_length != length:
                # Recovery decodes the whole object and thereby finds the wrong shards.
                self._recovery.recover(stripe, expect=length)
                return
            if shard is None and not reads.rotten and slot not in reads.unreachable:
                self._heal_requests.damaged(stripe)
            if reads.rotten:
                self._quarantine.set_aside(stripe, reads.rotten, "does not match its digest")


def _padding(length: int) -> memoryview:
    return memoryview(bytearray(length))
