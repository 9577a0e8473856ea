"""Hands work to the threads of an executor, such that work that was refused never runs.

``ThreadPoolExecutor.submit`` queues the work before it starts a thread for it. If the machine has none, it raises an
error, but a thread that becomes free later would do the work all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Generic, TypeVar

from storage.errors import StoreClosed, StoreUnavailable

T = TypeVar("T")

_NO_THREAD = "can't start new thread"  # Python's text; all other refusals come from executors that were shut down


def submitted(closed: str, executor: Executor, work: Callable[..., T], *arguments: object) -> Future[T]:
    """Submit work to an executor.

    Args:
        closed: text of the error if the executor was shut down.
        executor: does the work.
        work: what to do.
        arguments: of ``work``.

    Raises:
        StoreClosed: the executor was shut down; the work never runs.
        StoreUnavailable: the machine has no thread for the moment; the work never runs.
    """
    tentative = _Tentative(work, arguments)
    try:
        return executor.submit(tentative)
    except RuntimeError as error:
        if not tentative.withdraw():
            return tentative.outcome  # a thread that became free meanwhile has begun it
        if str(error) != _NO_THREAD:
            raise StoreClosed(closed) from error
        raise StoreUnavailable(
            "this machine can start no more threads now; try again when fewer programs run, or raise the limit of "
            "threads and processes (ulimit -u, or TasksMax of a systemd unit)"
        ) from error
    except BaseException:  # interrupted
        tentative.withdraw()
        raise


class _Tentative(Generic[T]):
    """Work that can be withdrawn until it begins.

    Attributes:
        outcome: of the work.
    """

    def __init__(self, work: Callable[..., T], arguments: tuple[object, ...]) -> None:
        self._work = work
        self._arguments = arguments
        self.outcome: Future[T] = Future()

    def withdraw(self) -> bool:
        """Have it never run; return False if it has begun."""
        return self.outcome.cancel()

    def __call__(self) -> T:
        outcome = self.outcome
        if not outcome.set_running_or_notify_cancel():
            raise CancelledError
        try:
            result = self._work(*self._arguments)
        except BaseException as error:
            outcome.set_exception(error)
            del self, outcome  # the error's traceback has this frame, and would keep itself alive
            raise
        outcome.set_result(result)
        return result
