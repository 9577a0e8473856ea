"""Decides which user is next when users compete: the one who holds the fewest, by weight.

Among users who hold equally few, the one who has had the fewest so far, by weight, is next ("stride scheduling",
Waldspurger and Weihl, MIT/LCS/TM-528, 1995). A new user starts level with the others, so that nobody can save up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class FairOrder:
    """Counts what each user holds. Not thread-safe.

    Args:
        weight_of: returns a user's weight; a user with twice the weight gets twice as much.

    Attributes:
        held: how many each user holds now; users who hold none are left out.
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self.held: Counter[str] = Counter()
        self._passes: dict[str, float] = {}  # number had, divided by weight, of users who hold or want some
        self._now = 0.0  # the pass of the user who got the latest one; new users start there

    def comes(self, user: str) -> None:
        """Note that a user wants one."""
        self._passes.setdefault(user, self._now)

    def takes(self, user: str) -> None:
        """Note that a user gets one."""
        self._now = self._passes.get(user, self._now)
        self._passes[user] = self._now + 1 / self._weight_of(user)
        self.held[user] += 1

    def gives_back(self, user: str) -> None:
        """Note that a user gives one back."""
        self.held[user] -= 1
        if not self.held[user]:
            del self.held[user]

    def goes(self, user: str) -> None:
        """Note that a user wants none for now; forget the user if he holds none."""
        if user not in self.held:
            self._passes.pop(user, None)

    def rank(self, user: str) -> tuple[float, float]:
        """The sort key of a user who wants one; the lowest is next."""
        return self.held[user] / self._weight_of(user), self._passes[user]
