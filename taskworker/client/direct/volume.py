"""A worker's volume, of which gets can be given up."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from functools import partial
from typing import Any

from storage.errors import StorageError, StoreClosed, StoreUnavailable
from storage.keys import ShardKey
from storage.submitting import submitted
from taskworker.client.direct.reader import Cancel, Done, current_reader, granted_now
from taskworker.transport.fetches import Outcome
from taskworker.transport.shard_calls import NotAnswered
from taskworker.transport.ticketed_volume import TicketedVolume


class WorkerVolume(TicketedVolume):
    """Fetches for the get for which the calling thread reads, with that get's ticket.

    If the worker closes a kept connection instead of answering, the fetch is tried once more, on another connection.

    Args:
        address: see :class:`TicketedVolume`, as all others.
        threads: threads in which fetches are tried again.
    """

    def __init__(self, address: str, name: str, number: int, threads: Executor, **options: Any) -> None:
        super().__init__(address, name, number, granted_now, left_s=_left_s, **options)
        self._threads = threads

    def begin_fetch(
        self,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        """See :meth:`TicketedVolume.begin_fetch`.

        Raises:
            StorageError: as there, and if the get was given up.
        """

        def begin(done: Done) -> Cancel:
            return _Repeated(partial(fetch, wanted, into), self.connect, done, self._threads).begin()

        fetch, reader = super().begin_fetch, current_reader()
        return begin(done) if reader is None else reader.begin(begin, done)


def _left_s() -> float:
    """For how many seconds the get for which this thread reads still waits."""
    reader = current_reader()
    return math.inf if reader is None else reader.within_s(math.inf)


def _ignore(_outcome: Outcome) -> None:
    """Nobody waits for it any more."""


def _never(_done: Done) -> Cancel:
    raise AssertionError("a fetch that has ended does not begin again")


class _Repeated:
    """A fetch that is tried once more if it was not answered.

    Args:
        fetch: begins it.
        connect: connects to the worker, if there is no connection.
        done: see :meth:`TicketedVolume.begin_fetch`.
        threads: threads in which it is tried again.
    """

    def __init__(
        self, fetch: Callable[[Done], Cancel], connect: Callable[[], None], done: Done, threads: Executor
    ) -> None:
        self._fetch = fetch
        self._connect = connect
        self._done = done
        self._threads = threads
        self._context = copy_context()  # for whom it is
        self._lock = threading.Lock()  # held while it begins: what is cancelled must not begin afterwards
        self._cancelled = False
        self._cancel: Cancel | None = None

    def begin(self) -> Cancel:
        """Begin it; return what cancels it."""
        with self._lock:
            self._cancel = self._fetch(self._ended)
        return self.cancel

    def cancel(self) -> None:
        """Give it up. Once this returns, nothing is written to its memory any more."""
        self._cancelled = True
        with self._lock:
            cancel = self._cancel
        if cancel is not None:
            cancel()

    def _ended(self, outcome: Outcome) -> None:
        if not isinstance(outcome, NotAnswered):
            self._end(outcome)
            return
        try:
            submitted("the client is closed", self._threads, self._context.run, self._again, outcome)
        except (StoreClosed, StoreUnavailable):  # it is not tried again
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        """Tell the outcome, and let go of the memory and of who waits, who knows how to cancel this.

        Otherwise they would keep each other, and the memory of a get would wait for a garbage collection.
        """
        done, self._done = self._done, _ignore
        self._fetch = _never
        done(outcome)

    def _again(self, former: NotAnswered) -> None:
        outcome: StorageError = former
        is_connected = False
        try:
            if not self._cancelled:
                self._connect()  # before, so that whoever cancels it meanwhile need not wait for that
            is_connected = True
        except StorageError as error:
            outcome = error
        with self._lock:
            if self._cancel is None:
                return  # it could not begin, and its caller knows
            self._cancel()  # a part of it may be under way on another connection
            if is_connected and not self._cancelled:
                try:
                    self._cancel = self._fetch(self._end)
                    return
                except StorageError as error:
                    outcome = error
        self._end(outcome)
