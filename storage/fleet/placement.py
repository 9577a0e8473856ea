"""Placement: which volume holds which slot of a stripe.

There are 1024 partitions, by the first 10 bits of the object id. Within a partition, volumes are ordered by rendezvous
hashing (Thaler and Ravishankar, 1998), so that data and parity, and thus load, are spread evenly, and adding a volume
moves only shards that go to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import blake3

PARTITIONS = 1024


def partition_of(object_id: bytes) -> int:
    """The partition (0…1023) of an object: the first 10 bits of its id."""
    return (object_id[0] << 2) | (object_id[1] >> 6)


def start_of(partition: int) -> bytes:
    """The lowest possible id in this partition; for ``PARTITIONS``, a bound above all ids."""
    return (partition << 6).to_bytes(2, "big") if partition < PARTITIONS else b"\xff" * 33


def losses_survivable(holders: Iterable[int], k: int) -> int:
    """How many stores, whichever, may be lost at once with an object still readable; -1: it is unreadable now.

    Args:
        holders: the store of each existing shard.
        k: shards needed.
    """
    counts = sorted(Counter(holders).values(), reverse=True)
    left, losses = sum(counts), -1
    for count in (0, *counts):
        left -= count
        if left < k:
            break
        losses += 1
    return losses


class FixedLayout:
    """An immutable table from partition to an order of volumes; slot i of a stripe belongs on the i-th of them.

    Rows are computed on demand, as a command that touches few objects needs few of them.

    With fewer volumes than slots, the order is repeated, so that a volume holds several slots.
    """

    def __init__(self, volume_count: int) -> None:
        if volume_count < 1:
            raise ValueError("a layout needs at least one volume")
        self.volume_count = volume_count
        self._placed: dict[tuple[int, int], tuple[int, ...]] = {}

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The volume index of each slot 0…n-1 of the object."""
        partition = partition_of(object_id)
        found = self._placed.get((partition, n))
        if found is None:
            found = self._placed[partition, n] = self._cycle(self._order(partition), n)
        return found

    def losses_survivable(self, k: int, n: int) -> int:
        """How many volumes, whichever, may be lost at once with k-of-n stripes still readable."""
        per_volume = -(-n // self.volume_count)
        return (n - k) // per_volume

    def _order(self, partition: int) -> tuple[int, ...]:
        def score(volume: int) -> bytes:
            return blake3.blake3(partition.to_bytes(2, "big") + volume.to_bytes(2, "big")).digest()

        return tuple(sorted(range(self.volume_count), key=score, reverse=True))

    def _cycle(self, order: tuple[int, ...], n: int) -> tuple[int, ...]:
        return tuple(order[slot % self.volume_count] for slot in range(n))
