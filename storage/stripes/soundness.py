"""Remembers which stripes were read successfully, and which could not be read.

A stripe with all of its shards may still be unreadable, as a worker may hold wrong shards under right keys. A push that
reuses stored content needs to know.
"""

from __future__ import annotations

import threading

from cachetools import LRUCache

from storage.keys import StripeKey

_DOUBTED_MAX = 16_384
_READ_MAX = 65_536  # some 10 MB; chunks of 1 MiB read again after 64 GiB of others

Epoch = tuple[int, ...]


class Soundness:
    """Remembers the state of stripes. Thread-safe.

    Args:
        remembers_reads: whether to remember successful reads, for stores on other people's machines.

    Attributes:
        damaged_count: how often a bad shard of any stripe was found.
    """

    def __init__(self, *, remembers_reads: bool) -> None:
        self._remembers_reads = remembers_reads
        self._read: LRUCache[StripeKey, None] = LRUCache(_READ_MAX)
        self._doubted: LRUCache[StripeKey, Epoch | None] = LRUCache(_DOUBTED_MAX)
        self._lock = threading.Lock()
        self.damaged_count = 0

    @property
    def doubts_any(self) -> bool:
        """Whether any stripe could not be read."""
        return bool(self._doubted)

    def note_read(self, stripe: StripeKey) -> None:
        """Note that a stripe was read, and its content verified."""
        if self._remembers_reads or self._doubted:
            with self._lock:
                self._doubted.pop(stripe, None)
                if self._remembers_reads:
                    self._read[stripe] = None

    def note_unreadable(self, stripe: StripeKey) -> None:
        """Note that a stripe does not have enough good shards, although it seems to have shards."""
        with self._lock:
            self._doubted[stripe] = None
            self._read.pop(stripe, None)

    def note_damaged(self, stripe: StripeKey) -> None:
        """Note that a bad shard of a stripe was found."""
        with self._lock:
            self.damaged_count += 1
            self._read.pop(stripe, None)

    def note_written(self, stripe: StripeKey, epoch: Epoch) -> None:
        """Note that all shards of a stripe were written again. It is complete unless a store failed after ``epoch``."""
        if self._doubted:
            with self._lock:
                if stripe in self._doubted:
                    self._doubted[stripe] = epoch

    def is_doubted(self, stripe: StripeKey, epoch: Epoch) -> bool:
        """Whether a stripe could not be read, and was not written again since."""
        if not self._doubted:
            return False
        with self._lock:
            return stripe in self._doubted and self._doubted[stripe] != epoch

    def was_read(self, stripe: StripeKey) -> bool:
        """Whether a stripe was read successfully since the last doubt about it; True if reads are not remembered."""
        if not self._remembers_reads:
            return True
        with self._lock:
            return stripe in self._read
