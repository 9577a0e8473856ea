"""The operator's limits for users: how many calls each may run, and the weights when users compete."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage.errors import InvalidArgument
from taskworker.calls.call import RunningCall
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy

USER_CALLS = 96
"""Calls that a user may run, of the 128 that a pool runs at once."""

_HOUR_S = 3600.0
_USED_MAX = 10_000  # users of whom it is known what they used


@dataclass(frozen=True, slots=True)
class UserShares:
    """Each user's share of a pool's functions.

    Attributes:
        calls: how many calls each user may run at once.
        calls_of: other numbers for these users.
        queue: how many further calls of each user may wait.
        queue_of: other numbers for these users.
        weights: weights of these users; others have 1.
        cpu_s: processor seconds that the calls of each user may take in an hour, nested calls included; 0: no limit.
        cpu_s_of: other numbers for these users.
    """

    calls: int = USER_CALLS
    calls_of: Mapping[str, int] = field(default_factory=dict)
    queue: int = 0
    queue_of: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    cpu_s: int = 0
    cpu_s_of: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min([self.calls, *self.calls_of.values()]) < 1:
            raise InvalidArgument("each user must be allowed at least 1 call at once")
        if min([self.queue, *self.queue_of.values()]) < 0:
            raise InvalidArgument("the number of calls of a user that may wait cannot be negative")
        if not all(0.001 <= weight <= 1000 for weight in self.weights.values()):
            raise InvalidArgument("a user's weight must be a number from 0.001 to 1000")

    def weight_of(self, user: str) -> float:
        """A user's weight."""
        return self.weights.get(user, 1.0)

    def calls_of_one(self, user: str) -> int:
        """How many calls a user may run at once."""
        return self.calls_of.get(user, self.calls)

    def cpu_s_of_one(self, user: str) -> int:
        """How many processor seconds a user's calls may take in an hour; 0: any number."""
        return self.cpu_s_of.get(user, self.cpu_s)

    def queue_of_one(self, user: str) -> int:
        """How many further calls of a user may wait."""
        return self.queue_of.get(user, self.queue)


class _Calls:
    """The running calls of a user, and the events that wake waiting ones, in order."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: deque[threading.Event] = deque()


class UserCalls:
    """Limits the running and waiting calls of each user. Thread-safe.

    Args:
        shares: the limits.
        clock_s: monotonic seconds.
    """

    def __init__(self, shares: UserShares, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._shares = shares
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._calls: dict[str, _Calls] = {}  # for users who have calls
        self._used: dict[str, tuple[float, float]] = {}  # processor seconds that count, and when this was so

    def counts(self, user: str) -> tuple[int, int]:
        """(running, waiting) calls of a user."""
        with self._lock:
            mine = self._calls.get(user)
            return (0, 0) if mine is None else (mine.under_way, len(mine.waiting))

    @contextmanager
    def one(self, user: str, timeout_s: float | None, running: RunningCall) -> Iterator[None]:
        """Hold a place for one more running call, after waiting for one if necessary.

        Args:
            user: the user on whose behalf it runs.
            timeout_s: seconds to wait at most.
            running: the call; if it is ended, it stops waiting.

        Raises:
            FunctionBusy: as many calls of the user run and wait as are allowed, or they took too much processor time.
            DeadlineExceeded: the time ran out before.
            CallAbandoned: ``running`` was ended before.
        """
        woken = self._begin(user)
        if woken is not None:
            self._wait(user, woken, timeout_s, running)
        try:
            yield
        finally:
            self._end(user)

    def took(self, user: str, cpu_s: float) -> None:
        """Note the processor time of a call that has ended."""
        if not self._shares.cpu_s_of_one(user):
            return
        with self._lock:
            self._used[user] = self._counting(user) + max(0.0, cpu_s), self._clock_s()
            if len(self._used) > _USED_MAX:
                del self._used[min(self._used, key=lambda one: self._used[one][1])]

    def _counting(self, user: str) -> float:
        """The processor seconds that count now: what was used, less what an hour allows for the time since."""
        used, at_s = self._used.get(user, (0.0, 0.0))
        return max(0.0, used - (self._clock_s() - at_s) * self._shares.cpu_s_of_one(user) / _HOUR_S)

    def _check_processor_time(self, user: str) -> None:
        most = self._shares.cpu_s_of_one(user)
        if not most:
            return
        with self._lock:
            used = self._counting(user)
        if used >= most:
            left_s = (used - most) * _HOUR_S / most
            raise FunctionBusy(
                f"this user's calls took {used:.0f} s of processor time, and may take {most} s in an hour "
                f"(--user-cpu); try again in {left_s + 1:.0f} s"
            )

    def _begin(self, user: str) -> threading.Event | None:
        """Take a place, and return None; or join the queue, and return the event to wait for."""
        self._check_processor_time(user)
        most, queue = self._shares.calls_of_one(user), self._shares.queue_of_one(user)
        with self._lock:
            mine = self._calls.setdefault(user, _Calls())
            if mine.under_way < most:
                mine.under_way += 1
                return None
            waiting = len(mine.waiting)
            if waiting < queue:
                mine.waiting.append(woken := threading.Event())
                return woken
        waits = f" and {waiting} waiting" if queue else ""
        raise FunctionBusy(
            f"this user has {most} calls under way{waits}, as many as a user may have (--user-calls, --user-queue); "
            "try again when one of them has ended"
        )

    def _wait(self, user: str, woken: threading.Event, timeout_s: float | None, running: RunningCall) -> None:
        started = self._clock_s()
        with running.ended_by(woken.set):
            woken.wait(timeout_s)
        with self._lock:
            mine = self._calls[user]
            if woken not in mine.waiting:  # it got its place
                return
            mine.waiting.remove(woken)
        if running.cancelled:
            raise CallAbandoned("the call was cancelled before its turn came")
        raise DeadlineExceeded(
            f"none of this user's running calls ended within {self._clock_s() - started:.1f} s, and no more may run"
        )

    def _end(self, user: str) -> None:
        with self._lock:
            mine = self._calls[user]
            if mine.waiting:
                mine.waiting.popleft().set()  # it takes over the place
                return
            mine.under_way -= 1
            if not mine.under_way:
                del self._calls[user]
