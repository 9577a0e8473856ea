"""How many calls are under way at once, where each takes a thread or a process for as long as it lasts.

Calls wait for the calls that they make. If both took the same places, callers could fill them and wait for ever. So
calls that others made have places of their own: some that all depths share, and a few for each depth alone. The
deepest calls make none, so their places come free; then those of the calls above them do, and so on.

Places for calls that no other call made, and those that all depths share, are shared among users by "dynamic
thresholds" (Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998): each may have so many times as many as are free. So however
many users there are who want all that they can get, some places are left to who comes next, and one user alone may have
most of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.calls.call import DEPTH_MAX
from taskworker.errors import ServerBusy

WORKER_CALLS = 64
"""Of a worker, that no other call made: a process each, and a thread. Of more, the pool takes others elsewhere."""
POOL_CALLS = 128
"""Of a pool, that no other call made: a thread each."""
TIMES_THE_FREE = 7
"""So many times as many as are free may a user have: alone, 7 of 8."""


class SharedAmount:
    """So much of something, which users share: each may have `TIMES_THE_FREE` times as much as is free.

    Not thread-safe: who uses it holds a lock.

    Args:
        most: there is.
        weight_of: of a user: who has twice the weight may have twice as many times as much as is free.

    Attributes:
        free: what nobody has.
    """

    def __init__(self, most: int, weight_of: Callable[[str], float] = lambda _user: 1.0) -> None:
        self.free = most
        self._weight_of = weight_of
        self._of_users: Counter[str] = Counter()

    def of(self, user: str) -> int:
        """What a user has."""
        return self._of_users[user]

    def take(self, user: str | None, count: int = 1) -> bool:
        """Let a user have so much more; False if there is not so much, or more than this one may have.

        Args:
            user: None: it has been looked at elsewhere how much this one has.
            count: how much.
        """
        if count > self.free:
            return False
        if user is not None:
            last = count - 1  # what is looked at is whether the last one may be had
            if self._of_users[user] + last >= TIMES_THE_FREE * self._weight_of(user) * (self.free - last):
                return False
            self._of_users[user] += count
        self.free -= count
        return True

    def give_back(self, user: str | None, count: int = 1) -> None:
        """A user has so much less."""
        self.free += count
        if user is not None:
            self._of_users[user] -= count
            if not self._of_users[user]:
                del self._of_users[user]


class UserPlaces:
    """Places of one kind, shared among users. Thread-safe.

    Args:
        places: how many.
        whose: what has them, for people.
        what: they are for, likewise.
        weight_of: see `SharedAmount`.
        refusal: what is raised where there is none.
    """

    def __init__(
        self,
        places: int,
        whose: str,
        what: str,
        weight_of: Callable[[str], float] = lambda _user: 1.0,
        *,
        refusal: type[ServerBusy] = ServerBusy,
    ) -> None:
        self._lock = threading.Lock()
        self._places = SharedAmount(places, weight_of)
        self._whose = whose
        self._what = what
        self._refusal = refusal

    @contextmanager
    def one(self, user: str) -> Iterator[None]:
        """Hold a place.

        Raises:
            ServerBusy: (or as it was told) all that the user may have are taken.
        """
        with self._lock:
            taken, mine = self._places.take(user), self._places.of(user)
        if not taken:
            raise self._refusal(
                f"{self._whose} has {mine} {self._what} of this user under way, as many as it allows beside others; "
                "try again in a moment"
            )
        try:
            yield
        finally:
            with self._lock:
                self._places.give_back(user)


class Places:
    """Hands out places. Thread-safe.

    Args:
        outer: for calls that no other call made.
        nested: for calls that others made, whatever their depth.
        of_depth: for those of each depth, once ``nested`` are taken; at least one.
        whose: what has these places, for people.
        weight_of: of a user: who has twice the weight may have twice as many times as many as are free.
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
            user: on whose behalf; None: it has been looked at elsewhere how many this user has.

        Raises:
            ServerBusy: all that it may have are taken.
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
        """Take one; whether it is of those that all depths share."""
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
    """Those of a worker."""
    return Places(WORKER_CALLS, 64, 2, "this worker", weight_of)


def pool_places(weight_of: Callable[[str], float] = lambda _user: 1.0) -> Places:
    """Those of a pool."""
    return Places(POOL_CALLS, 192, 2, "this pool", weight_of)
