"""SIGINT and SIGTERM unwind the command like an error, so that all that is half done is undone."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

_AGAIN_S = 0.25
_GIVE_UP_S = 10.0  # cleaning up takes a fraction of a second, or a few on a slow disk


class Stopped(BaseException):
    """A signal asked the command to end. Not an ``Exception``, as no handler of errors is meant to catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number  # as shells report it


def stopped_in(error: BaseException | None) -> Stopped | None:
    """The ``Stopped`` that an error is, or was raised while handling: Python makes others of it, as in imports."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def unwind_on_signals() -> None:
    """From now on a signal raises ``Stopped`` in the main thread."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def finish_regardless() -> None:
    """From now on signals are ignored: what is left is short, and must not be cut off half done."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Raise ``Stopped``, and again until it unwinds: in a finalizer, Python drops what is raised.

    What was interrupted may also have left a lock locked that the clean-up waits for. A process that
    has not ended by then ends the hard way, which a store survives like a power cut.
    """
    give_up_at = time.monotonic() + _GIVE_UP_S

    def stop_again(_number: int, _frame: FrameType | None) -> None:
        if time.monotonic() > give_up_at:
            os._exit(128 + number)
        if not _unwinding():
            raise Stopped(number)

    signal.signal(signal.SIGALRM, stop_again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    if not _unwinding():  # a second one would cut off the clean-up that the first one started
        raise Stopped(number)


def _unwinding() -> bool:
    return stopped_in(sys.exception()) is not None
