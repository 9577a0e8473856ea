"""Places at workers: a free place goes to a waiting call of the user who is next (``fair_order``).

Whenever a place is requested or given back, places are searched for all waiting calls in order, so that no call
overtakes another that could have had the place. A call that finds no place does not block those after it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from taskworker.functions.routing.fair_order import FairOrder

_LOOKS_S = 0.002
"""Seconds per waiting call between two searches for changes from outside, such as new workers."""

Found = tuple[str, ExitStack]
"""A worker, and the stack that gives back the place there."""


class _Waiting:
    """A call that waits for a place."""

    __slots__ = ("found", "look", "number", "user", "woken")

    def __init__(self, number: int, user: str, look: Callable[[], Found | None]) -> None:
        self.number = number
        self.user = user
        self.look = look
        self.found: Found | None = None
        self.woken = threading.Event()


class Dispatch:
    """Gives places at workers to waiting calls. Thread-safe.

    Args:
        weight_of: returns a user's weight; with twice the weight, a user gets twice as many places when users compete.
        clock_s: monotonic seconds.
    """

    def __init__(self, weight_of: Callable[[str], float], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._order = FairOrder(weight_of)
        self._waiting: list[_Waiting] = []
        self._came = 0
        self._looked_at = 0.0

    @contextmanager
    def place(
        self,
        user: str,
        look: Callable[[], Found | None],
        again: Callable[[], None],
        pause_s: Callable[[], float],
        meanwhile: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Iterator[str]:
        """Hold a place at a worker, after waiting for one if necessary; yields the worker's name.

        Args:
            user: the user on whose behalf the call runs.
            look: searches for a free place for this call, without waiting; not called by two threads at a time.
            again: called periodically while there is none; an exception that it raises ends the wait.
            pause_s: returns the seconds until the next such call.
            meanwhile: context that is entered while the call waits.
        """
        worker, held = self._at_once(user, look) or self._after_a_wait(user, look, again, pause_s, meanwhile)
        try:
            with held:
                yield worker
        finally:
            with self._lock:
                self._order.gives_back(user)
                self._forget_if_gone(user)
                if self._waiting:
                    self._hand_out()

    def _at_once(self, user: str, look: Callable[[], Found | None]) -> Found | None:
        """The fast path if no call is waiting."""
        with self._lock:
            if self._waiting or (found := look()) is None:
                return None
            self._order.comes(user)
            self._order.takes(user)
            return found

    def _after_a_wait(
        self,
        user: str,
        look: Callable[[], Found | None],
        again: Callable[[], None],
        pause_s: Callable[[], float],
        meanwhile: Callable[[], AbstractContextManager[None]],
    ) -> Found:
        mine = self._come(user, look)
        try:
            if mine.found is None:
                with meanwhile():
                    self._wait(mine, again, pause_s)
        except BaseException:
            self._leave(mine)
            raise
        assert mine.found is not None
        return mine.found

    def _come(self, user: str, look: Callable[[], Found | None]) -> _Waiting:
        with self._lock:
            self._came += 1
            mine = _Waiting(self._came, user, look)
            self._order.comes(user)
            self._waiting.append(mine)
            try:
                while self._hand_out(mine):
                    pass
            except BaseException:
                self._waiting.remove(mine)
                self._forget_if_gone(user)
                raise
            return mine

    def _wait(self, mine: _Waiting, again: Callable[[], None], pause_s: Callable[[], float]) -> None:
        while not mine.woken.wait(pause_s()):
            with self._lock:
                if mine.found is not None:
                    return
                again()
                if self._clock_s() - self._looked_at > _LOOKS_S * len(self._waiting):
                    while self._hand_out():
                        pass

    def _leave(self, mine: _Waiting) -> None:
        with self._lock:
            if mine.found is None:
                self._waiting.remove(mine)
                self._forget_if_gone(mine.user)
                return
            mine.found[1].close()  # a place came at the same moment
            self._order.gives_back(mine.user)
            self._forget_if_gone(mine.user)
            self._hand_out()

    # These methods are called with the lock held.

    def _hand_out(self, until: _Waiting | None = None) -> bool:
        """Give a place to the first call, up to ``until``, for which there is one; return whether to try again."""
        if until is None:
            self._looked_at = self._clock_s()
        for one in sorted(self._waiting, key=lambda waiting: (*self._order.rank(waiting.user), waiting.number)):
            one.found = one.look()
            if one.found is not None:
                self._waiting.remove(one)
                self._order.takes(one.user)
                one.woken.set()
                return one is not until
            if one is until:
                return False
        return False

    def _forget_if_gone(self, user: str) -> None:
        if all(one.user != user for one in self._waiting):
            self._order.goes(user)
