"""Writing shards to their stores."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from cachetools import LRUCache

from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, shard_count, slot_of, stripe_of
from storage.limits import BytesLike
from storage.shards import Shard
from storage.stripes.encoding import Encoder
from storage.stripes.lookup import ShardLookup
from storage.stripes.making import Making
from storage.stripes.soundness import Soundness

_LATELY_KEPT = 4096  # more than a push writes between two checkpoints


class StripeWriter:
    """Encodes objects and appends their shards. Thread-safe.

    Args:
        fleet: the stores.
        encoder: makes the shards.
        lookup: finds absent shards.
        making: lets only one thread at a time complete a stripe.
        soundness: remembers which stripes were written completely.
    """

    def __init__(
        self, fleet: Fleet[Any], encoder: Encoder, lookup: ShardLookup, making: Making, soundness: Soundness
    ) -> None:
        self._fleet = fleet
        self._encoder = encoder
        self._lookup = lookup
        self._making = making
        self._soundness = soundness
        self._lately: LRUCache[StripeKey, None] = LRUCache(_LATELY_KEPT)
        self._lately_lock = threading.Lock()

    def put(
        self,
        stripe: StripeKey,
        data: BytesLike,
        length: int,
        slots: Collection[int] | None = None,
        targets: Sequence[int] | None = None,
    ) -> list[Shard]:
        """Append shards of an object to their stores. They are not durable yet.

        Args:
            stripe: stripe key of the object.
            data: bytes of the object, zero-padded to a multiple of k if longer than ``length``.
            length: length of the object in bytes.
            slots: slots of the shards to append; default all.
            targets: store for each shard of the stripe, see :class:`~storage.stripes.lookup.Absent`; default the
                current targets.

        Returns:
            The shards that stores accepted. This thread's next call overwrites their payloads.
        """
        if self._fleet.remote:
            with self._lately_lock:
                self._lately[stripe] = None
        shards = self._encoder.passing_shards_of(stripe, data, length, slots)
        batches, since = self.by_volume(stripe, shards, targets), self._fleet.epoch()
        missed = self._fleet.append(batches)
        self.note_appended(batches, since)
        if missed:
            left_out = {shard.key for store in missed for shard in batches[store]}
            return [shard for shard in shards if shard.key not in left_out]
        return shards

    def put_absent(self, stripe: StripeKey, data: BytesLike, length: int) -> None:
        """Append the shards that are still absent, once no other thread is completing the stripe."""
        with self._making.of([stripe]):
            absent = self._lookup.look_for(stripe)
            if absent.slots:
                self.put(stripe, data, length, absent.slots, absent.targets)

    def by_volume(
        self, stripe: StripeKey, shards: Iterable[Shard], targets: Sequence[int] | None = None
    ) -> dict[int, list[Shard]]:
        """Group shards of one stripe by the slot of their target store; ``targets`` as in :meth:`put`."""
        holders = self._fleet.targets(stripe) if targets is None else targets
        batches: dict[int, list[Shard]] = {}
        for shard in shards:
            holder = holders[slot_of(shard[0])]
            if holder in batches:
                batches[holder].append(shard)
            else:
                batches[holder] = [shard]
        return batches

    def note_appended(self, batches: dict[int, list[Shard]], since: tuple[int, ...]) -> None:
        """Note that stripes of which all shards were appended are readable again.

        Args:
            batches: the appended shards, by store.
            since: epoch of the fleet before; a store that failed since then may lack its shards.
        """
        if self._soundness.doubts_any:
            written = Counter(stripe_of(shard.key) for shards in batches.values() for shard in shards)
            for stripe, count in written.items():
                if count == shard_count(stripe):
                    self._soundness.note_written(StripeKey(stripe), since)

    def was_put_lately(self, stripe: StripeKey) -> bool:
        """Whether this stripe is among the last few thousand of :meth:`put`; only known for remote stores."""
        with self._lately_lock:
            return stripe in self._lately
