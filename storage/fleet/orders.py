"""Orders to stores: shards that a store makes by itself from those of other stores."""

from __future__ import annotations

from typing import NamedTuple

from storage.keys import StripeKey


class Order(NamedTuple):
    """Shards of one stripe for a store to make.

    Attributes:
        stripe: stripe key of the object.
        length: length of the object in bytes, which may be wrong.
        slots: slots of the shards to make, ascending.
        holders: the store that has each shard of the stripe; None if no store has it.
    """

    stripe: StripeKey
    length: int
    slots: tuple[int, ...]
    holders: tuple[int | None, ...]
