"""Long operations that report progress to their callers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from storage.progress import Progress
from taskworker.errors import CallAbandoned

OutcomeT = TypeVar("OutcomeT")

_PROGRESS_PERIOD_S = 0.2  # often enough to look alive, rarely enough to cost nothing


class Run(Generic[OutcomeT]):
    """Runs a long operation in a thread of its own, watched by the thread that serves the call.

    If the context is left before the operation is done, the operation stops at its next progress report.

    Args:
        operation: does it, and reports its progress.
        told: told of the progress, too, by the thread that runs the operation, which ends if this raises an error.
    """

    def __init__(self, operation: Callable[[Progress], OutcomeT], told: Progress = lambda _done, _total: None) -> None:
        self._operation = operation
        self._told = told
        self._latest = (0, 0)
        self._finished = threading.Event()
        self._abandoned = threading.Event()
        self._outcome: OutcomeT | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="run", daemon=True)

    def __enter__(self) -> Run[OutcomeT]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._abandoned.set()
        self._thread.join()

    def progress(self) -> Iterator[tuple[int, int]]:
        """Yield (done, total) at once and then periodically, until the operation has ended."""
        yield self._latest
        while not self._finished.wait(_PROGRESS_PERIOD_S):
            yield self._latest
        yield self._latest

    def outcome(self) -> OutcomeT:
        """Return the result of the ended operation, or raise its error."""
        if self._error is not None:
            raise self._error
        assert self._outcome is not None, "the operation has ended"
        return self._outcome

    def _run(self) -> None:
        try:
            self._outcome = self._operation(self._note)
        except BaseException as error:  # raised in the caller's thread
            self._error = error
        finally:
            self._finished.set()

    def _note(self, done: int, total: int) -> None:
        if self._abandoned.is_set():
            raise CallAbandoned("the caller went away; start the operation again to go on")
        self._latest = (done, total)
        self._told(done, total)
