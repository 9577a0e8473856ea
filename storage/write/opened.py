"""Sealed chunks that this process has opened."""

from __future__ import annotations

import threading

from cachetools import LRUCache

from storage.keys import StripeKey

_OPENED_MAX = 65_536  # as many as are remembered to have been read


class Opened:
    """Remembers sealed chunks whose content has the hash by which they are found. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: LRUCache[tuple[StripeKey, bytes], None] = LRUCache(_OPENED_MAX)

    def note(self, stripe: StripeKey, plain_id: bytes) -> None:
        """Note that the content of a chunk has this hash."""
        with self._lock:
            self._known[stripe, plain_id] = None

    def has(self, stripe: StripeKey, plain_id: bytes) -> bool:
        """Whether the content of a chunk is known to have this hash."""
        with self._lock:
            return (stripe, plain_id) in self._known
