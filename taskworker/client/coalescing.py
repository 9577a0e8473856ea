"""Lets small calls that several threads make at the same time share calls to the server.

A call that finds few others under way is made at once. More of them wait until one of those has ended, and then go
together: one of the threads that wait asks for all. So the more threads there are, the more share the cost of a call,
as in a database's group commit.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from enum import Enum, auto
from typing import Generic, TypeVar

from storage.clocks import monotonic_s
from storage.errors import StorageError
from taskworker.client.deadline import Deadline
from taskworker.client.scope import current_scope
from taskworker.errors import CallAbandoned

log = logging.getLogger(__name__)

GroupT = TypeVar("GroupT", bound=Hashable)
AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")

# Measured with 16 threads on 2 cores: with one call at a time, the client and the server take turns, and with three,
# fewer go together (a get took 0.44 ms of both's processor time with one or two, 0.6 ms with three, 1.2 ms each alone).
_CALLS_MAX = 2
# A local call takes a millisecond, or ten on a busy machine. Over a distant link, waiting for the end of one would cost
# more than a call does.
_WAIT_S, _WAIT_FAR_S = 0.02, 0.003
_FAR_S = 0.01
_FORGOTTEN = 1.05  # with each call, the shortest one counts as longer
# Somebody else's part of a call may take long, as its shards are on slow workers.
_PATIENCE_S = 1.0


class _State(Enum):
    WAITING = auto()
    LEADING = auto()  # it makes the call for its batch
    ASKED = auto()  # another one makes the call
    ENDED = auto()


class _Waiter(Generic[AskT, AnswerT]):
    """A thread's call that waits for others.

    Attributes:
        ask: what is asked for.
        state: what became of it.
        batch: if it is leading, all that go together, itself included.
        answer: the answer; None: there is none.
        is_cancelled: whether its caller's scope was cancelled.
    """

    __slots__ = ("_signal", "answer", "ask", "batch", "is_cancelled", "state")

    def __init__(self, ask: AskT) -> None:
        self.ask = ask
        self.state = _State.WAITING
        self.batch: Sequence[_Waiter[AskT, AnswerT]] = ()
        self.answer: AnswerT | None = None
        self.is_cancelled = False
        self._signal = threading.Lock()  # an Event takes three times as long
        self._signal.acquire()

    def wait(self, within_s: float) -> None:
        """Wait until :meth:`wake`."""
        self._signal.acquire(timeout=within_s)

    def wake(self) -> None:
        """End a wait, now or later."""
        with suppress(RuntimeError):  # it was ended before
            self._signal.release()

    def cancel(self) -> None:
        """End a wait because the caller's scope was cancelled."""
        self.is_cancelled = True
        self.wake()


