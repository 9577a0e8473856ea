"""Looking up the shards of many stripes together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Barrier
from typing import Any, cast

import pytest

from storage.fleet.fleet import Fleet
from storage.fleet.placement import FixedLayout
from storage.keys import STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey, shard_key, stripe_key
from storage.shards import Location
from storage.stripes.lookup import ShardLookup
from storage.stripes.shard_map import ShardMapper
from storage.stripes.soundness import Soundness

_STORES = 7


class Store:
    """A store that holds some keys."""

    def __init__(self, fleet: Stores) -> None:
        self.held: set[ShardKey] = set()
        self.asked: list[ShardKey] = []
        self._fleet = fleet

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        self.asked += keys
        return [at for at, key in enumerate(keys) if key not in self.held]

    def locate(self, key: ShardKey) -> Location | None:
        return self.locate_all([key])[0]

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        if self._fleet.meeting is not None:
            self._fleet.meeting.wait(20)
        return [Location(0, 0, 10, 40) if key in self.held else None for key in keys]


class Stores:
    """A fleet with a fixed layout. With ``keeping``, shards that belong on the first store are on the last."""

    def __init__(self, *, keeping: bool) -> None:
        self._layout = FixedLayout(_STORES - 1)
        self.stores = [Store(self) for _ in range(_STORES)]
        self.meeting: Barrier | None = None  # where all stores that are asked where shards are wait for each other
        self.keeping = keeping

    def volume(self, slot: int) -> Store:
        return self.stores[slot]

    def trusts(self, slot: int) -> bool:
        return 0 <= slot < _STORES

    def epoch(self) -> tuple[int, ...]:
        return ()

    def targets(self, stripe: StripeKey) -> tuple[int, ...]:
        return self._layout.volumes(stripe, stripe[34] + 1)

    def places(self, stripe: StripeKey) -> tuple[int, ...]:
        targets = self.targets(stripe)
        return tuple(_STORES - 1 if target == 0 else target for target in targets) if self.keeping else targets

    def places_differ(self) -> bool:
        return self.keeping

    def elsewhere(self, stripe: StripeKey) -> tuple[int, ...]:
        return tuple(range(_STORES))

    def slow(self) -> tuple[int, ...]:
        return ()


def shard_mapper(fleet: Stores) -> ShardMapper:
    return ShardMapper(cast(Fleet[Any], fleet), None)


@pytest.mark.parametrize("keeping", [False, True])
def test_what_is_missing_of_many_stripes_coded_in_several_ways(keeping: bool) -> None:
    rng = Random(5)
    fleet = Stores(keeping=keeping)
    codes = [(Kind.CHUNK, 4, 6), (Kind.NODE, 1, 5), (Kind.CHUNK, 2, 3)]
    stripes = [stripe_key(kind, rng.randbytes(32), k, n) for kind, k, n in rng.choices(codes, k=3000)]
    stripes += stripes[:50]  # some occur twice
    gone: dict[StripeKey, set[int]] = {}
    for stripe in dict.fromkeys(stripes):
        places = fleet.places(stripe)
        for slot, store in enumerate(places):
            if rng.random() < 0.1:
                gone.setdefault(stripe, set()).add(slot)
            else:
                fleet.stores[store].held.add(shard_key(stripe, slot))
    found = shard_mapper(fleet).lacking(stripes)
    assert list(found) == [index for index, stripe in enumerate(stripes) if stripe in gone]
    assert all(found[index] == sorted(gone[stripes[index]]) for index in found)


def test_each_shard_is_asked_for_once_and_in_the_order_of_ids() -> None:
    rng = Random(6)
    fleet = Stores(keeping=False)
    stripes = [stripe_key(Kind.CHUNK, rng.randbytes(32), 4, 6) for _ in range(500)]
    shard_mapper(fleet).lacking([*stripes, *stripes])
    asked = [store.asked for store in fleet.stores]
    expected = {shard_key(stripe, slot) for stripe in stripes for slot in range(6)}
    assert sum(map(len, asked)) == len(expected)
    assert {key for keys in asked for key in keys} == expected
    for keys in asked:
        partitions = [key[:1] for key in keys]
        assert partitions == sorted(partitions)


def test_a_shard_found_elsewhere_has_a_holder() -> None:
    fleet = Stores(keeping=False)
    whole, moved = (stripe_key(Kind.CHUNK, bytes([first]) * 32, 4, 6) for first in (9, 200))
    for stripe in (whole, moved):
        for slot, store in enumerate(fleet.targets(stripe)):
            place = _STORES - 1 if stripe == moved and slot == 2 else store
            fleet.stores[place].held.add(shard_key(stripe, slot))
    found = shard_mapper(fleet).shard_maps([whole, moved])
    assert list(found) == [1]
    assert found[1].absent == [2]
    assert found[1].missing == 0
    assert found[1].holders[2] == _STORES - 1
    assert found[1].length == 40
    assert len(moved) == STRIPE_KEY_BYTES


@pytest.mark.parametrize("keeping", [False, True])
def test_the_stores_of_one_stripe_are_asked_at_the_same_time_if_they_are_far(keeping: bool) -> None:
    rng = Random(7)
    fleet = Stores(keeping=keeping)
    stripes = [stripe_key(Kind.CHUNK, rng.randbytes(32), 4, 6) for _ in range(60)]
    for stripe in stripes:
        for slot, store in enumerate(fleet.places(stripe)):
            if rng.random() < 0.8:
                fleet.stores[store].held.add(shard_key(stripe, slot))

    def lookup(askers: ThreadPoolExecutor | None) -> ShardLookup:
        stores = cast(Fleet[Any], fleet)
        return ShardLookup(stores, Soundness(remembers_reads=True), ShardMapper(stores, askers))

    expected = [lookup(None).look_for(stripe) for stripe in stripes]
    with ThreadPoolExecutor(_STORES) as askers:
        for stripe, absent in zip(stripes, expected, strict=True):
            fleet.meeting = Barrier(len({*fleet.targets(stripe), *fleet.places(stripe)}))
            assert lookup(askers).look_for(stripe) == absent
