"""Processes that have served calls of an owner, and wait for the same owner's next one."""

from __future__ import annotations

import time
from collections import OrderedDict

from taskworker.sandbox.image import Keep
from taskworker.sandbox.spare import Look, Spare

KEPT_MAX = 64
"""Of one function; the one that waits longest makes room."""


class KeptProcesses:
    """Of one function. Not thread-safe: who uses it holds a lock.

    Args:
        keep: how long a process may serve; None: none is kept.

    Attributes:
        data_bytes_max: a process with more data than that is not kept: the next call would lack the memory.
    """

    def __init__(self, keep: Keep | None) -> None:
        self._keep = keep
        self.data_bytes_max = 0
        self._waiting: OrderedDict[Spare, str] = OrderedDict()  # the one that came last is the last

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, owner: str) -> Spare | None:
        """Take the owner's process that came last, if one is fit for another call; it is waiting no more."""
        for spare in reversed(self._waiting):
            if self._waiting[spare] == owner and self._is_fit(spare):
                del self._waiting[spare]
                return spare
        return None

    def put(self, owner: str, spare: Spare, look: Look) -> bool:
        """Keep a process whose call has ended well; False if it has served for long enough, or misbehaves."""
        if self._keep is None or look.threads != 1 or look.data_bytes > self.data_bytes_max:
            return False
        if not self._is_fit(spare):
            return False
        self._waiting[spare] = owner
        return True

    def drop_spent(self) -> list[Spare]:
        """Give those that are to end: they have served for long enough, or died, or are too many."""
        spent = [spare for spare in self._waiting if not self._is_fit(spare)]
        for spare in spent:
            del self._waiting[spare]
        while len(self._waiting) > KEPT_MAX:
            spent.append(self._waiting.popitem(last=False)[0])
        return spent

    def drop_oldest(self) -> Spare | None:
        """Give the one that waits for longest, to end; None if none does."""
        return self._waiting.popitem(last=False)[0] if self._waiting else None

    def drop_all(self) -> list[Spare]:
        """Give all of them, to end."""
        spares = list(self._waiting)
        self._waiting.clear()
        return spares

    def pids(self) -> set[int]:
        """Of those that wait."""
        return {spare.pid for spare in self._waiting}

    def _is_fit(self, spare: Spare) -> bool:
        keep = self._keep
        if keep is None or spare.served >= keep.calls:
            return False
        return time.monotonic() - spare.first_used < keep.seconds and spare.alive
