"""What users share, so that a greedy one leaves something for the others.

Users share by "dynamic thresholds" (Choudhury and Hahne, IEEE/ACM ToN 6(2), 1998): each may hold a fixed multiple of
what is free. So even if many users want all they can get, something stays free for the next one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.errors import ServerBusy

TIMES_THE_FREE = 7
"""A user may hold this many times the number of free places of functions: 7 of 8 if there is no other user."""


class SharedAmount:
    """An amount that users share: each may hold a multiple of the free amount.

    Not thread-safe: the caller holds a lock.

    Args:
        most: the total amount.
        weight_of: gives a user's weight; it multiplies how much of the free amount the user may hold.
        times: how many times the free amount a user of weight 1 may hold.

    Attributes:
        free: the amount that no user holds.
    """

    def __init__(
        self, most: int, weight_of: Callable[[str], float] = lambda _user: 1.0, times: float = TIMES_THE_FREE
    ) -> None:
        self.free = most
        self._times = times
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
            if self._of_users[user] + last >= self._times * self._weight_of(user) * (self.free - last):
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
