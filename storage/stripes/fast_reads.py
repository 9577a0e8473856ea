"""The port for reading healthy stripes: its implementation depends on the cost of accessing the stores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from storage.keys import StripeKey
from storage.stripes.shard_map import ShardMap


class FastReads(Protocol):
    """Reads objects without checking each shard. The object's hash shows whether it is right.

    Attributes:
        healed_together: how many stripes to heal together for best performance.
    """

    healed_together: int

    def together(self, object_bytes: int) -> int:
        """Return how many objects of this size to pass to :meth:`read_together` at a time."""

    def read(self, stripe: StripeKey, target: memoryview) -> bool:
        """Like :meth:`fill`, but also request healing of the stripe if shards are missing."""

    def fill(self, stripe: StripeKey, target: memoryview) -> bool:
        """Fill ``target`` (exactly the object's length) with the object, unverified.

        Returns:
            Whether enough shards could be read.
        """

    def read_together(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Iterable[tuple[StripeKey, memoryview]]:
        """Fill and verify the targets of those objects that are faster to read together.

        Returns:
            The other objects. Read each of them before taking the next one from the iterable.
        """

    def read_located(self, wanted: Sequence[tuple[StripeKey, ShardMap]]) -> dict[StripeKey, memoryview]:
        """Read objects whose shards are where the maps say, and return the verified ones.

        Objects that are not faster to read together are left out. Each returned object is the beginning of a buffer
        that is zero-padded to k whole shards.
        """

    def close(self) -> None:
        """End background threads."""
