"""Turns a callback into a stream: a call puts items in its own thread, and the server's thread iterates over them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from taskworker.calls.call import Items, RunningCall
from taskworker.errors import CallAbandoned
from taskworker.tracing.spans import SPANS

_AHEAD_CHARS = 1 << 20
"""Characters of items that a call may be ahead of its consumer before it waits; one item is always allowed."""
_ITEM_CHARS = 64
"""Characters that each item counts in addition to its own."""
_LOOK_S = 0.2
UNTAKEN_S = 120.0
"""After a call has ended, its consumer may pause this long between two of the remaining items."""

ResultT = TypeVar("ResultT")
Work = Callable[[Items], ResultT]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultT]):
    """Marks the end of the items, with the return value of the work."""

    result: ResultT


class _Handover(Generic[ResultT]):
    """A queue of items between two threads: one puts, the other takes."""

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
                raise CallAbandoned("nobody takes the call's items any more")
            self._items.append(item)
            self._chars += chars
            self._changed.notify_all()

    def end(self, end: Outcome[ResultT] | BaseException) -> None:
        """Put the end marker, without waiting."""
        with self._changed:
            self._items.append(end)
            self._changed.notify_all()

    def await_taken(self) -> bool:
        """Wait until everything was taken or the consumer has left; False if nothing was taken for too long."""
        with self._changed:
            while (waiting := len(self._items)) and not self._left:
                if not self._changed.wait_for(lambda: self._left or len(self._items) < waiting, UNTAKEN_S):
                    return False
        return True

    def take(self) -> str | Outcome[ResultT] | BaseException:
        """Wait for the next item."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item = self._items.popleft()
            if isinstance(item, str):
                self._chars -= len(item) + _ITEM_CHARS
            self._changed.notify_all()
            return item

    def leave(self) -> None:
        """Declare that the consumer takes no more items."""
        with self._changed:
            self._left = True
            self._changed.notify_all()


def handed_over(
    work: Work[ResultT], running: RunningCall, hang_up: Callable[[], object]
) -> Iterator[str | Outcome[ResultT]]:
    """Run a call in a thread of its own; yield its items as they arrive, then its return value.

    Args:
        work: runs the call; gets a function that takes its items, which may raise `CallAbandoned`.
        running: the call; it is ended if the iteration stops early.
        hang_up: ends the iteration from outside if it stands still for too long after the call has ended.

    Raises:
        Exception: raised by ``work``.
    """
    handover: _Handover[ResultT] = _Handover()
    work = SPANS.bound(work)

    def run() -> None:
        try:
            handover.end(Outcome(work(handover.put)))
        except BaseException as error:  # raised again in the iterating thread
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
