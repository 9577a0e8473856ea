"""Ends calls whose caller keeps them waiting: for a message that does not come, or until an answer is read.

A call holds a thread from when it begins, whether or not its message has come. So whoever opens calls and sends nothing
would take the server's threads for nothing, and one who sends all but the last byte of large messages its memory.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from storage.clocks import monotonic_s
from taskworker.errors import CallOverdue

log = logging.getLogger("taskworker.services")

_LOOK_S = 0.5
_MOMENT_S = 0.1
_UNTOUCHED_S = 1.0  # so briefly, anybody may wait: many calls that begin at once have many messages under way


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server waits for its callers.

    Attributes:
        message_s: seconds for the message of a call, or the first one of a stream.
        idle_s: seconds between messages of a stream, and for a caller to read an answer.
        unfinished: how many calls of one caller may wait for a message at once, apart from those that began just now.
    """

    message_s: float
    idle_s: float
    unfinished: int


class _Nothing:
    """What a call gets instead of the message that did not come."""


_NOTHING = _Nothing()


class _Wait:
    """A call that waits."""

    __slots__ = ("began_s", "context", "ended", "is_sending", "limit_s", "whose")

    def __init__(self, context: Any, whose: str, began_s: float, limit_s: float, *, is_sending: bool) -> None:
        self.context = context
        self.whose = whose
        self.began_s = began_s
        self.limit_s = limit_s
        self.is_sending = is_sending
        self.ended = ""


class Waits:
    """Looks after the waiting calls of all servers of this process. Thread-safe.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = monotonic_s) -> None:
        self._clock_s = clock_s
        self._waiting: dict[int, tuple[_Wait, Patience]] = {}
        self._deferred: dict[int, tuple[float, Callable[[], None]]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._some = threading.Event()

    def messages(self, source: Iterator[Any], context: Any, whose: str, patience: Patience) -> Iterator[Any]:
        """The messages of a call.

        Raises:
            CallOverdue: (by the iterator) the next one did not come in time, or too many calls of this caller wait.
        """
        return _Messages(self, source, context, whose, patience)

    def answers(self, source: Iterator[Any], context: Any, whose: str, patience: Patience) -> Iterator[Any]:
        """The answers of a call. It is cancelled if its caller does not take them."""
        for answer in source:
            number = self.begin(_Wait(context, whose, self._clock_s(), patience.idle_s, is_sending=True), patience)
            try:
                yield answer
            finally:
                self.end(number)

    def begin(self, wait: _Wait, patience: Patience) -> int:
        """Watch a call until :meth:`end`; return its number."""
        number = next(self._numbers)
        self._waiting[number] = wait, patience
        self._wake()
        return number

    def end(self, number: int) -> None:
        """The call does not wait any more."""
        self._waiting.pop(number, None)

    def defer(self, go_on: Callable[[], None]) -> int:
        """Have a call that waits without a thread go on if it does so for more than a moment.

        Args:
            go_on: called once, unless :meth:`comes` is called before.

        Returns:
            The number of the call, for that.
        """
        number = next(self._numbers)
        self._deferred[number] = self._clock_s(), go_on
        self._wake()
        return number

    def comes(self, number: int) -> bool:
        """What a call waited for has come; return whether the call did not go on before."""
        return self._deferred.pop(number, None) is not None

    @property
    def is_waited_for(self) -> bool:
        """Whether any call waits."""
        return bool(self._waiting or self._deferred)

    def _wake(self) -> None:
        if not self._some.is_set():
            self._some.set()
            if self._watcher is None or not self._watcher.is_alive():  # also in a fork
                self._start()

    def now_s(self) -> float:
        """The time."""
        return self._clock_s()

    def look(self) -> None:
        """End the calls that waited for too long."""
        now_s = self._clock_s()
        for number, (began_s, go_on) in list(self._deferred.items()):
            if now_s - began_s >= _MOMENT_S and self._deferred.pop(number, None) is not None:
                go_on()
        of_caller: dict[str, list[tuple[_Wait, Patience]]] = defaultdict(list)
        for wait, patience in list(self._waiting.values()):
            waited_s = now_s - wait.began_s
            if waited_s >= wait.limit_s:
                _end(wait, _late(wait))
            elif not wait.is_sending and waited_s >= _UNTOUCHED_S:
                of_caller[wait.whose].append((wait, patience))
        for found in of_caller.values():
            most = found[0][1].unfinished
            for wait, _ in sorted(found, key=lambda one: one[0].began_s)[: max(0, len(found) - most)]:
                _end(wait, _crowded(most))

    def _start(self) -> None:
        with self._lock:
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, name="waits", daemon=True)
                self._watcher.start()

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            self._some.wait()
            pause.wait(_LOOK_S)
            try:
                self.look()
            except Exception:
                log.exception("looking for calls that wait failed; trying again")
            self._some.clear()
            if self.is_waited_for:
                self._some.set()


WAITS = Waits()
"""Those of this process."""


class _Messages:
    """The messages of one call, for each of which the call waits only so long."""

    __slots__ = ("_context", "_limit_s", "_patience", "_source", "_waits", "_whose")

    def __init__(self, waits: Waits, source: Iterator[Any], context: Any, whose: str, patience: Patience) -> None:
        self._waits = waits
        self._source = source
        self._context = context
        self._whose = whose
        self._patience = patience
        self._limit_s = patience.message_s

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> Any:
        waits = self._waits
        wait = _Wait(self._context, self._whose, waits.now_s(), self._limit_s, is_sending=False)
        number = waits.begin(wait, self._patience)
        try:
            message = next(self._source)
        except grpc.RpcError:
            if wait.ended:
                raise CallOverdue(wait.ended) from None
            raise
        finally:
            waits.end(number)
        if message is _NOTHING:
            raise CallOverdue(wait.ended)
        self._limit_s = self._patience.idle_s
        return message


def _late(wait: _Wait) -> str:
    return (
        f"nothing came for {wait.limit_s:g} s, as long as this server waits for a message; make the call again, and "
        "send its messages without such a pause"
    )


def _crowded(most: int) -> str:
    return (
        f"more than {most} calls of this caller wait for a message, as many as this server allows; finish calls before "
        "you begin others"
    )


def _end(wait: _Wait, why: str) -> None:
    """End a call. One that waits for a message is woken up, so that it can say why it ends."""
    if wait.ended:
        return
    wait.ended = why
    state: Any = getattr(
        wait.context, "_state", None
    )  # gRPC offers no way to end such a wait but to cancel without a word
    if wait.is_sending or not (hasattr(state, "request") and hasattr(state, "condition")):
        wait.context.cancel()
        return
    with state.condition:
        if state.request is None:
            state.request = _NOTHING
            state.condition.notify_all()
