"""Limits on the number of concurrent calls. Each call holds a thread or a process as long as it runs.

A call waits for the calls that it makes (nested calls). If both used the same places, calls could take all places and
wait for ever. So nested calls have places of their own: some that all depths share, and a few for each depth. The
deepest calls make no further calls, so their places become free; then those of the calls above them do, and so on.

Places for outer calls, and the places that all depths share, are divided among users by "dynamic thresholds" (Choudhury
and Hahne, IEEE/ACM ToN 6(2), 1998): each user may hold a fixed multiple of the number of free places. So even if many
users want all they can get, some places stay free for the next user, and a single user can hold most of them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.calls.call import DEPTH_MAX
from taskworker.errors import ServerBusy

WORKER_CALLS = 64
"""Outer calls of a worker; each takes a process and a thread. The pool sends further calls to other workers."""
POOL_CALLS = 128
"""Outer calls of a pool; each takes a thread."""
TIMES_THE_FREE = 7
"""A user may hold this many times the number of free places: 7 of 8 if there is no other user."""


class SharedAmount:
    """An amount that users share: each may hold `TIMES_THE_FREE` times the free amount.

    Not thread-safe: the caller holds a lock.

    Args:
        most: the total amount.
        weight_of: gives a user's weight; it multiplies how much of the free amount the user may hold.

    Attributes:
        free: the amount that no user holds.
    """

    def __init__(self, most: int, weight_of: Callable[[str], float] = lambda _user: 1.0) -> None:
        self.free = most
        self._weight_of = weight_of
        self._of_users: Counter[str] = Counter()

    def of(self, user: str) -> int:
        """The amount that a user holds."""
        return self._of_users[user]

    def take(self, user: str | None, count: int = 1) -> bool:
        """Give a user ``count`` more; False if less than that is free, or the user would hold too much.

        Args:
            user: who gets it; None: the user's share was checked elsewhere.
            count: the amount.
        """
        if count > self.free:
            return False
        if user is not None:
            last = count - 1  # check whether the user may have the last one
            if self._of_users[user] + last >= TIMES_THE_FREE * self._weight_of(user) * (self.free - last):
                return False
            self._of_users[user] += count
        self.free -= count
        return True

    def give_back(self, user: str | None, count: int = 1) -> None:
        """Take ``count`` back from a user."""
        self.free += count
        if user is not None:
            self._of_users[user] -= count
            if not self._of_users[user]:
                del self._of_users[user]


class UserPlaces:
    """Places of one kind, shared among users. Thread-safe.

    Args:
        places: how many there are.
        whose: what the places belong to, for error texts.
        what: what the places are for, for error texts.
        weight_of: see `SharedAmount`.
        refusal: the error to raise if there is no place.
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
            ServerBusy: (or ``refusal``) the user holds as many places as allowed.
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
