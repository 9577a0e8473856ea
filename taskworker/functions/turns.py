"""Who may run now: so many calls of a function at once, so many waiting, the rest refused; shared out among users.

A turn that is free goes to the user who has the fewest, by weight; among those who have as few, to the one whose
turns until now come to the least ("stride scheduling", Waldspurger and Weihl, MIT/LCS/TM-528, 1995). No user alone
takes all of them, where there are enough to leave some: who comes with one call does not wait for the end of
another's long ones.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy
from taskworker.functions.calls import RunningCall

_LEFT_TO_OTHERS = 8
"""One in so many turns, and places to wait in, is left to other users."""


def most_of_one_user(places: int) -> int:
    """Of so many turns or places, how many one user may have."""
    return places - places // _LEFT_TO_OTHERS


class _Place:
    """One of those that wait; woken when it is its turn, or when nobody waits for the call any more."""

    __slots__ = ("has_turn", "number", "woken")

    def __init__(self, number: int) -> None:
        self.number = number
        self.has_turn = False
        self.woken = threading.Event()


class Turns:
    """Hands out turns for one function. Thread-safe.

    Args:
        name: of the function.
        weight_of: of a user: who has twice the weight gets twice the turns.
    """

    def __init__(self, name: str, weight_of: Callable[[str], float] = lambda _user: 1.0) -> None:
        self._name = name
        self._weight_of = weight_of
        self._lock = threading.Lock()
        self._concurrency = 0
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Place]] = {}
        self._came = 0
        self._passes: dict[str, float] = {}  # turns had, divided by weight, of users who have calls here
        self._now = 0.0  # the pass of who had the latest turn: users who come begin there

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        with self._lock:
            return self._running.total(), self._waits()

    @contextmanager
    def turn(
        self, concurrency: int, queue: int, timeout_s: float | None, running: RunningCall, user: str = ""
    ) -> Iterator[None]:
        """Hold a turn, after waiting for it if need be.

        Args:
            concurrency: how many may run.
            queue: how many more may wait.
            timeout_s: for how long to wait.
            running: the call; ended, it waits no longer.
            user: on whose behalf.

        Raises:
            FunctionBusy: as many run and wait as may, of this user or of all.
            DeadlineExceeded: the time ran out before its turn came.
            CallAbandoned: ``running`` was ended before.
        """
        self._take(concurrency, queue, timeout_s, running, user)
        try:
            yield
        finally:
            with self._lock:
                self._running[user] -= 1
                self._forget_if_gone(user)
                self._pass_on()

    def _take(self, concurrency: int, queue: int, timeout_s: float | None, running: RunningCall, user: str) -> None:
        with self._lock:
            self._concurrency = concurrency
            if self._may_run(user):  # and nobody who could run waits: a turn that is free was passed on
                self._give(user)
                return
            self._check_queue(queue, user)
            self._passes.setdefault(user, self._now)
            self._came += 1
            mine = _Place(self._came)
            self._waiting.setdefault(user, deque()).append(mine)
        started = time.monotonic()
        with running.ended_by(mine.woken.set):
            mine.woken.wait(timeout_s)
        with self._lock:
            if mine.has_turn:
                return
            self._waits_no_more(user, mine)
            self._forget_if_gone(user)
        if running.cancelled:
            raise CallAbandoned(f"the call of {self._name} was cancelled before its turn came")
        waited_s = time.monotonic() - started
        raise DeadlineExceeded(f"function {self._name}: its turn did not come within {waited_s:.1f} s")

    # The lock is held.

    def _waits(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _may_run(self, user: str) -> bool:
        most = most_of_one_user(self._concurrency)
        return self._running.total() < self._concurrency and self._running[user] < most

    def _check_queue(self, queue: int, user: str) -> None:
        if self._waits() >= queue:
            raise FunctionBusy(
                f"function {self._name} has {self._running.total()} calls running and {self._waits()} waiting, as "
                "many as are allowed; try again in a second"
            )
        if len(self._waiting.get(user, ())) >= most_of_one_user(queue):
            raise FunctionBusy(
                f"function {self._name} has {self._running[user]} calls of this user running and "
                f"{len(self._waiting[user])} waiting, as many as one user may have; try again in a second"
            )

    def _waits_no_more(self, user: str, place: _Place) -> None:
        places = self._waiting[user]
        places.remove(place)
        if not places:
            del self._waiting[user]

    def _pass_on(self) -> None:
        """Give turns that are free to those who wait: first to the user who has the fewest, by weight."""
        while able := [user for user in self._waiting if self._may_run(user)]:
            user = min(able, key=self._order)
            following = self._waiting[user][0]
            self._waits_no_more(user, following)
            self._give(user)
            following.has_turn = True
            following.woken.set()

    def _order(self, user: str) -> tuple[float, float, int]:
        return self._running[user] / self._weight_of(user), self._passes[user], self._waiting[user][0].number

    def _give(self, user: str) -> None:
        self._now = self._passes.get(user, self._now)
        self._passes[user] = self._now + 1 / self._weight_of(user)
        self._running[user] += 1

    def _forget_if_gone(self, user: str) -> None:
        if not self._running[user]:
            del self._running[user]
            if user not in self._waiting:
                self._passes.pop(user, None)
