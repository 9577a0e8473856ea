"""The driver of background work: runs each piece in a loop of its own.

To add a piece of work, write a module with a class that implements :class:`BackgroundWork`, and put it in the list of
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
    """Events that a piece of work and its driver wait for.

    Attributes:
        wanted: there is something to do, or the work is to end; the driver clears it before each step.
        closing: the work is to end.
    """

    def __init__(self) -> None:
        self.wanted = threading.Event()
        self.closing = threading.Event()

    def close(self) -> None:
        """Tell the work to end."""
        self.closing.set()
        self.wanted.set()

    def check_open(self) -> None:
        """Raise an error if the work is to end; long steps call this periodically.

        Raises:
            CallAbandoned: the work is to end.
        """
        if self.closing.is_set():
            raise CallAbandoned("the pool is shutting down")


class BackgroundWork(Protocol):
    """A piece of work done step by step, in one thread.

    Attributes:
        name: name of the thread.
        failure_text: logged, with the error, when a step fails with an expected error (``StorageError``).
        fault_text: logged when a step fails with any other error.
        signals: wake or end the work.
    """

    name: str
    failure_text: str
    fault_text: str
    signals: Signals

    def pause_s(self) -> float | None:
        """Seconds to wait before the next step, unless ``wanted`` is set sooner; None: wait until it is set."""

    def step(self) -> None:
        """Do what is due, if anything is.

        Raises:
            CallAbandoned: the work is to end.
            StorageError: the step failed, and is tried again.
        """

    def note_failure(self, error: Exception) -> None:
        """Called after a step raised this error: decide when to try again, and what ``status`` shows until then."""

    def stop(self) -> None:
        """Make a running step end at its next progress report."""


class ShownWork(Protocol):
    """Work that ``status`` shows, whether or not the driver runs it."""

    def views(self) -> list[WorkStatus]:
        """The status of its pieces of work."""


class WorkDriver:
    """Runs background work, each piece in a thread of its own, so that none waits for another.

    Args:
        works: the pieces of work.
    """

    def __init__(self, works: Sequence[BackgroundWork]) -> None:
        self._works = works
        self._threads = [threading.Thread(target=_drive, args=(work,), name=work.name, daemon=True) for work in works]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the pieces of work one after the other, in their order."""
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
