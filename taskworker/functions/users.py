"""What an operator allows each user: how many calls at once, and which share where users compete."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage.errors import InvalidArgument
from taskworker.errors import FunctionBusy

USER_CALLS = 96
"""Of the 128 calls that a pool has under way."""


@dataclass(frozen=True, slots=True)
class UserShares:
    """How much of a pool's functions each user gets.

    Attributes:
        calls: under way at once, waiting ones included, of each user.
        calls_of: of these users, in place of ``calls``.
        weights: of these users; others have 1.
    """

    calls: int = USER_CALLS
    calls_of: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min([self.calls, *self.calls_of.values()]) < 1:
            raise InvalidArgument("a user has at least one call at once")
        if not all(0.001 <= weight <= 1000 for weight in self.weights.values()):
            raise InvalidArgument("a user's weight is a number from 0.001 to 1000")

    def weight_of(self, user: str) -> float:
        """A user's weight."""
        return self.weights.get(user, 1.0)

    def calls_of_one(self, user: str) -> int:
        """How many calls a user may have under way."""
        return self.calls_of.get(user, self.calls)


class UserCalls:
    """Counts the calls of each user. Thread-safe."""

    def __init__(self, shares: UserShares) -> None:
        self._shares = shares
        self._lock = threading.Lock()
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def one(self, user: str) -> Iterator[None]:
        """Have one call more under way.

        Raises:
            FunctionBusy: the user has as many as allowed.
        """
        most = self._shares.calls_of_one(user)
        with self._lock:
            if self._under_way[user] >= most:
                raise FunctionBusy(
                    f"this user has {most} calls under way, as many as one may have (--user-calls); try again "
                    "when one of them has ended"
                )
            self._under_way[user] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[user] -= 1
                if not self._under_way[user]:
                    del self._under_way[user]
