"""Which user is next where users compete: the one who has the fewest, by weight.

Of users who have equally few, the one who has had the fewest turns so far, by weight, is next: "stride scheduling",
Waldspurger and Weihl, MIT/LCS/TM-528, 1995. A newcomer starts level with the others, so nobody saves turns up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class FairOrder:
    """Keeps count of what users have. Not thread-safe.

    Args:
        weight_of: of a user: who has twice the weight gets twice as much.

    Attributes:
        held: how many each user holds now, without users who hold none.
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self.held: Counter[str] = Counter()
        self._passes: dict[str, float] = {}  # turns had, divided by weight, of users who have or want some
        self._now = 0.0  # the pass of who had the latest one: users who come begin there

    def comes(self, user: str) -> None:
        """A user wants one."""
        self._passes.setdefault(user, self._now)

    def takes(self, user: str) -> None:
        """A user gets one."""
        self._now = self._passes.get(user, self._now)
        self._passes[user] = self._now + 1 / self._weight_of(user)
        self.held[user] += 1

    def gives_back(self, user: str) -> None:
        """A user has one less."""
        self.held[user] -= 1
        if not self.held[user]:
            del self.held[user]

    def goes(self, user: str) -> None:
        """A user wants none for now; those without any are forgotten."""
        if user not in self.held:
            self._passes.pop(user, None)

    def rank(self, user: str) -> tuple[float, float]:
        """The least is next; only of users who came."""
        return self.held[user] / self._weight_of(user), self._passes[user]
