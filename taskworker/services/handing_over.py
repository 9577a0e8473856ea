"""From a callback to a stream: what a call hands over in its thread is iterated over in the server's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from taskworker.calls.call import Items, RunningCall
from taskworker.errors import CallAbandoned

_AHEAD_CHARS = 1 << 20
"""What the call may be ahead of who takes its items, if that is more than one of them; then it waits."""
_ITEM_CHARS = 64
"""What an item counts beside its own."""
_LOOK_S = 0.2
UNTAKEN_S = 120.0
"""For how long nothing may be taken of what is left of a call that has ended."""

ResultT = TypeVar("ResultT")
Work = Callable[[Items], ResultT]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultT]):
    """The end of what was handed over: what the work returned."""

    result: ResultT


class _Handover(Generic[ResultT]):
    """Items between two threads: one puts, the other takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[str | Outcome[ResultT] | BaseException] = deque()
        self._chars = 0
        self._left = False

    def put(self, item: str, over: Callable[[], bool]) -> None:
        """See ``Items``."""
        chars = len(item) + _ITEM_CHARS
        with self._changed:
            while self._items and self._chars + chars > _AHEAD_CHARS and not self._left:
                if over():
                    return
                self._changed.wait(_LOOK_S)
            if self._left:
                raise CallAbandoned("nobody takes what the call gives any more")
            self._items.append(item)
            self._chars += chars
            self._changed.notify_all()

    def end(self, end: Outcome[ResultT] | BaseException) -> None:
        """Put what comes after all items; it is not waited for."""
        with self._changed:
            self._items.append(end)
            self._changed.notify_all()

    def await_taken(self) -> bool:
        """Wait until all has been taken, or nobody takes any more; False if nothing was taken for too long."""
        with self._changed:
            while (waiting := len(self._items)) and not self._left:
                if not self._changed.wait_for(lambda: self._left or len(self._items) < waiting, UNTAKEN_S):
                    return False
        return True

    def take(self) -> str | Outcome[ResultT] | BaseException:
        """Wait for what comes next."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            if isinstance(item, str):
                self._chars -= len(item) + _ITEM_CHARS
            self._changed.notify_all()
            return item

    def leave(self) -> None:
        """Nothing will be taken any more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()


def handed_over(
    work: Work[ResultT], running: RunningCall, hang_up: Callable[[], object]
) -> Iterator[str | Outcome[ResultT]]:
    """Run a call in a thread of its own; its items as they come, then what it returned.

    Args:
        work: runs the call; given what takes its items, which may raise `CallAbandoned`.
        running: the call; ended if nobody iterates any more.
        hang_up: ends the iteration from outside, wherever it is, if it stands still long after the call's end.

    Raises:
        Exception: what ``work`` raised.
    """
    handover: _Handover[ResultT] = _Handover()

    def run() -> None:
        try:
            handover.end(Outcome(work(handover.put)))
        except BaseException as error:  # raised again where it is iterated
            handover.end(error)
        if not handover.await_taken():
            hang_up()

    threading.Thread(target=run, name="stream", daemon=True).start()
    try:
        while not isinstance(item := handover.take(), BaseException):
            yield item
            if isinstance(item, Outcome):
                return
        raise item
    finally:
        handover.leave()
        running.cancel()
