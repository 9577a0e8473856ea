"""Makes callers who are refused again and again wait for the refusals.

A refused call costs a server about as much as a short call that succeeds, and a program that tries again at once makes
thousands of them in a second. Each user may have so many refusals in a second without delay. The others come later, so
that they are not more than that. Calls that succeed are never delayed.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

from storage.clocks import monotonic_s
from storage.errors import PermissionDenied, QuotaExceeded
from taskworker.errors import ServerBusy, Unauthenticated
from taskworker.shares import SharedAmount

P = ParamSpec("P")
ResultT = TypeVar("ResultT")

log = logging.getLogger("taskworker.services")

DELAYED = (ServerBusy, QuotaExceeded, PermissionDenied, Unauthenticated)
"""Refusals of callers who want more than they may have. Other errors are answers, such as that there is no file."""
LONGEST_S = 5.0
"""No refusal comes later than that: callers wait 30 s for an answer, or longer."""
HELD_MAX = 256
"""How many calls that get no thread may wait for their refusal; each has some 20 KiB of memory, and what was sent."""
_USERS_MIN = 1024
"""Of so many users, and of all who were refused lately, it is known when they were; others are forgotten."""
_HELD_SHARE = 1 / 3
"""A user may have so many times the free ones of these: 64 of 256."""


class Ending(Protocol):
    """A call that may end before it is answered; gRPC's ServicerContext is one."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Have something called when the call ends; False if it has ended."""


class Refusals:
    """How long each user waits for a refusal. Thread-safe.

    Args:
        rate: how many refusals a user gets in a second, and at once.
        threads: how many threads of calls may wait at once.
        clock_s: monotonic seconds.
    """

    def __init__(self, rate: float, threads: int, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._interval_s = 1 / rate
        self._threads = threads
        self._clock_s = clock_s
        self._changed = threading.Condition()
        self._due_s: dict[str, float] = {}  # when the latest refusal of a user came, or comes
        self._pruned_at = _USERS_MIN
        self._waiting: set[threading.Event] = set()
        self._held: list[tuple[float, int, str, Callable[[], None]]] = []  # a heap, by when they are due
        self._places = SharedAmount(HELD_MAX, times=_HELD_SHARE)
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._has_ended = False

    @property
    def are_all_waiting(self) -> bool:
        """Whether as many threads wait as may."""
        return len(self._waiting) >= self._threads

    def are_delayed(self, user: str) -> bool:
        """Whether this user's next refusal would come late."""
        return self._due_s.get(user, 0.0) + self._interval_s > self._clock_s()

    def delay_s(self, user: str) -> float:
        """Count one more refusal of a user; return in how many seconds it should come."""
        now_s = self._clock_s()
        with self._changed:
            earliest_s = now_s - max(1.0, self._interval_s)  # what was not used by then is not kept for later
            due_s = max(self._due_s.get(user, earliest_s), earliest_s) + self._interval_s
            self._due_s[user] = due_s = min(due_s, now_s + LONGEST_S)
            if len(self._due_s) > self._pruned_at:
                self._due_s = {one: due_s for one, due_s in self._due_s.items() if due_s > earliest_s}
                self._pruned_at = max(_USERS_MIN, 2 * len(self._due_s))
        return max(0.0, due_s - now_s)

    def wait(self, delay_s: float, call: Ending) -> None:
        """Wait, in the thread of a call, until its refusal may be sent, or the call has ended; not if too many do."""
        if delay_s <= 0:
            return
        is_over = threading.Event()
        if not call.add_callback(is_over.set):
            return
        with self._changed:
            if self._has_ended or self.are_all_waiting:
                return
            self._waiting.add(is_over)
        is_over.wait(delay_s)
        with self._changed:
            self._waiting.discard(is_over)

    def threads(self, user: str) -> ThreadPoolExecutor:
        """What sends this user's next refusal once it is due, without a thread that waits for that."""
        return _Later(self, user)

    def hold(self, user: str, send: Callable[[], None]) -> None:
        """Have a refusal of a user sent when it is due. If too many wait already, it is sent now."""
        delay_s = self.delay_s(user)
        with self._changed:
            if delay_s > 0 and not self._has_ended and self._places.take(user):
                heapq.heappush(self._held, (self._clock_s() + delay_s, next(self._numbers), user, send))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._send, name="refusals", daemon=True)
                    self._thread.start()
                self._changed.notify()
                return
        send()

    def end(self) -> None:
        """Send what waits, and delay no more."""
        with self._changed:
            self._has_ended = True
            for one in self._waiting:
                one.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _send(self) -> None:
        while True:
            with self._changed:
                while not self._held or (self._held[0][0] > self._clock_s() and not self._has_ended):
                    if self._has_ended:
                        return
                    self._changed.wait(self._held[0][0] - self._clock_s() if self._held else None)
                _, _, user, send = heapq.heappop(self._held)
                self._places.give_back(user)
            try:
                send()
            except Exception:  # must not end the thread, for which all later refusals would wait
                log.exception("a call could not be refused")


class _Later(ThreadPoolExecutor):
    """Makes the calls of one user that are only refused, once their refusals are due."""

    def __init__(self, refusals: Refusals, user: str) -> None:  # it has no threads of its own, so there is no queue
        self._refusals = refusals
        self._user = user

    def submit(self, fn: Callable[P, ResultT], /, *args: P.args, **kwargs: P.kwargs) -> Future[ResultT]:
        """See ``Executor.submit``."""
        future: Future[Any] = Future()

        def send() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self._refusals.hold(self._user, send)
        return future
