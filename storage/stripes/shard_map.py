"""Finds the shards of many stripes, with few requests to each store and little work for complete stripes.

Checking that a million stripes have all their shards is dominated by the innermost loop. So stores are first only asked
which shards are missing; other stores are only searched for those.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.fleet.placement import partition_of, start_of
from storage.keys import (
    BYTE,
    ID_BYTES,
    PackedKeys,
    ShardKey,
    StripeKey,
    data_shards,
    packed_shard_keys,
    slot_of,
    stripe_of,
)
from storage.shards import Location

_SLOT_BITS = 8
_LOOKS_MAX = 3  # how often to look up the same stripes if stores come or go meanwhile

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class ShardMap:
    """Where the shards of a stripe are.

    Attributes:
        holders: the store that has each shard; None if no store has it.
        absent: slots whose shard is not in its place, whether or not it is elsewhere.
        length: length of the object in bytes; None if no shard is found, or if nothing is absent.
        told_by: the store that reported the length.
        unsure: absent slots whose store is present but did not answer, and may have the shard.
    """

    holders: tuple[int | None, ...]
    absent: list[int]
    length: int | None
    told_by: int | None = None
    unsure: frozenset[int] = frozenset()

    @property
    def missing(self) -> int:
        """How many shards no store is known to have."""
        return self.holders.count(None)

    @property
    def lost(self) -> int:
        """How many shards no store has, without those in ``unsure``."""
        return sum(holder is None and slot not in self.unsure for slot, holder in enumerate(self.holders))


class _Answer(NamedTuple):
    """A store's answer about keys.

    Attributes:
        store: slot of the store.
        absent: positions of the keys that the store lacks; all positions if it did not answer.
        answered: whether the store answered.
    """

    store: int
    absent: Sequence[int]
    answered: bool


class _Together(NamedTuple):
    """Stripes whose shards belong on the same stores; ``stores`` are by slot."""

    stores: tuple[int, ...]
    stripes: list[StripeKey]


class _Lacking(NamedTuple):
    """Stripes with shards that are not in their place, by their index, ascending.

    Attributes:
        slots: slots of these shards.
        placed: the store on which each shard of the stripe belongs.
        unsure: see ShardMap.
    """

    slots: dict[int, list[int]]
    placed: dict[int, tuple[int, ...]]
    unsure: dict[int, list[int]]


class ShardMapper:
    """Looks up shards in a fleet. Thread-safe.

    Args:
        fleet: the stores.
        askers: threads to ask all stores at the same time, if they are remote; None: ask one after another.
    """

    def __init__(self, fleet: Fleet[Any], askers: Executor | None) -> None:
        self._fleet = fleet
        self._askers = askers

    def placed(self, stripes: Sequence[StripeKey]) -> list[tuple[int, ...]]:
        """Return the store that has each shard of the stripes in its place, or the shard's target if none has it."""
        targets_of, places_of = self._fleet.targets, self._fleet.places
        placed = [targets_of(stripe) for stripe in stripes]
        keys: defaultdict[int, list[bytes]] = defaultdict(list)
        codes: defaultdict[int, list[int]] = defaultdict(list)
        for index, stripe in enumerate(stripes):
            places = places_of(stripe)
            if places is not placed[index]:
                for slot, (place, target) in enumerate(zip(places, placed[index], strict=True)):
                    if place != target:
                        keys[place].append(stripe + BYTE[slot])
                        codes[place].append(index << _SLOT_BITS | slot)
        for place, positions, answered in self._missing(keys):
            gone = set(positions) if answered else set()  # without an answer, it counts as having all
            for position, code in enumerate(codes[place]):
                if position not in gone:
                    index, slot = divmod(code, 1 << _SLOT_BITS)
                    placed[index] = (*placed[index][:slot], place, *placed[index][slot + 1 :])
        return placed

    def lacking(self, stripes: Sequence[StripeKey]) -> dict[int, list[int]]:
        """Find the stripes with shards that are not known to be in their place.

        Returns:
            Index of the stripe → slots of these shards, both ascending.
        """
        return self.lacking_or_unsure(stripes)[0]

    def lacking_or_unsure(self, stripes: Sequence[StripeKey]) -> tuple[dict[int, list[int]], dict[int, frozenset[int]]]:
        """See :meth:`lacking`; and, likewise, those of the slots that :class:`ShardMap` calls unsure."""

        def look() -> tuple[_Lacking, bool]:
            found = self._lacking(stripes)
            return found, not found.unsure

        found = self._steady(look)
        return found.slots, {index: self._present(found, index) for index in found.unsure}

    def _present(self, found: _Lacking, index: int) -> frozenset[int]:
        """The slots of a stripe whose stores are present but did not answer."""
        stores = found.placed[index]
        return frozenset(slot for slot in found.unsure.get(index, ()) if self._fleet.volume(stores[slot]) is not None)

    def _lacking(self, stripes: Sequence[StripeKey]) -> _Lacking:
        together = list(self._together(stripes))
        pieces: defaultdict[int, list[bytes]] = defaultdict(list)
        for stores, alike in together:
            for slot, store in enumerate(stores):
                pieces[store].append(packed_shard_keys(alike, slot))
        keys = {store: PackedKeys(b"".join(piece)) for store, piece in pieces.items()}
        absent: defaultdict[StripeKey, list[int]] = defaultdict(list)
        unsure: defaultdict[StripeKey, list[int]] = defaultdict(list)
        for store, positions, answered in self._missing(keys):
            for position in positions:
                key = keys[store][position]
                stripe, slot = stripe_of(key), slot_of(key)
                absent[stripe].append(slot)
                if not answered:
                    unsure[stripe].append(slot)
        if not absent:
            return _Lacking({}, {}, {})
        placed = {stripe: stores for stores, alike in together for stripe in alike if stripe in absent}
        indexes = [(index, stripe) for index, stripe in enumerate(stripes) if stripe in absent]
        return _Lacking(
            {index: sorted(absent[stripe]) for index, stripe in indexes},
            {index: placed[stripe] for index, stripe in indexes},
            {index: unsure[stripe] for index, stripe in indexes if stripe in unsure},
        )

    def _together(self, stripes: Sequence[StripeKey]) -> Iterator[_Together]:
        """Group the stripes by their stores, each stripe once. Groups are sorted by id, like the stores' indexes."""
        if self._fleet.places_differ():
            by_stores: defaultdict[tuple[int, ...], dict[StripeKey, None]] = defaultdict(dict)
            for stripe, stores in zip(stripes, self.placed(stripes), strict=True):
                by_stores[stores][stripe] = None
            for stores, alike in by_stores.items():
                yield _Together(stores, sorted(alike))
            return
        by_code: defaultdict[bytes, list[StripeKey]] = defaultdict(list)
        for stripe in dict.fromkeys(stripes):
            by_code[stripe[ID_BYTES:]].append(stripe)
        for coded_alike in by_code.values():
            coded_alike.sort()
            first = 0
            while first < len(coded_alike):
                stripe = coded_alike[first]
                end = bisect_left(coded_alike, start_of(partition_of(stripe) + 1), first)
                yield _Together(self._fleet.targets(stripe), coded_alike[first:end])
                first = end

    def shard_maps(self, stripes: Sequence[StripeKey], *, also_slow: bool = False) -> dict[int, ShardMap]:
        """Return where the shards of the :meth:`lacking` stripes are, by index, ascending.

        Args:
            stripes: the stripes.
            also_slow: search slow stores as well, even for stripes that can be read without them.
        """
        slow = frozenset[int]() if also_slow else self._fleet.slow()
        return self._steady(lambda: self._shard_maps(stripes, slow))

    def _shard_maps(self, stripes: Sequence[StripeKey], slow: Collection[int]) -> tuple[dict[int, ShardMap], bool]:
        looked = self._lacking(stripes)
        lacking, placed, unsure = looked
        holders = self._holders(stripes, placed, lacking, slow)
        lengths = self._lengths(stripes, holders)
        found = {}
        for index, absent in lacking.items():
            length, told_by = lengths.get(index, (None, None))
            found[index] = ShardMap(tuple(holders[index]), absent, length, told_by, self._present(looked, index))
        return found, not unsure

    def _steady(self, look: Callable[[], tuple[ResultT, bool]]) -> ResultT:
        """Call ``look``, and repeat it if a store did not answer and stores came or went meanwhile.

        The shards of a store that goes are put elsewhere from then on, and a store that comes back still has its own.
        """
        for _ in range(_LOOKS_MAX):
            epoch = self._fleet.epoch()
            found, all_answered = look()
            if all_answered or self._fleet.epoch() == epoch:
                break
        return found

    def _holders(
        self,
        stripes: Sequence[StripeKey],
        placed: Mapping[int, tuple[int, ...]],
        lacking: Mapping[int, list[int]],
        slow: Collection[int],
    ) -> dict[int, list[int | None]]:
        """Return the store that has each shard, by index of the stripe.

        ``slow`` stores are searched only if the stripe could not be read without them.
        """
        holders: dict[int, list[int | None]] = {}
        keys: defaultdict[int, list[bytes]] = defaultdict(list)
        codes: defaultdict[int, list[int]] = defaultdict(list)
        for index, absent in lacking.items():
            stripe, stores = stripes[index], placed[index]
            known = holders[index] = list[int | None](stores)
            for slot in absent:
                known[slot] = None
            enough = len(stores) - len(absent) >= data_shards(stripe)
            for store in self._fleet.elsewhere(stripe):
                if not self._fleet.trusts(store) or (enough and store in slow):
                    continue
                for slot in absent:
                    if stores[slot] != store:
                        keys[store].append(stripe + BYTE[slot])
                        codes[store].append(index << _SLOT_BITS | slot)
        for store, positions, _ in self._missing(keys):
            gone = set(positions)
            for position, code in enumerate(codes[store]):
                if position not in gone:
                    index, slot = divmod(code, 1 << _SLOT_BITS)
                    holders[index][slot] = store
        return holders

    def _lengths(
        self, stripes: Sequence[StripeKey], holders: Mapping[int, Sequence[int | None]]
    ) -> dict[int, tuple[int, int]]:
        """Return the length of the object and the store that reported it, by index of the stripe."""
        keys: defaultdict[int, list[ShardKey]] = defaultdict(list)
        indexes: defaultdict[int, list[int]] = defaultdict(list)
        for index, known in holders.items():
            for slot, store in enumerate(known):
                if store is not None and self._fleet.trusts(store):
                    keys[store].append(ShardKey(stripes[index] + BYTE[slot]))
                    indexes[store].append(index)
                    break
        found: dict[int, tuple[int, int]] = {}
        places = self._map(lambda store: self.locate(store, keys[store]), keys)
        for store, located in zip(keys, places, strict=True):
            if located is None:
                continue
            for index, place in zip(indexes[store], located, strict=True):
                if place is not None:
                    found[index] = place.object_length, store
        return found

    def _missing(self, keys: Mapping[int, Sequence[Any]]) -> Iterator[_Answer]:
        """Ask each store which of its keys it lacks."""

        def ask(store: int) -> _Answer:
            volume = self._fleet.volume(store)
            if volume is not None:
                try:
                    return _Answer(store, volume.missing(keys[store]), answered=True)
                except StorageError as error:
                    self._fleet.failed(store, volume, error)
            return _Answer(store, range(len(keys[store])), answered=False)

        return self._map(ask, keys)

    @property
    def asks_together(self) -> bool:
        """Whether stores are asked at the same time: one that is far away takes a while to answer."""
        return self._askers is not None

    def locate_each(self, keys: Mapping[int, Sequence[ShardKey]]) -> dict[int, list[Location | None] | None]:
        """Return what :meth:`locate` returns for each store, asking all of them at the same time."""
        return dict(zip(keys, self._map(lambda store: self.locate(store, keys[store]), keys), strict=True))

    def locate(self, store: int, keys: Sequence[ShardKey]) -> list[Location | None] | None:
        """Return the locations of shards in a store; None if the store is away or does not answer."""
        volume = self._fleet.volume(store)
        if volume is not None:
            try:
                return list(volume.locate_all(keys))
            except StorageError as error:
                self._fleet.failed(store, volume, error)
        return None

    def _map(self, ask: Any, stores: Mapping[int, object]) -> Iterator[Any]:
        return map(ask, stores) if self._askers is None else self._askers.map(ask, stores)
