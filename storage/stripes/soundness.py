"""What is known of stripes beyond where their shards are: which could not be read, and which were.

That all shards of a stripe are there does not mean that they are good: a worker may hold wrong ones under right
keys. So a push that would count on what is stored already has to know better.
"""

from __future__ import annotations

import threading

from cachetools import LRUCache

from storage.keys import StripeKey

_DOUBTED_MAX = 16_384
_READ_MAX = 65_536  # some 10 MB; chunks of 1 MiB read again after 64 GiB of others

Epoch = tuple[int, ...]


class Soundness:
    """Remembers stripes. Thread-safe.

    Args:
        remembers_reads: whether it matters that a stripe was read well: where stores are others' machines.

    Attributes:
        damaged_count: how many times a bad shard of any stripe was met.
    """

    def __init__(self, *, remembers_reads: bool) -> None:
        self._remembers_reads = remembers_reads
        self._read: LRUCache[StripeKey, None] = LRUCache(_READ_MAX)
        self._doubted: LRUCache[StripeKey, Epoch | None] = LRUCache(_DOUBTED_MAX)
        self._lock = threading.Lock()
        self.damaged_count = 0

    @property
    def doubts_any(self) -> bool:
        """Whether there is any stripe that could not be read."""
        return bool(self._doubted)

    def note_read(self, stripe: StripeKey) -> None:
        """It was read, and its content verified."""
        if self._remembers_reads or self._doubted:
            with self._lock:
                self._doubted.pop(stripe, None)
                if self._remembers_reads:
                    self._read[stripe] = None

    def note_unreadable(self, stripe: StripeKey) -> None:
        """Not enough good shards of it are left, though some seem to be there."""
        with self._lock:
            self._doubted[stripe] = None
            self._read.pop(stripe, None)

    def note_damaged(self, stripe: StripeKey) -> None:
        """A bad shard of it was met."""
        with self._lock:
            self.damaged_count += 1
            self._read.pop(stripe, None)

    def note_written(self, stripe: StripeKey, epoch: Epoch) -> None:
        """All shards of it were written, with the content known: it is whole unless a store failed since then."""
        if self._doubted:
            with self._lock:
                if stripe in self._doubted:
                    self._doubted[stripe] = epoch

    def is_doubted(self, stripe: StripeKey, epoch: Epoch) -> bool:
        """Whether it could not be read, and was not written anew since."""
        if not self._doubted:
            return False
        with self._lock:
            return stripe in self._doubted and self._doubted[stripe] != epoch

    def was_read(self, stripe: StripeKey) -> bool:
        """Whether it was read well since there was last reason to doubt it; always where that is not remembered."""
        if not self._remembers_reads:
            return True
        with self._lock:
            return stripe in self._read
