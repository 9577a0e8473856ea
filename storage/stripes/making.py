"""Which stripes are being made whole: one at a time makes a shard, whoever else found it missing.

A push, a reader's report and a repair find the same shard missing when a store comes back. Each would write it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cachetools import LRUCache

from storage.keys import StripeKey

_LATELY_KEPT = 16_384  # more than a repair has looked up before it makes the first of them


class Making:
    """Stripes that are being made whole. Thread-safe."""

    def __init__(self) -> None:
        self._ended = threading.Condition()
        self._makers: dict[StripeKey, int] = {}
        self._lately: LRUCache[StripeKey, None] = LRUCache(_LATELY_KEPT)

    @property
    def holds_up(self) -> bool:
        """Whether somebody else who makes something whole now might wait."""
        return bool(self._makers)

    @contextmanager
    def of(self, stripes: Sequence[StripeKey]) -> Iterator[bool]:
        """Make some stripes whole, in the block, while no other thread does so.

        Yields whether any of them was lately: where its shards were before that says nothing any more.
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
