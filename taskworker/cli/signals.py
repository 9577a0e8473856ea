"""SIGINT and SIGTERM unwind the command like an error, so that unfinished work is cleaned up."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

_AGAIN_S = 0.25
_GIVE_UP_S = 10.0  # cleaning up takes a fraction of a second, or a few seconds on a slow disk


class Stopped(BaseException):
    """A signal asked the command to end. It is not an ``Exception``, so that error handlers do not catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.exit_code = 128 + number  # as shells report it


def stopped_in(error: BaseException | None) -> Stopped | None:
    """The ``Stopped`` in an error's chain, if any: Python may replace it with another error, for example in imports."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__context__
    return error


def unwind_on_signals() -> None:
    """Make signals raise ``Stopped`` in the main thread from now on."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)


def finish_regardless() -> None:
    """Ignore signals from now on: the rest is short, and must not be cut off."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Raise ``Stopped``, repeatedly until it unwinds the command, as Python drops errors raised in a finalizer.

    The interrupted code may also have left a lock held that the clean-up waits for. A process that has not ended after
    ten seconds is ended at once, which a store survives like a power cut.
    """
    give_up_at = time.monotonic() + _GIVE_UP_S

    def stop_again(_number: int, _frame: FrameType | None) -> None:
        if time.monotonic() > give_up_at:
            os._exit(128 + number)
        if not _unwinding():
            raise Stopped(number)

    signal.signal(signal.SIGALRM, stop_again)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    if not _unwinding():  # a second signal must not cut off the clean-up that the first one started
        raise Stopped(number)


def _unwinding() -> bool:
    return stopped_in(sys.exception()) is not None
