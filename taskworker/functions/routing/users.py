"""What an operator allows each user: how many calls at once, and which share where users compete."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from storage.errors import InvalidArgument
from taskworker.calls.call import RunningCall
from taskworker.errors import CallAbandoned, DeadlineExceeded, FunctionBusy

USER_CALLS = 96
"""Of the 128 calls that a pool has under way."""


@dataclass(frozen=True, slots=True)
class UserShares:
    """How much of a pool's functions each user gets.

    Attributes:
        calls: under way at once, of each user.
        calls_of: of these users, in place of ``calls``.
        queue: calls beyond these that wait, of each user.
        queue_of: of these users, in place of ``queue``.
        weights: of these users; others have 1.
    """

    calls: int = USER_CALLS
    calls_of: Mapping[str, int] = field(default_factory=dict)
    queue: int = 0
    queue_of: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min([self.calls, *self.calls_of.values()]) < 1:
            raise InvalidArgument("a user has at least one call at once")
        if min([self.queue, *self.queue_of.values()]) < 0:
            raise InvalidArgument("no fewer than 0 calls of a user wait")
        if not all(0.001 <= weight <= 1000 for weight in self.weights.values()):
            raise InvalidArgument("a user's weight is a number from 0.001 to 1000")

    def weight_of(self, user: str) -> float:
        """A user's weight."""
        return self.weights.get(user, 1.0)

    def calls_of_one(self, user: str) -> int:
        """How many calls a user may have under way."""
        return self.calls_of.get(user, self.calls)

    def queue_of_one(self, user: str) -> int:
        """How many more calls of a user may wait."""
        return self.queue_of.get(user, self.queue)


class _Calls:
    """Of one user: how many are under way, and what wakes those that wait, in order."""

    __slots__ = ("under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting: deque[threading.Event] = deque()


class UserCalls:
    """Counts the calls of each user, and lets some wait. Thread-safe."""

    def __init__(self, shares: UserShares) -> None:
        self._shares = shares
        self._lock = threading.Lock()
        self._calls: dict[str, _Calls] = {}  # of users who have some

    def counts(self, user: str) -> tuple[int, int]:
        """(under way, waiting) of one."""
        with self._lock:
            mine = self._calls.get(user)
            return (0, 0) if mine is None else (mine.under_way, len(mine.waiting))

    @contextmanager
    def one(self, user: str, timeout_s: float | None, running: RunningCall) -> Iterator[None]:
        """Have one call more under way, after waiting for another one's end if need be.

        Args:
            user: on whose behalf.
            timeout_s: for how long to wait.
            running: the call; ended, it waits no longer.

        Raises:
            FunctionBusy: as many of the user's are under way and wait as may.
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

    def _begin(self, user: str) -> threading.Event | None:
        """Begin, or wait in line: for what this gives."""
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
            f"this user has {most} calls under way{waits}, as many as one may have (--user-calls, --user-queue); try "
            "again when one of them has ended"
        )

    def _wait(self, user: str, woken: threading.Event, timeout_s: float | None, running: RunningCall) -> None:
        started = time.monotonic()
        with running.ended_by(woken.set):
            woken.wait(timeout_s)
        with self._lock:
            mine = self._calls[user]
            if woken not in mine.waiting:  # its turn came
                return
            mine.waiting.remove(woken)
        if running.cancelled:
            raise CallAbandoned("the call was cancelled before its turn came")
        raise DeadlineExceeded(
            f"this user's calls under way did not end within {time.monotonic() - started:.1f} s, and no more may be"
        )

    def _end(self, user: str) -> None:
        with self._lock:
            mine = self._calls[user]
            if mine.waiting:
                mine.waiting.popleft().set()  # which takes its place
                return
            mine.under_way -= 1
            if not mine.under_way:
                del self._calls[user]
