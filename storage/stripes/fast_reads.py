"""How the shards of healthy stripes are read: a strategy that the cost of an access to their stores decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from storage.keys import StripeKey
from storage.stripes.shard_map import ShardMap


class FastReads(Protocol):
    """Reads objects without checking each shard; whether an object is the right one is for its hash to tell.

    Attributes:
        healed_together: how many stripes are best read together to be healed.
    """

    healed_together: int

    def together(self, object_bytes: int) -> int:
        """How many objects of this size :meth:`read_together` is best given at a time."""

    def read(self, stripe: StripeKey, target: memoryview) -> bool:
        """:meth:`fill`, and have the stripe healed if shards proved to be missing."""

    def fill(self, stripe: StripeKey, target: memoryview) -> bool:
        """Fill ``target`` (exactly the object's length) with the object, unverified.

        Returns:
            Whether enough shards could be had.
        """

    def read_together(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Iterable[tuple[StripeKey, memoryview]]:
        """Fill the targets of those objects that are read faster together, and verify them.

        Returns:
            The others, which are to be read one by one, each before the next one is taken from here.
        """

    def read_located(self, wanted: Sequence[tuple[StripeKey, ShardMap]]) -> dict[StripeKey, memoryview]:
        """Verified objects from where the maps say that their shards are; those that were read faster together.

        Each is cut to its length from a buffer that is zero-padded to k whole shards.
        """

    def close(self) -> None:
        """End what runs in the background."""
