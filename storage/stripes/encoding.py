"""Encoding objects to shards."""

from __future__ import annotations

import threading
from collections.abc import Collection

from blake3 import blake3

from storage.erasure import code_for_key
from storage.keys import BYTE, ShardKey, StripeKey, data_shards, shard_count
from storage.limits import BytesLike
from storage.shards import Shard


class Encoder:
    """Makes shards. Thread-safe: each thread has its own buffer for parity."""

    def __init__(self) -> None:
        self._local = threading.local()

    def shards_of(
        self,
        stripe: StripeKey,
        data: BytesLike,
        length: int,
        scratch: bytearray | None = None,
        slots: Collection[int] | None = None,
    ) -> list[Shard]:
        """Make the shards of an object. Data shards are views of ``data``.

        Args:
            stripe: stripe key of the object.
            data: bytes of the object, zero-padded to a multiple of k if longer than ``length``.
            length: length of the object in bytes.
            scratch: buffer for the parity shards; default a new one.
            slots: slots of the wanted shards; default all.
        """
        k, n = data_shards(stripe), shard_count(stripe)
        wanted = range(n) if slots is None else sorted(slots)
        if k == 1:
            digest = blake3(data).digest()
            return [Shard(ShardKey(stripe + BYTE[slot]), length, digest, data) for slot in wanted]
        shard_length = -(-length // k)
        view = memoryview(data)
        coded = any(slot >= k for slot in wanted)
        parity = code_for_key(k, n).encode(data, shard_length, scratch) if coded else view
        shards = []
        for slot in wanted:
            payload = (
                view[slot * shard_length : (slot + 1) * shard_length]
                if slot < k
                else parity[(slot - k) * shard_length : (slot - k + 1) * shard_length]
            )
            shards.append(Shard(ShardKey(stripe + BYTE[slot]), length, blake3(payload).digest(), payload))
        return shards

    def passing_shards_of(
        self, stripe: StripeKey, data: BytesLike, length: int, slots: Collection[int] | None = None
    ) -> list[Shard]:
        """Like :meth:`shards_of`, with parity in a buffer that this thread's next call overwrites.

        Shards for an append may use it: an append does not use the payloads after it has returned.
        """
        return self.shards_of(stripe, data, length, self._parity(stripe, length), slots)

    def _parity(self, stripe: StripeKey, length: int) -> bytearray:
        """Return this thread's buffer, large enough for the stripe's parity shards."""
        needed = (shard_count(stripe) - data_shards(stripe)) * -(-length // data_shards(stripe))
        parity: bytearray | None = getattr(self._local, "parity", None)
        if parity is None or len(parity) < needed:
            parity = self._local.parity = bytearray(needed)
        return parity
