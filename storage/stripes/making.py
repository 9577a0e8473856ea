"""Stripes whose missing shards are being made: only one thread at a time does so for a stripe.

When a store comes back, a push, a reader's report and a repair may all find the same shard missing. Without this, each
of them would write it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cachetools import LRUCache

from storage.keys import StripeKey

_LATELY_KEPT = 16_384  # more than a repair looks up before it makes the first of them


class Making:
    """Stripes that are being made complete. Thread-safe."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self._makers: dict[StripeKey, int] = {}
        self._lately: LRUCache[StripeKey, None] = LRUCache(_LATELY_KEPT)

    @property
    def holds_up(self) -> bool:
        """Whether another thread's call of :meth:`of` might wait now."""
        return bool(self._makers)

    @contextmanager
    def of(self, stripes: Sequence[StripeKey]) -> Iterator[bool]:
        """Reserve stripes for this thread, to make them complete in the block. Waits for threads that have them.

        Yields whether any of them was made complete recently, so that earlier knowledge of its shards is out of date.
        """
        me = threading.get_ident()
        with self._ended:
            while any(self._makers.get(stripe, me) != me for stripe in stripes):
                self._ended.wait()
            mine = [stripe for stripe in dict.fromkeys(stripes) if stripe not in self._makers]
            self._makers.update(dict.fromkeys(mine, me))
            lately = any(stripe in self._lately for stripe in stripes)
        try:
            yield lately
        finally:
            with self._ended:
                for stripe in mine:
                    del self._makers[stripe]
                    self._lately[stripe] = None
                self._ended.notify_all()
