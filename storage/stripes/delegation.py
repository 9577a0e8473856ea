"""Lets stores make absent shards by themselves, so that their bytes do not pass through this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from storage.fleet.fleet import Fleet
from storage.fleet.orders import Order
from storage.keys import ShardKey, StripeKey, data_shards, shard_key
from storage.stripes.shard_map import ShardMap


class Written(NamedTuple):
    """A shard written to a store.

    Attributes:
        key: the shard's key.
        length: length of its payload.
        digest: BLAKE3 hash of its payload.
        store: slot of the store.
        claimed: whether the store made the shard by itself, so that there is only its word for the hash.
    """

    key: ShardKey
    length: int
    digest: bytes
    store: int
    claimed: bool = False


class Delegation:
    """Orders shards from the stores that shall have them. Thread-safe.

    Args:
        fleet: the stores.
    """

    def __init__(self, fleet: Fleet[Any]) -> None:
        self._fleet = fleet

    def make(
        self, stripes: Sequence[StripeKey], maps: Sequence[ShardMap], epoch: tuple[int, ...]
    ) -> dict[StripeKey, list[Written]]:
        """Have as many of the absent shards made as stores can make by themselves.

        Args:
            stripes: the stripes.
            maps: where their shards are; those in ``absent`` are to be made.
            epoch: the fleet's epoch when they were looked up. If it has changed, nothing is made: a store that came
                back may have some of the shards.

        Returns:
            The shards that were made, by stripe; they are not durable yet.
        """
        makers = self._fleet.makers()
        if not makers:
            return {}
        orders: defaultdict[int, list[Order]] = defaultdict(list)
        for stripe, where in zip(stripes, maps, strict=True):
            if where.absent and where.length and len(where.holders) - where.missing >= data_shards(stripe):
                targets = self._fleet.targets(stripe)
                for store in {targets[slot] for slot in where.absent}.intersection(makers):
                    slots = tuple(slot for slot in sorted(where.absent) if targets[slot] == store)
                    orders[store].append(Order(stripe, where.length, slots, where.holders))
        digests = self._fleet.make(orders) if orders and self._fleet.epoch() == epoch else {}
        made: defaultdict[StripeKey, list[Written]] = defaultdict(list)
        for store, given in orders.items():
            for order in given:
                size = -(-order.length // data_shards(order.stripe))
                for key in (shard_key(order.stripe, slot) for slot in order.slots):
                    if key in digests:
                        made[order.stripe].append(Written(key, size, digests[key], store, claimed=True))
        return dict(made)
