"""Limits the rate, number and memory of concurrent requests, for each function, its users, and in total."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taskworker.errors import ApiBusy
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.shares import SharedAmount

_FUNCTIONS_KEPT = 4096
_USERS_KEPT = 1024
"""Users remembered for a function; the one that made no request for longest is forgotten, and starts over."""
_SHARED_FROM = 8


@dataclass(slots=True)
class _Bucket:
    """A token bucket, which refills at a constant rate up to ``most``."""

    rate: float
    most: float
    tokens: float
    at: float

    def filled(self, now: float) -> float:
        """The number of tokens now."""
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.rate)
        self.at = now
        return self.tokens


class _Function:
    def __init__(self, limits: EgressLimits, now: float) -> None:
        self.bucket = _Bucket(limits.rate, limits.burst, limits.burst, now)
        self.running = SharedAmount(limits.concurrency)
        self.held = SharedAmount(limits.function_bytes)
        self._part = _users_part(limits.rate), _users_part(limits.burst)
        self._of_users: OrderedDict[str, _Bucket] = OrderedDict()

    def bucket_of(self, user: str, now: float) -> _Bucket:
        """The bucket of a user of the function."""
        rate, most = self._part
        bucket = self._of_users.setdefault(user, _Bucket(rate, most, most, now))
        self._of_users.move_to_end(user)
        if len(self._of_users) > _USERS_KEPT:
            self._of_users.popitem(last=False)
        return bucket


def _users_part(most: float) -> float:
    """How much one user may have, so that something is left for the next user."""
    return most if most < _SHARED_FROM else most - most / _SHARED_FROM


class Permit:
    """A running request, which counts the bytes it holds."""

    def __init__(self, limiter: RequestLimiter, function: _Function, user: str) -> None:
        self._limiter = limiter
        self._function = function
        self._user = user
        self.held = 0

    def hold(self, count: int) -> None:
        """Count bytes that are held until the request ends.

        Raises:
            ApiBusy: too many bytes are held.
        """
        self._limiter.hold(self._function, self._user, count)
        self.held += count

    def let_go(self) -> None:
        """Note that the request holds no bytes any more."""
        held, self.held = self.held, 0
        self._limiter.let_go(self._function, self._user, held)


class RequestLimiter:
    """A token bucket, a count of requests and a count of bytes for each function. Thread-safe.

    One user gets at most seven eighths of a function's limits, and of the bytes of all functions; the rest is left for
    other users.

    Args:
        limits: the limits.
        clock_s: monotonic seconds.
    """

    def __init__(self, limits: EgressLimits, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._functions: OrderedDict[str, _Function] = OrderedDict()
        self._held = SharedAmount(limits.held_bytes)

    @contextmanager
    def permit(self, name: str, user: str) -> Iterator[Permit]:
        """Permission for one request.

        Args:
            name: name of the function.
            user: the user on whose behalf it runs.

        Raises:
            ApiBusy: the function, or this user of it, has made too many requests recently, or has too many running.
        """
        function = self._begin(name, user)
        permit = Permit(self, function, user)
        try:
            yield permit
        finally:
            permit.let_go()
            with self._lock:
                function.running.give_back(user)

    def hold(self, function: _Function, user: str, count: int) -> None:
        """See ``Permit.hold``."""
        with self._lock:
            taken = function.held.take(user, count)
            if taken and not self._held.take(user, count):
                function.held.give_back(user, count)
                taken = False
        if not taken:
            raise ApiBusy(
                "functions hold too many bytes of outside APIs' responses, for one user or in all; ask for less at "
                "once, or try again later"
            )

    def let_go(self, function: _Function, user: str, count: int) -> None:
        """See ``Permit.let_go``."""
        with self._lock:
            function.held.give_back(user, count)
            self._held.give_back(user, count)

    def _begin(self, name: str, user: str) -> _Function:
        limits, now = self._limits, self._clock_s()
        with self._lock:
            function = self._functions.setdefault(name, _Function(limits, now))
            self._functions.move_to_end(name)
            self._forget()
            mine = function.bucket_of(user, now)
            if min(function.bucket.filled(now), mine.filled(now)) < 1:
                raise ApiBusy(
                    f"function {name} calls outside APIs more than {limits.rate:g} times a second, or one user of it "
                    f"more than {mine.rate:g} times; try again later"
                )
            if not function.running.take(user):
                raise ApiBusy(
                    f"function {name} has {function.running.of(user)} requests of this user to outside APIs under way, "
                    f"and may have {limits.concurrency} of all users; try again in a moment"
                )
            function.bucket.tokens -= 1
            mine.tokens -= 1
            return function

    def _forget(self) -> None:
        """Forget functions that made no request for a long time and have none running."""
        while len(self._functions) > _FUNCTIONS_KEPT:
            name, function = next(iter(self._functions.items()))
            if function.running.free < self._limits.concurrency:
                return
            del self._functions[name]
