"""One get that reads from workers: what it may read, and how it is given up while it waits for them."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from storage.keys import StripeKey
from storage.shards import VolumeUnavailable
from taskworker.client.deadline import Deadline
from taskworker.client.scope import CallScope
from taskworker.transport.fetches import Outcome
from taskworker.transport.ticketed_volume import Granted

Done = Callable[[Outcome], None]
Cancel = Callable[[], None]

Granting = Mapping[StripeKey, Granted]
"""What one get may read by one page, with a ticket of its own."""


class Reader:
    """Gives up what a get has under way, from any thread and at any moment. Thread-safe.

    Args:
        deadline: for all of the get.
        clock_s: monotonic seconds.

    Attributes:
        scope: calls of the get in other threads, which are cancelled when it is given up.
    """

    def __init__(self, deadline: Deadline, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.scope = CallScope()
        self._deadline = deadline
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._under_way: set[_Fetch] = set()
        self._given_up: Future[None] = Future()

    @property
    def is_given_up(self) -> bool:
        """Whether :meth:`give_up` was called."""
        return self._given_up.done()

    def give_up(self) -> None:
        """Begin nothing more, and end what is under way. Nothing is written to its memory any more."""
        with self._lock:
            if self._given_up.done():
                return
            self._given_up.set_result(None)
            under_way = list(self._under_way)
        self.scope.cancel()
        for fetch in under_way:
            fetch.give_up()

    def await_all(self, futures: Collection[Future[Any]], within_s: float | None = None) -> None:
        """Wait until they have ended, for this long, until the deadline, or until the get is given up."""
        until_s = self._clock_s() + (math.inf if within_s is None else within_s)
        left = {future for future in futures if not future.done()}
        while left and not self.is_given_up:
            deadline_s = self._deadline.left_s
            left_s = min(until_s - self._clock_s(), math.inf if deadline_s is None else deadline_s)
            if left_s <= 0:
                return
            wait({*left, self._given_up}, None if left_s == math.inf else left_s, FIRST_COMPLETED)
            left = {future for future in left if not future.done()}

    def within_s(self, limit_s: float) -> float:
        """For how long to wait for something at most, not longer than ``limit_s``; 0: not at all."""
        left_s = self._deadline.left_s
        return 0.0 if self.is_given_up else limit_s if left_s is None else max(0.0, min(limit_s, left_s))

    def begin(self, begin: Callable[[Done], Cancel], done: Done) -> Cancel:
        """Begin a fetch, which is given up with the get.

        Raises:
            VolumeUnavailable: the get was given up.
        """
        fetch = _Fetch(self, done)
        with self._lock:
            if self.is_given_up:
                raise _given_up()
            self._under_way.add(fetch)
        try:
            fetch.begin(begin)
        except BaseException:
            self.forget(fetch)
            raise
        if self._given_up.done():  # meanwhile
            fetch.give_up()
        return fetch.cancel

    def forget(self, fetch: _Fetch) -> bool:
        """Note that a fetch has ended; return whether that is news."""
        with self._lock:
            if fetch not in self._under_way:
                return False
            self._under_way.remove(fetch)
            return True


def _ignore(_outcome: Outcome) -> None:
    """Nobody waits for it any more."""


class _Fetch:
    """A fetch of one get, of which the outcome is told once, be it given up or not."""

    def __init__(self, reader: Reader, done: Done) -> None:
        self._reader = reader
        self._done = done
        self._cancel: Cancel | None = None

    def begin(self, begin: Callable[[Done], Cancel]) -> None:
        """Begin it."""
        self._cancel = begin(self._ended)

    def cancel(self) -> None:
        """See :meth:`storage.shards.ShardStore.begin_fetch`."""
        if self._cancel is not None:
            self._cancel()

    def give_up(self) -> None:
        """Cancel it, and tell that nothing is known of it. Does nothing before it has begun."""
        if self._cancel is not None:
            self._cancel()
            self._ended(_given_up())

    def _ended(self, outcome: Outcome) -> None:
        if self._reader.forget(self):
            done, self._done = self._done, _ignore  # which knows how to cancel this
            done(outcome)


class Reading(NamedTuple):
    """What a thread reads.

    Attributes:
        reader: for whom.
        granted: what may be read.
    """

    reader: Reader
    granted: Granting


_current: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reading(reader: Reader, granted: Granting) -> Iterator[None]:
    """Within this context, this thread reads for a get.

    Raises:
        VolumeUnavailable: it was given up.
    """
    if reader.is_given_up:
        raise _given_up()
    token = _current.set(Reading(reader, granted))
    try:
        yield
    finally:
        _current.reset(token)


def current_reader() -> Reader | None:
    """For whom this thread reads; None: for nobody."""
    current = _current.get()
    return None if current is None else current.reader


def granted_now(stripe: StripeKey) -> Granted | None:
    """What this thread may read of an object, as the get for which it reads was told; None: nothing."""
    current = _current.get()
    return None if current is None else current.granted.get(stripe)


def _given_up() -> VolumeUnavailable:
    return VolumeUnavailable("the get was given up")
