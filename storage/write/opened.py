"""Sealed chunks that this process has opened."""

from __future__ import annotations

import threading

from blake3 import blake3
from cachetools import LRUCache

from storage.keys import StripeKey

_OPENED_MAX = 65_536  # as many as are remembered to have been read
_WRONG_MAX = 65_536


class Opened:
    """Remembers sealed chunks whose content has the hash by which they are found. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: LRUCache[tuple[StripeKey, bytes], None] = LRUCache(_OPENED_MAX)
        self._wrong: LRUCache[bytes, None] = LRUCache(_WRONG_MAX)

    def note(self, stripe: StripeKey, plain_id: bytes) -> None:
        """Note that the content of a chunk has this hash."""
        with self._lock:
            self._known[stripe, plain_id] = None

    def note_wrong(self, stripe: StripeKey, plain_id: bytes, hashes: bytes) -> None:
        """Note that the content of a chunk has another hash, or other shards than those with these hashes belong to it.

        That never changes, as the stripe is called by the hash of what is stored.
        """
        with self._lock:
            self._wrong[_digest(stripe, plain_id, hashes)] = None

    def is_wrong(self, stripe: StripeKey, plain_id: bytes, hashes: bytes) -> bool:
        """Whether :meth:`note_wrong` was called with these."""
        with self._lock:
            return _digest(stripe, plain_id, hashes) in self._wrong

    def has(self, stripe: StripeKey, plain_id: bytes) -> bool:
        """Whether the content of a chunk is known to have this hash."""
        with self._lock:
            return (stripe, plain_id) in self._known


def _digest(stripe: StripeKey, plain_id: bytes, hashes: bytes) -> bytes:
    return blake3(stripe + plain_id + hashes).digest()
