"""Limits the concurrent and waiting calls of a function, refuses the rest, and shares the limits among users.

A free permit goes to the user who has the fewest, by weight (``fair_order``). If there are enough permits, no user
gets all of them, so that a user's single call does not wait for the long calls of another user.

A call keeps its permit while it waits for a nested call. So functions that call each other could wait for each other's
permits for ever. Therefore, if all calls with permits are waiting, a nested call does not wait: it gets a permit
beyond the limit. Thus, whenever a call waits for a permit, some call with a permit is working.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from taskworker.calls.call import RunningCall
from taskworker.calls.nested import found_no_place
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy, ServerBusy
from taskworker.functions.routing.fair_order import FairOrder

_LEFT_TO_OTHERS = 8
"""One in this many permits, and places in the queue, is left to other users."""


def most_of_one_user(places: int) -> int:
    """How many of these permits or places one user may have."""
    return places - places // _LEFT_TO_OTHERS


class _Place:
    """A waiting call; woken when it gets a permit, or when the call is abandoned."""

    __slots__ = ("nested", "number", "permit", "woken")

    def __init__(self, number: int, *, nested: bool) -> None:
        self.number = number
        self.nested = nested
        self.permit: Permit | None = None
        self.woken = threading.Event()


class Permit:
    """Permission for one call to run, until it is given back.

    Args:
        limiter: the limiter that issued it.
        user: the user on whose behalf the call runs.
    """

    __slots__ = ("_limiter", "_waits", "over", "refused", "user")

    def __init__(self, limiter: ConcurrencyLimiter, user: str) -> None:
        self._limiter = limiter
        self._waits = 0
        self.user = user
        self.refused = False
        self.over = False

    @property
    def at_work(self) -> bool:
        """Whether its call is working, not waiting; the caller holds the limiter's lock."""
        return not (self._waits or self.refused or self.over)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this context, the call counts as waiting for a nested call or for a worker.

        If the nested call found no place, the call goes on counting as waiting until it retries (``nested.patiently``).
        """
        self._limiter.changed(self, waits=1, refused=False)
        refused = False
        try:
            yield
        except ServerBusy as error:
            refused = found_no_place(error)
            raise
        finally:
            self._limiter.changed(self, waits=-1, refused=refused)

    def count(self, waits: int) -> None:
        """Add to the number of things that the call waits for; the caller holds the limiter's lock."""
        self._waits += waits


class ConcurrencyLimiter:
    """Hands out permits to calls of one function. Thread-safe.

    Args:
        name: name of the function.
        weight_of: returns a user's weight; a user with twice the weight gets twice as many permits.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        name: str,
        weight_of: Callable[[str], float] = lambda _user: 1.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._concurrency = 0
        self._order = FairOrder(weight_of)
        self._running = self._order.held
        self._at_work: Counter[str] = Counter()  # running calls that do not wait, by user
        self._waiting: dict[str, deque[_Place]] = {}
        self._came = 0

    def counts(self) -> tuple[int, int]:
        """(running, waiting)."""
        with self._lock:
            return self._running.total(), self._waits()

    @contextmanager
    def permit(
        self,
        concurrency: int,
        queue: int,
        timeout_s: float | None,
        running: RunningCall,
        user: str = "",
        *,
        nested: bool = False,
    ) -> Iterator[Permit]:
        """Hold a permit, after waiting for it if necessary.

        Args:
            concurrency: how many calls may run.
            queue: how many more may wait.
            timeout_s: seconds to wait at most.
            running: the call; if it is ended, it stops waiting.
            user: the user on whose behalf it runs.
            nested: whether another call waits for this one.

        Raises:
            FunctionBusy: as many calls of this user, or of all users, run and wait as are allowed.
            DeadlineExceeded: the time ran out before it got a permit.
            CallAbandoned: ``running`` was ended before.
        """
        permit = self._take(concurrency, queue, timeout_s, running, user, nested=nested)
        try:
            yield permit
        finally:
            with self._lock:
                self._order.gives_back(user)
                self._at_work[user] -= permit.at_work
                permit.over = True
                self._forget_if_gone(user)
                self._pass_on()

    def changed(self, permit: Permit, *, waits: int, refused: bool) -> None:
        """Note that a permit's call waits for ``waits`` more things than before."""
        with self._lock:
            was = permit.at_work
            permit.count(waits)
            permit.refused = refused
            self._at_work[permit.user] += permit.at_work - was
            if was and not permit.at_work:
                self._pass_on()

    def _take(
        self, concurrency: int, queue: int, timeout_s: float | None, running: RunningCall, user: str, *, nested: bool
    ) -> Permit:
        with self._lock:
            self._concurrency = concurrency
            if self._may_run(user) or (nested and self._would_wait_for_those_that_wait(user)):
                return self._give(user)  # no call that could run is waiting: free permits are passed on at once
            self._check_queue(queue, user)
            self._order.comes(user)
            self._came += 1
            mine = _Place(self._came, nested=nested)
            self._waiting.setdefault(user, deque()).append(mine)
        started = self._clock_s()
        with running.ended_by(mine.woken.set):
            mine.woken.wait(timeout_s)
        with self._lock:
            if mine.permit is not None:
                return mine.permit
            self._waits_no_more(user, mine)
            self._forget_if_gone(user)
        if running.cancelled:
            raise CallAbandoned(f"the call of {self._name} was cancelled before its turn came")
        waited_s = self._clock_s() - started
        raise DeadlineExceeded(f"function {self._name}: its turn did not come within {waited_s:.1f} s")

    # These methods are called with the lock held.

    def _waits(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _may_run(self, user: str) -> bool:
        most = most_of_one_user(self._concurrency)
        return self._running.total() < self._concurrency and self._running[user] < most

    def _would_wait_for_those_that_wait(self, user: str) -> bool:
        """Whether waiting may be in vain: all calls with permits wait, or all those of a user who may get no more."""
        return not self._at_work.total() or (self._running[user] > 0 and not self._at_work[user])

    def _next_of(self, user: str) -> _Place | None:
        """The call of a user that may get a permit next."""
        if self._may_run(user):
            return self._waiting[user][0]
        if self._would_wait_for_those_that_wait(user):
            return next((place for place in self._waiting[user] if place.nested), None)
        return None

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
        """Give free permits to waiting calls, starting with the user who has the fewest, by weight."""
        while able := {user: place for user in self._waiting if (place := self._next_of(user)) is not None}:
            user = min(able, key=self._rank)
            following = able[user]
            self._waits_no_more(user, following)
            following.permit = self._give(user)
            following.woken.set()

    def _rank(self, user: str) -> tuple[float, float, int]:
        return *self._order.rank(user), self._waiting[user][0].number

    def _give(self, user: str) -> Permit:
        self._order.takes(user)
        self._at_work[user] += 1
        return Permit(self, user)

    def _forget_if_gone(self, user: str) -> None:
        if user not in self._running:
            self._at_work.pop(user, None)
            if user not in self._waiting:
                self._order.goes(user)
