"""Making absent shards again from the remaining ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from blake3 import blake3

from storage.batching import batched
from storage.errors import DataLossError, ShardsUnavailable
from storage.fleet.fleet import Fleet
from storage.keys import Kind, StripeKey, data_shards, kind_of, object_id_of, shard_count, slot_of
from storage.stripes.delegation import Delegation, Written
from storage.stripes.fast_reads import FastReads
from storage.stripes.lookup import ShardLookup
from storage.stripes.making import Making
from storage.stripes.recovery import Recovery, Unread
from storage.stripes.shard_map import ShardMap
from storage.stripes.writing import StripeWriter

# Several for each of the stores, which work at the same time, and do not keep the objects here.
_DELEGATED_TOGETHER = 16


class StripeHealer:
    """Makes stripes complete again. Thread-safe.

    Args:
        fleet: the stores.
        lookup: finds absent shards.
        fast: reads healthy objects.
        recovery: reads the other objects.
        writer: writes the shards.
        making: lets only one thread at a time complete a stripe.
    """

    def __init__(
        self, fleet: Fleet[Any], lookup: ShardLookup, fast: FastReads, recovery: Recovery, writer: StripeWriter,
        making: Making,
    ) -> None:  # fmt: skip
        self._fleet = fleet
        self._lookup = lookup
        self._fast = fast
        self._recovery = recovery
        self._writer = writer
        self._making = making
        self._delegation = Delegation(fleet)

    @property
    def together(self) -> int:
        """How many stripes to pass to :meth:`heal_all` at a time."""
        return _DELEGATED_TOGETHER if self._fleet.makers() else self._fast.healed_together

    def due(self, stripe: StripeKey, where: ShardMap) -> list[int]:
        """Return the absent slots whose shards have to be made now.

        Shards of stores that are expected back can wait. So can those of stores that do not answer now, unless the
        stripe is in danger. Those for full stores have to: if others stand in for full ones, all are full.
        """
        return self._due(stripe, where.absent, where.unsure, len(where.holders) - where.missing)

    def _due(self, stripe: StripeKey, absent: list[int], unsure: frozenset[int], there: int) -> list[int]:
        waiting = self._fleet.awaited(stripe, there)
        if not self._fleet.is_in_danger(stripe, there):
            waiting |= unsure
        waiting |= self._fleet.unwritable(stripe, absent)
        return [slot for slot in absent if slot not in waiting]

    def heal_all(
        self,
        stripes: Sequence[StripeKey],
        known: Sequence[ShardMap] | None = None,
        note: Callable[[Written], None] | None = None,
        *,
        at_once: bool = False,
    ) -> list[tuple[int, int] | Unread]:
        """Make the absent shards of several stripes again. The stripes are read together.

        Stores that can make their shards by themselves do so, unless all shards are needed ``at_once``.

        Args:
            stripes: the stripes.
            known: where their shards were a short while ago, in the same epoch. If None, or if some of the stripes
                were completed recently, the shards are looked up.
            note: called with each appended shard.
            at_once: whether to make all absent shards, without waiting for stores; see :meth:`due`.

        Returns:
            For each stripe, the number of appended shards and bytes, which are not durable yet, or why it cannot be
            read.
        """
        with self._making.of(stripes) as lately:
            return self._heal_all(stripes, None if lately else known, note, at_once=at_once)

    def _heal_all(
        self,
        stripes: Sequence[StripeKey],
        known: Sequence[ShardMap] | None,
        note: Callable[[Written], None] | None,
        *,
        at_once: bool,
    ) -> list[tuple[int, int] | Unread]:
        epoch = self._fleet.epoch()
        looked = self._lookup.shard_maps(stripes) if known is None else known
        if not at_once:
            looked = [
                replace(where, absent=self.due(stripe, where)) if where.absent else where
                for stripe, where in zip(stripes, looked, strict=True)
            ]
        by_stores = {} if at_once else self._delegation.make(stripes, looked, epoch)
        looked = [_without(where, by_stores.get(stripe)) for stripe, where in zip(stripes, looked, strict=True)]
        made: list[tuple[int, int] | Unread] = []
        for batch in batched(list(zip(stripes, looked, strict=True)), self._fast.healed_together):
            objects = self._fast.read_located([(stripe, where) for stripe, where in batch if where.absent])
            now = self._fleet.epoch()
            if objects and now != epoch:
                batch = self._looked_again(batch, objects, at_once=at_once)
            for stripe, where in batch:
                written = by_stores.get(stripe, [])
                try:
                    if where.absent:
                        content = objects.pop(stripe, None)
                        written = [*written, *self._make_absent(stripe, where, content, now, at_once=at_once)]
                    made.append((len(written), sum(one.length for one in written)))
                except (DataLossError, ShardsUnavailable) as error:
                    made.append(error)
                if note is not None:
                    for one in written:
                        note(one)
        return made

    def _looked_again(
        self, batch: Sequence[tuple[StripeKey, ShardMap]], objects: Collection[StripeKey], *, at_once: bool
    ) -> list[tuple[StripeKey, ShardMap]]:
        """Look up these objects' stripes again, as a store that came back may have some of their shards.

        All of them are looked up together, as stores may be far away.
        """
        again = dict(zip(objects, self._lookup.look_for_all(list(objects)), strict=True))
        looked = []
        for stripe, where in batch:
            if stripe in again:
                absent, unsure, _ = again[stripe]
                if not at_once:
                    absent = self._due(stripe, absent, unsure, shard_count(stripe) - len(absent))
                where = replace(where, absent=absent, unsure=unsure)
            looked.append((stripe, where))
        return looked

    def _make_absent(
        self,
        stripe: StripeKey,
        where: ShardMap,
        content: memoryview | None,
        epoch: tuple[int, ...],
        *,
        at_once: bool,
    ) -> list[Written]:
        k, absent, targets = data_shards(stripe), where.absent, self._fleet.targets(stripe)
        if content is None:
            padded, length = self._whole(stripe)
            if where.told_by is not None and where.length != length:
                self._fleet.note_lie(where.told_by, stripe, f"says that an object has {where.length} bytes")
        else:
            length = len(content)
            assert isinstance(content.obj, bytearray)
            padded = memoryview(content.obj)
        if content is None or self._fleet.epoch() != epoch:
            # Look again: the read may have set more shards aside, and a store that came back may have some.
            absent, unsure, targets = self._lookup.look_for(stripe)
            if not at_once:
                absent = self._due(stripe, absent, unsure, shard_count(stripe) - len(absent))
        slots = [slot for slot in absent if self._fleet.volume(targets[slot]) is not None]
        size = -(-length // k)
        shards = self._writer.put(stripe, padded, length, slots, targets)
        return [Written(shard.key, size, shard.digest, targets[slot_of(shard.key)]) for shard in shards]

    def _whole(self, stripe: StripeKey) -> tuple[memoryview, int]:
        """Return the verified object, zero-padded to k whole shards, and its length."""
        k = data_shards(stripe)
        length = self._lookup.object_length(stripe)
        if length is not None and kind_of(stripe) != Kind.VERSION:  # a version is not named by the hash of its bytes
            padded = memoryview(bytearray(k * -(-length // k)))
            target = padded[:length]
            if self._fast.fill(stripe, target) and blake3(target).digest() == object_id_of(stripe):
                return padded, length
        data = self._recovery.recover(stripe, expect=None)
        padded = memoryview(bytearray(k * -(-len(data) // k)))
        padded[: len(data)] = data
        return padded, len(data)


def _without(where: ShardMap, made: Sequence[Written] | None) -> ShardMap:
    """A stripe's map after shards were made."""
    if not made:
        return where
    there = {slot_of(one.key) for one in made}
    return replace(where, absent=[slot for slot in where.absent if slot not in there])
