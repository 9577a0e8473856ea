"""Small objects that users read lately, kept in memory, so that reading them again asks no store."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from cachetools import LRUCache

from storage.keys import StripeKey
from storage.limits import KIB
from storage.reports import CacheUse

OBJECT_BYTES_MAX = 64 * KIB
"""Larger objects are not kept: reading them takes much longer than asking for them."""
_OVERHEAD_BYTES = 300  # of an entry, for its key, its object and its places in two dictionaries (measured: 270)


class HotObjects:
    """Keeps verified objects by their stripe keys, and drops those that were not read for longest. Thread-safe.

    An object's key contains the hash of its bytes, so what is kept can never be out of date. Which object is a file's
    newest content is not kept here: readers ask the catalog each time.

    Args:
        bytes_max: memory for all objects, in bytes, with what Python needs for each; 0: nothing is kept.
    """

    def __init__(self, bytes_max: int) -> None:
        self._objects: LRUCache[StripeKey, bytes] = LRUCache(
            bytes_max, getsizeof=lambda data: len(data) + _OVERHEAD_BYTES
        )
        self._lock = threading.Lock()
        self._is_used = bytes_max > 0
        self._hits = self._misses = 0

    def fill(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Sequence[tuple[StripeKey, memoryview]]:
        """Fill the targets of those objects that are kept, and return the other ones."""
        if not self._is_used:
            return reads
        with self._lock:
            found = [self._objects.get(stripe) for stripe, _ in reads]
            misses = found.count(None)
            self._hits += len(found) - misses
            self._misses += misses
        left = []
        for read, data in zip(reads, found, strict=True):
            if data is not None and len(data) == len(read[1]):
                read[1][:] = data
            else:
                left.append(read)
        return left

    def keep(self, reads: Iterable[tuple[StripeKey, memoryview]]) -> None:
        """Keep objects that were just read and verified, if they are small."""
        if not self._is_used:
            return
        for stripe, target in reads:
            if len(target) <= OBJECT_BYTES_MAX:
                data = bytes(target)
                with self._lock:
                    # An object that does not fit at all is not kept.
                    if len(data) + _OVERHEAD_BYTES <= self._objects.maxsize:
                        self._objects[stripe] = data

    def forget(self, stripes: Iterable[StripeKey]) -> None:
        """Drop objects whose files were deleted, or that are being removed from the stores."""
        if not self._is_used:
            return
        with self._lock:
            for stripe in stripes:
                self._objects.pop(stripe, None)

    @property
    def size(self) -> int:
        """Bytes of memory in use, about."""
        return int(self._objects.currsize)

    @property
    def use(self) -> CacheUse:
        """How it is used, as of now."""
        with self._lock:
            return CacheUse(self._hits, self._misses, self.size)
