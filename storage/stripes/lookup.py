"""Finding the shards of stripes, and which of them are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import BYTE, ShardKey, StripeKey, shard_count, shard_key
from storage.shards import Location, ShardStore
from storage.stripes.shard_map import ShardMap, ShardMapper
from storage.stripes.soundness import Soundness

_LOOKS_MAX = 3  # how often to look up a stripe if stores come or go meanwhile


class Absent(NamedTuple):
    """Shards of a stripe that are not known to be in their places.

    Attributes:
        slots: slots of the missing shards.
        unsure: those of them whose store did not answer, and may have them; see :class:`ShardMap`.
        targets: the target store of each shard of the stripe when the stores were asked. A store that came back later
            was not asked.
    """

    slots: list[int]
    unsure: frozenset[int]
    targets: tuple[int, ...]


class ShardLookup:
    """Asks the stores of a fleet for shards of one stripe or many. Thread-safe.

    Args:
        fleet: the stores.
        soundness: knows which stripes could not be read; these count as absent.
        mapper: looks up many stripes.
    """

    def __init__(self, fleet: Fleet[Any], soundness: Soundness, mapper: ShardMapper) -> None:
        self._fleet = fleet
        self._soundness = soundness
        self._mapper = mapper

    def is_new(self, stripe: StripeKey) -> bool:
        """Whether a stripe is not stored, judged only by its first shard; False if any store is incomplete.

        This is wrong for a stripe that has lost that shard, but then writing it again does no harm.
        """
        if self._fleet.incomplete:
            return False
        holder = self._fleet.holders(stripe)[0]
        return self._lacks(holder, ShardKey(stripe + BYTE[0])) is True

    def look_for(self, stripe: StripeKey) -> Absent:
        """Return the shards that are not known to be in their places. Without any, the stripe is complete.

        A stripe that could not be read counts as having no shards until it is written again.
        """
        for _ in range(_LOOKS_MAX):
            epoch = self._fleet.epoch()
            if self._soundness.is_doubted(stripe, epoch):
                return Absent(list(range(shard_count(stripe))), frozenset(), self._fleet.targets(stripe))
            found = self._look_now(stripe)
            if not found.slots or self._fleet.epoch() == epoch:
                break
        return found

    def _look_now(self, stripe: StripeKey) -> Absent:
        targets, places = self._fleet.targets(stripe), self._fleet.places(stripe)
        lacks = self._lacks if not self._mapper.asks_together else self._asked_together(stripe, targets, places)
        absent, unsure = [], []
        for slot, (target, place) in enumerate(zip(targets, places, strict=True)):
            key = ShardKey(stripe + BYTE[slot])
            lacking = lacks(target, key)
            if lacking is not False and place != target:
                there = lacks(place, key)
                lacking = there and lacking
            if lacking is not False:
                absent.append(slot)
                unsure += [slot] if lacking is None else []
        return Absent(absent, frozenset(unsure), targets)

    def _asked_together(
        self, stripe: StripeKey, targets: tuple[int, ...], places: tuple[int, ...]
    ) -> Callable[[int, ShardKey], bool | None]:
        """Ask all stores at the same time; return what :meth:`_lacks` would have returned for each of its shards."""
        asked: dict[int, list[ShardKey]] = {
            store: [] for store in (*targets, *places) if self._fleet.volume(store) is not None
        }
        for slot, stores in enumerate(zip(targets, places, strict=True)):
            for store in asked.keys() & stores:
                asked[store].append(ShardKey(stripe + BYTE[slot]))
        located = self._mapper.locate_each(asked)

        def lacks(store: int, key: ShardKey) -> bool | None:
            if store not in asked:
                return True
            found = located[store]
            return None if found is None else found[asked[store].index(key)] is None

        return lacks

    def _lacks(self, store: int, key: ShardKey) -> bool | None:
        """Whether a store lacks a shard; True if it is known to be away, None if it does not answer."""
        volume: ShardStore | None = self._fleet.volume(store)
        if volume is None:
            return True
        try:
            return volume.locate(key) is None
        except StorageError as error:
            self._fleet.failed(store, volume, error)
        return None

    def look_for_all(self, stripes: Sequence[StripeKey]) -> list[Absent]:
        """Return what :meth:`look_for` would return for each stripe, asking each store only once."""
        targets = [self._fleet.targets(stripe) for stripe in stripes]
        lacking, unsure = self._mapper.lacking_or_unsure(stripes)
        now = self._fleet.epoch()
        return [
            Absent(list(range(shard_count(stripe))), frozenset(), stores)
            if self._soundness.is_doubted(stripe, now)
            else Absent(lacking.get(index, []), unsure.get(index, frozenset()), stores)
            for index, (stripe, stores) in enumerate(zip(stripes, targets, strict=True))
        ]

    def absent(self, stripes: Sequence[StripeKey]) -> list[list[int]]:
        """Return the slots of :meth:`look_for_all`."""
        return [found.slots for found in self.look_for_all(stripes)]

    def shard_maps(self, stripes: Sequence[StripeKey]) -> list[ShardMap]:
        """Return where the shards of many stripes are, in their places and elsewhere."""
        found = self._mapper.shard_maps(stripes)
        return [
            found.get(index) or ShardMap(self._fleet.targets(stripe), [], None) for index, stripe in enumerate(stripes)
        ]

    def whereabouts(self, stripes: Sequence[StripeKey]) -> list[tuple[int | None, ...]]:
        """Return the store that has each shard of the stripes; None if no store has it.

        Stores are only asked about stripes that are not settled (:meth:`Fleet.is_settled`). One that does not answer
        counts as having what belongs there.
        """
        asked = [stripe for stripe in stripes if not self._fleet.is_settled(stripe)]
        if not asked:
            return [self._fleet.places(stripe) for stripe in stripes]
        found: dict[StripeKey, tuple[int | None, ...]] = dict(zip(asked, self._mapper.placed(asked), strict=True))
        for index, where in self._mapper.shard_maps(asked).items():
            placed = found[asked[index]]
            found[asked[index]] = tuple(
                placed[slot] if slot in where.unsure and holder is None else holder
                for slot, holder in enumerate(where.holders)
            )
        return [found[stripe] if stripe in found else self._fleet.places(stripe) for stripe in stripes]

    def locate(self, holder: int, key: ShardKey) -> Location | None:
        """Return the location of a shard in a store; None if the store lacks it, is away, or does not answer."""
        volume: ShardStore | None = self._fleet.volume(holder)
        if volume is not None:
            try:
                return volume.locate(key)
            except StorageError as error:
                self._fleet.failed(holder, volume, error)
        return None

    def object_length(self, stripe: StripeKey) -> int | None:
        """Return the length of a stored object according to a shard's header; None if no shard is found."""
        slow = self._fleet.slow()
        for slot, holder in sorted(enumerate(self._fleet.holders(stripe)), key=lambda one: one[1] in slow):
            location = self.locate(holder, shard_key(stripe, slot))
            if location is not None:
                return location.object_length
        return None
