"""From a callback to a stream: what a call hands over in its thread is iterated over in the server's."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from taskworker.errors import CallAbandoned
from taskworker.functions.calls import RunningCall

_AHEAD_MAX = 8
"""Items that the call may be ahead of who takes them; then it waits."""
_LOOK_S = 0.2

ResultT = TypeVar("ResultT")
Work = Callable[[Callable[[str], None]], ResultT]


@dataclass(frozen=True, slots=True)
class Outcome(Generic[ResultT]):
    """The end of what was handed over: what the work returned."""

    result: ResultT


def handed_over(work: Work[ResultT], running: RunningCall) -> Iterator[str | Outcome[ResultT]]:
    """Run a call in a thread of its own; its items as they come, then what it returned.

    Args:
        work: runs the call; given what takes its items, which may raise `CallAbandoned`.
        running: the call; ended if nobody iterates any more.

    Raises:
        Exception: what ``work`` raised.
    """
    items: queue.Queue[str | Outcome[ResultT] | BaseException] = queue.Queue(_AHEAD_MAX)
    gone = threading.Event()

    def put(item: str | Outcome[ResultT] | BaseException) -> None:
        while not gone.is_set():
            try:
                items.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return

    def take(item: str) -> None:
        put(item)
        if gone.is_set():
            raise CallAbandoned("nobody takes what the call gives any more")

    def run() -> None:
        try:
            put(Outcome(work(take)))
        except BaseException as error:  # raised again where it is iterated
            put(error)

    threading.Thread(target=run, name="stream", daemon=True).start()
    try:
        while not isinstance(item := items.get(), BaseException):
            yield item
            if isinstance(item, Outcome):
                return
        raise item
    finally:
        gone.set()
        running.cancel()
