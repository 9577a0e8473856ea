"""Reading single shards, checked against their digests, from wherever they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import ShardKey, StripeKey, shard_count, shard_key, slot_of
from storage.shards import CorruptShard, Location, Shard, ShardStore
from storage.stripes.lookup import ShardLookup
from storage.stripes.quarantine import Places
from storage.stripes.shard_map import ShardMapper


@dataclass(slots=True)
class ShardReads:
    """Results of reading the shards of a stripe.

    Attributes:
        found: apparently intact shards, by stripe slot.
        places: where each of them was.
        rotten: where shards were that do not match their digests.
        unreachable: why shards that may exist could not be read, by stripe slot.
    """

    found: dict[int, Shard] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    rotten: Places = field(default_factory=dict)
    unreachable: dict[int, str] = field(default_factory=dict)


class CheckedReader:
    """Reads shards and checks their digests. Thread-safe.

    Args:
        fleet: the stores.
        lookup: finds the location of a shard in a store.
        mapper: finds the locations of many shards.
    """

    def __init__(self, fleet: Fleet[Any], lookup: ShardLookup, mapper: ShardMapper) -> None:
        self._fleet = fleet
        self._lookup = lookup
        self._mapper = mapper

    def read_all(self, stripe: StripeKey) -> ShardReads:
        """Read all shards of a stripe, first from where they belong, then from other stores."""
        reads = ShardReads()
        for slot, holder in enumerate(self._fleet.holders(stripe)):
            volume = self._fleet.volume(holder)
            if volume is None:
                reads.unreachable[slot] = self._cause(holder)
                continue
            key = shard_key(stripe, slot)
            place = self._lookup.locate(holder, key)
            reads.places[slot] = (holder, place)
            shard = self.read(holder, volume, key, place, reads)
            if shard is not None:
                reads.found[slot] = shard
        if len(reads.found) < shard_count(stripe):
            self._read_elsewhere(stripe, reads)
        return reads

    def _read_elsewhere(self, stripe: StripeKey, reads: ShardReads) -> None:
        """Add shards that were not found where they belong, from other stores that may have them."""
        for holder in self._fleet.elsewhere(stripe):
            slots = [slot for slot in range(shard_count(stripe)) if slot not in reads.found]
            if not slots:
                return
            locations = self._mapper.locate(holder, [shard_key(stripe, slot) for slot in slots])
            if locations is None:
                reads.unreachable |= {slot: self._cause(holder) for slot in slots if slot not in reads.unreachable}
                continue
            for slot, place in zip(slots, locations, strict=True):
                volume = self._fleet.volume(holder)
                if place is None or volume is None:
                    continue
                other = ShardReads(unreachable=reads.unreachable)
                shard = self.read(holder, volume, shard_key(stripe, slot), place, other)
                if shard is not None:
                    reads.found[slot], reads.places[slot] = shard, (holder, place)

    def read(
        self, holder: int, volume: ShardStore, key: ShardKey, place: Location | None, reads: ShardReads
    ) -> Shard | None:
        """Read a shard from one store; return None if that fails.

        Args:
            holder: slot of the store.
            volume: the store.
            key: key of the shard.
            place: location of the shard according to the store.
            reads: gets an entry if the shard is rotten or out of reach.
        """
        try:
            return volume.read(key)
        except CorruptShard:
            reads.rotten[slot_of(key)] = (holder, place)
        except (StorageError, OSError) as error:
            self._fleet.could_not_read(holder, volume, error)
            reads.unreachable[slot_of(key)] = self._cause(holder)
        return None

    def _cause(self, holder: int) -> str:
        """Return a text that says which store is out of reach, and why."""
        place, reason = self._fleet.place(holder), self._fleet.reason(holder)
        if not reason:
            return f"{place} is away"
        return reason if place in reason else f"{place}: {reason}"
