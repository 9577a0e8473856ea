"""Where the content of chunks is, for those who read it without this engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from storage.keys import StripeKey, data_shards, shard_count


class ChunkPlace(NamedTuple):
    """What is needed to read a chunk.

    Attributes:
        stripe: its stripe.
        length: its length in bytes, as it is stored.
        holders: the store that has each shard; None: no store has it.
        keys: the key that opens it and nothing else, by the epoch of its owner's key; which of them it is, the stored
            chunk says. Empty: it is not sealed.
    """

    stripe: StripeKey
    length: int
    holders: tuple[int | None, ...]
    keys: Mapping[int, bytes]

    @property
    def k(self) -> int:
        """How many of its shards are needed."""
        return data_shards(self.stripe)

    @property
    def n(self) -> int:
        """How many shards it has."""
        return shard_count(self.stripe)
