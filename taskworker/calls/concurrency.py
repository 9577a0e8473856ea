"""Limits on the number of concurrent calls. Each call holds a thread or a process as long as it runs.

A call waits for the calls that it makes (nested calls). If both used the same places, calls could take all places and
wait for ever. So nested calls have places of their own: some that all depths share, and a few for each depth. The
deepest calls make no further calls, so their places become free; then those of the calls above them do, and so on.

Places for outer calls, and the places that all depths share, are divided among users, see `taskworker.shares`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.calls.call import DEPTH_MAX
from taskworker.errors import ServerBusy
from taskworker.shares import SharedAmount

WORKER_CALLS = 64
"""Outer calls of a worker; each takes a process and a thread. The pool sends further calls to other workers."""
POOL_CALLS = 128
"""Outer calls of a pool; each takes a thread."""


class Places:
    """Hands out places. Thread-safe.

    Args:
        outer: places for outer calls, which no other call made.
        nested: places for nested calls of any depth.
        of_depth: further places for the nested calls of each depth, used once ``nested`` are taken; at least one.
        whose: what the places belong to, for error texts.
        weight_of: gives a user's weight; see `SharedAmount`.
    """

    def __init__(
        self, outer: int, nested: int, of_depth: int, whose: str, weight_of: Callable[[str], float] = lambda _user: 1.0
    ) -> None:
        if min(outer, nested, of_depth) < 1:
            raise ValueError("calls of each depth need at least one place")
        self._lock = threading.Lock()
        self._outer, self._nested = SharedAmount(outer, weight_of), SharedAmount(nested, weight_of)
        self._of_depth = [of_depth] * DEPTH_MAX
        self._whose = whose
        self.total = outer + nested + of_depth * (DEPTH_MAX - 1)

    @contextmanager
    def one(self, depth: int, user: str | None = None) -> Iterator[None]:
        """Hold a place.

        Args:
            depth: how many calls led to this one.
            user: on whose behalf it is made; None: the user's share was checked elsewhere.

        Raises:
            ServerBusy: all places that it may take are taken.
        """
        shared = self._take(depth, user)
        try:
            yield
        finally:
            with self._lock:
                if not depth:
                    self._outer.give_back(user)
                elif shared:
                    self._nested.give_back(user)
                else:
                    self._of_depth[depth] += 1

    def _take(self, depth: int, user: str | None) -> bool:
        """Take a place; True if it is one that all depths share."""
        kind = "calls that functions make" if depth else "calls"
        with self._lock:
            places = self._nested if depth else self._outer
            if places.take(user):
                return depth > 0
            if depth and self._of_depth[depth]:
                self._of_depth[depth] -= 1
                return False
            mine = places.of(user) if places.free and user is not None else 0
        if mine:
            raise ServerBusy(
                f"{self._whose} has {mine} {kind} of this user under way, as many as it allows beside others; try "
                "again in a moment"
            )
        raise ServerBusy(f"{self._whose} has as many {kind} under way as it allows; try again in a moment")


def worker_places(weight_of: Callable[[str], float] = lambda _user: 1.0) -> Places:
    """The places of a worker."""
    return Places(WORKER_CALLS, 64, 2, "this worker", weight_of)


def pool_places(weight_of: Callable[[str], float] = lambda _user: 1.0) -> Places:
    """The places of a pool."""
    return Places(POOL_CALLS, 192, 2, "this pool", weight_of)