class Coalescing(Generic[GroupT, AskT, AnswerT]):
    """Makes calls of several threads together. Thread-safe.

    Args:
        together: asks the server for several things of one group by one call, and yields their answers in order; None
            for what has to be asked for alone. It may raise a ``StorageError``, or end early: the rest is asked for
            alone.
        most: how many things one call may ask for.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        together: Callable[[GroupT, Sequence[AskT], Deadline], Iterator[AnswerT | None]],
        most: int,
        clock_s: Callable[[], float] = monotonic_s,
    ) -> None:
        self._together = together
        self._most = most
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._under_way = 0
        self._shortest_s = 0.0  # of the last calls
        self._waiting: dict[GroupT, list[_Waiter[AskT, AnswerT]]] = {}  # by group; none is empty

    def call(self, group: GroupT, ask: AskT, alone: Callable[[], AnswerT], deadline: Deadline) -> AnswerT:
        """Return the answer to a call, which is made alone or together with others of its group.

        Args:
            group: only calls with equal ones go together.
            ask: what is asked for.
            alone: makes the call alone.
            deadline: by when the caller must have an answer.

        Raises:
            Exception: whatever ``alone`` raises.
            DeadlineExceeded: there was no answer in time.
            CallAbandoned: the caller's scope was cancelled.
        """
        waiter: _Waiter[AskT, AnswerT] | None = None
        with self._lock:
            if self._under_way < _CALLS_MAX:
                self._under_way += 1
            else:
                waiter = _Waiter(ask)
                self._waiting.setdefault(group, []).append(waiter)
        if waiter is not None:
            return self._call_together(group, waiter, alone, deadline)
        try:
            return self._timed(alone)
        finally:
            self._pass_on()

    def _timed(self, alone: Callable[[], AnswerT]) -> AnswerT:
        began_s = self._clock_s()
        answer = alone()
        self._shortest_s = min(self._clock_s() - began_s, self._shortest_s * _FORGOTTEN or math.inf)
        return answer

    def _call_together(
        self, group: GroupT, waiter: _Waiter[AskT, AnswerT], alone: Callable[[], AnswerT], deadline: Deadline
    ) -> AnswerT:
        try:
            with self._cancellable(waiter):
                waiter.wait(_time_left(deadline, _WAIT_S if self._shortest_s < _FAR_S else _WAIT_FAR_S))
                deadline.remaining_s()
                with self._lock:
                    if waiter.state is _State.WAITING and not waiter.is_cancelled:
                        self._under_way += 1
                        self._lead(group, waiter)
                if waiter.state is _State.ASKED and not waiter.is_cancelled:
                    waiter.wait(_time_left(deadline, _PATIENCE_S))
            if waiter.state is _State.LEADING:
                return self._call_for_all(group, waiter, alone, deadline)
        finally:
            self._leave(group, waiter)
        if waiter.is_cancelled:
            raise CallAbandoned("the call was cancelled")
        return alone() if waiter.answer is None else waiter.answer

    def _call_for_all(
        self, group: GroupT, leader: _Waiter[AskT, AnswerT], alone: Callable[[], AnswerT], deadline: Deadline
    ) -> AnswerT:
        try:
            if len(leader.batch) > 1:
                asked = [waiter.ask for waiter in leader.batch]
                for waiter, answer in zip(leader.batch, self._together(group, asked, deadline), strict=False):
                    self._end(waiter, answer)
        except StorageError as error:
            log.debug("%d calls are made one by one, as together they failed: %s", len(leader.batch), error)
        if leader.answer is not None:
            return leader.answer
        for waiter in leader.batch:
            self._end(waiter, None)
        return self._timed(alone)

    @staticmethod
    def _cancellable(waiter: _Waiter[AskT, AnswerT]) -> AbstractContextManager[None]:
        scope = current_scope.get()
        return nullcontext() if scope is None else scope.holding(waiter)

    def _lead(self, group: GroupT, leader: _Waiter[AskT, AnswerT]) -> None:
        """Make one lead all of its group. The caller holds the lock."""
        others = self._waiting.pop(group)
        others.remove(leader)
        batch, rest = [leader, *others[: self._most - 1]], others[self._most - 1 :]
        if rest:
            self._waiting[group] = rest
        for waiter in batch:
            waiter.state = _State.ASKED
        leader.state, leader.batch = _State.LEADING, batch

    def _pass_on(self) -> None:
        """Let those who wait longest make a call in place of one that has ended."""
        with self._lock:
            for group, waiting in self._waiting.items():
                leader = waiting[0]
                self._lead(group, leader)
                leader.wake()
                return
            self._under_way -= 1

    def _end(self, waiter: _Waiter[AskT, AnswerT], answer: AnswerT | None) -> None:
        with self._lock:
            if waiter.state is _State.ASKED:
                waiter.state = _State.ENDED
                waiter.answer = answer
                waiter.wake()
            elif waiter.state is _State.LEADING and answer is not None:
                waiter.answer = answer

    def _leave(self, group: GroupT, waiter: _Waiter[AskT, AnswerT]) -> None:
        """End a call in whatever state it is, also if its thread was interrupted."""
        with self._lock:
            state, waiter.state = waiter.state, _State.ENDED
            if state is _State.WAITING:
                self._waiting[group].remove(waiter)
                if not self._waiting[group]:
                    del self._waiting[group]
        if state is _State.LEADING:
            for other in waiter.batch:
                self._end(other, None)
            self._pass_on()


def _time_left(deadline: Deadline, most_s: float) -> float:
    left_s = deadline.remaining_s()
    return most_s if left_s is None else min(left_s, most_s)
