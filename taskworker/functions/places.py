"""How many calls are under way at once, where each takes a thread or a process for as long as it lasts.

Calls wait for the calls that they make. If both took the same places, callers could fill them and wait for ever. So
calls that others made have places of their own: some that all depths share, and a few for each depth alone. The
deepest calls make none, so their places come free; then those of the calls above them do, and so on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from taskworker.errors import ServerBusy
from taskworker.functions.calls import DEPTH_MAX

WORKER_CALLS = 64
"""Of a worker, that no other call made: a process each, and a thread. Of more, the pool takes others elsewhere."""
POOL_CALLS = 128
"""Of a pool, that no other call made: a thread each."""


class Places:
    """Hands out places. Thread-safe.

    Args:
        outer: for calls that no other call made.
        nested: for calls that others made, whatever their depth.
        of_depth: for those of each depth, once ``nested`` are taken; at least one.
        whose: what has these places, for people.
    """

    def __init__(self, outer: int, nested: int, of_depth: int, whose: str) -> None:
        if min(outer, nested, of_depth) < 1:
            raise ValueError("calls of each depth need at least one place")
        self._lock = threading.Lock()
        self._outer, self._nested = outer, nested
        self._of_depth = [of_depth] * DEPTH_MAX
        self._whose = whose
        self.total = outer + nested + of_depth * (DEPTH_MAX - 1)

    @contextmanager
    def one(self, depth: int) -> Iterator[None]:
        """Hold a place.

        Args:
            depth: how many calls led to this one.

        Raises:
            ServerBusy: all that it may have are taken.
        """
        shared = self._take(depth)
        try:
            yield
        finally:
            with self._lock:
                if not depth:
                    self._outer += 1
                elif shared:
                    self._nested += 1
                else:
                    self._of_depth[depth] += 1

    def _take(self, depth: int) -> bool:
        """Take one; whether it is of those that all depths share."""
        with self._lock:
            if not depth:
                if self._outer:
                    self._outer -= 1
                    return False
            elif self._nested:
                self._nested -= 1
                return True
            elif self._of_depth[depth]:
                self._of_depth[depth] -= 1
                return False
        kind = "calls that functions make" if depth else "calls"
        raise ServerBusy(f"{self._whose} has as many {kind} under way as it allows; try again in a moment")


def worker_places() -> Places:
    """Those of a worker."""
    return Places(WORKER_CALLS, 64, 2, "this worker")


def pool_places() -> Places:
    """Those of a pool."""
    return Places(POOL_CALLS, 192, 2, "this pool")
