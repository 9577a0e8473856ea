"""The driver of background work: one loop for all of it, and what a piece of work is to that loop.

A further piece of work is a module with a class that is a :class:`BackgroundWork`, and a place in the list of
:class:`taskworker.pool.node_pool.PoolCore`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from storage.errors import StorageError
from taskworker.errors import CallAbandoned
from taskworker.reports import WorkStatus

log = logging.getLogger(__name__)


class Signals:
    """What a piece of work and its driver wait for.

    Attributes:
        wanted: there is something to do, or the work is to end; the driver clears it before each step.
        closing: the work is to end.
    """

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.closing = threading.Event()

    def close(self) -> None:
        """Have the work end."""
        self.closing.set()
        self.wanted.set()

    def check_open(self) -> None:
        """Raise an error if the work is to end; work that takes long calls this as it goes on.

        Raises:
            CallAbandoned: it is.
        """
        if self.closing.is_set():
            raise CallAbandoned("the pool is shutting down")


class BackgroundWork(Protocol):
    """A piece of work done step by step, in one thread.

    Attributes:
        name: of the thread.
        failure_text: logged, with the error, when a step failed as steps may.
        fault_text: logged when a step failed as none should.
        signals: between the work and its driver.
    """

    name: str
    failure_text: str
    fault_text: str
    signals: Signals

    def pause_s(self) -> float | None:
        """How long to wait before the next step, unless one is wanted sooner; None: until one is wanted."""

    def step(self) -> None:
        """Do what is due, if anything is.

        Raises:
            CallAbandoned: it was told to end.
            StorageError: it came to no end, and is tried again.
        """

    def note_failure(self, error: Exception) -> None:
        """A step raised this error: decide when to try again, and what to show meanwhile."""

    def stop(self) -> None:
        """End at the next sign of progress."""


class ShownWork(Protocol):
    """Work that ``status`` shows, whoever does it."""

    def views(self) -> list[WorkStatus]:
        """What it is at."""


class WorkDriver:
    """Does background work, each piece in a thread of its own: none waits for another.

    Args:
        works: what to do.
    """

    def __init__(self, works: Sequence[BackgroundWork]) -> None:
        self._works = works
        self._threads = [threading.Thread(target=_drive, args=(work,), name=work.name, daemon=True) for work in works]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End one piece of work after the other, in their order."""
        for work, thread in zip(self._works, self._threads, strict=True):
            work.stop()
            thread.join()


def _drive(work: BackgroundWork) -> None:
    signals = work.signals
    while True:
        signals.wanted.wait(work.pause_s())
        signals.wanted.clear()
        if signals.closing.is_set():
            return
        try:
            work.step()
        except StorageError as error:
            if isinstance(error, CallAbandoned) and signals.closing.is_set():
                return
            log.warning(work.failure_text, error)
            work.note_failure(error)
        except Exception as error:
            log.exception(work.fault_text)
            work.note_failure(error)
