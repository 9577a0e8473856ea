"""Content that a push finds stored already: whether it can be reused, and which shards to write again if not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from storage.errors import DataLossError, ShardsUnavailable
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, slot_of
from storage.limits import BytesLike
from storage.shards import Shard
from storage.stripes.checked_reads import CheckedReader, ShardReads
from storage.stripes.encoding import Encoder
from storage.stripes.lookup import ShardLookup
from storage.stripes.making import Making
from storage.stripes.reading import StripeReader
from storage.stripes.soundness import Soundness
from storage.stripes.writing import StripeWriter


class KnownContent:
    """Checks stripes that stores claim to have. Thread-safe.

    Args:
        fleet: the stores.
        lookup: finds absent shards.
        reader: reads stripes.
        checked: reads shards.
        encoder: makes the right shards for comparison.
        writer: writes shards again.
        making: lets only one thread at a time complete a stripe.
        soundness: knows which stripes were read, and which could not be.
    """

    def __init__(
        self, fleet: Fleet[Any], lookup: ShardLookup, reader: StripeReader, checked: CheckedReader, encoder: Encoder,
        writer: StripeWriter, making: Making, soundness: Soundness,
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._lookup = lookup
        self._reader = reader
        self._checked = checked
        self._encoder = encoder
        self._writer = writer
        self._making = making
        self._soundness = soundness

    def is_sound(self, stripe: StripeKey, length: int) -> bool:
        """Whether a stripe whose shards all seem to be stored can be reused without writing it again.

        On other people's machines, the stripe is read to find out, once after each doubt about it.

        Args:
            stripe: stripe key of the object.
            length: length of the object in bytes.
        """
        if self._soundness.was_read(stripe):
            return True
        damaged_before = self._soundness.damaged_count
        try:
            self._reader.read_into(stripe, memoryview(bytearray(length)))
        except (DataLossError, ShardsUnavailable):
            return False
        # If this read found a bad shard, that shard is missing now.
        return self._soundness.damaged_count == damaged_before or not self._lookup.look_for(stripe).slots

    def unsound_slots(self, stripe: StripeKey, shards: Sequence[Shard]) -> list[int]:
        """Return the slots of an unsound stripe that have to be written again.

        These are all slots if the stripe could not be decoded. If it is out of reach for now, right shards stay, and
        wrong or missing ones are written again. A shard that cannot be read now stays if enough other shards are
        right, as its store claims to have it.

        Args:
            stripe: a stripe for which :meth:`is_sound` is False.
            shards: all of its shards with their right content.
        """
        if self._soundness.is_doubted(stripe, self._fleet.epoch()):
            return list(range(len(shards)))
        targets, places = self._fleet.targets(stripe), self._fleet.places(stripe)
        reads = ShardReads()
        right = []
        for shard, *stores in zip(shards, targets, places, strict=True):
            if any(self._gives_back(store, shard, reads) for store in dict.fromkeys(stores)):
                right.append(slot_of(shard.key))
        kept = set(right)
        if len(right) >= data_shards(stripe) + self._fleet.margin:
            kept |= reads.unreachable.keys() - reads.rotten.keys()
        return [slot for slot in range(len(shards)) if slot not in kept]

    def _gives_back(self, store: int, shard: Shard, reads: ShardReads) -> bool:
        """Whether a store has exactly this shard."""
        volume = self._fleet.volume(store)
        if volume is None:
            return False
        found = self._checked.read(store, volume, shard.key, None, reads)
        return found is not None and (found.digest, found.object_length) == (shard.digest, shard.object_length)

    def put_unsound(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """Write the :meth:`unsound_slots` of a stripe again, once no other thread is completing it."""
        with self._making.of([stripe]):
            slots = self.unsound_slots(stripe, self._encoder.passing_shards_of(stripe, data, length))
            if slots:
                self._writer.put(stripe, data, length, slots)
