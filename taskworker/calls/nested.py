"""Makes nested calls, which wait for a place; outer calls are refused if there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from taskworker.calls.call import RunningCall
from taskworker.errors import CallAbandoned, ServerBusy

_AGAIN_S = 0.02
_AGAIN_S_MAX = 0.2


def found_no_place(error: ServerBusy) -> bool:
    """Whether a call was refused because too many calls run (``Places``), not because a function's queue is full."""
    return type(error) is ServerBusy


def patiently(
    call: Callable[[float | None], str],
    timeout_s: float | None,
    asking: RunningCall,
    clock_s: Callable[[], float] = time.monotonic,
) -> str:
    """Make a nested call, repeat it until it finds a place, and return its result.

    Args:
        call: makes the call; gets the seconds that are left.
        timeout_s: how long all attempts together may take.
        asking: the call that waits for the result; once it has ended, no further attempt is made.
        clock_s: monotonic seconds.

    Raises:
        ServerBusy: no place became free in time.
        CallAbandoned: ``asking`` was ended.
        StorageError: ``call`` raised it.
    """
    until = None if timeout_s is None else clock_s() + timeout_s
    ended, pause_s = threading.Event(), _AGAIN_S
    with asking.ended_by(ended.set):
        while True:
            left_s = None if until is None else max(0.001, until - clock_s())
            try:
                return call(left_s)
            except ServerBusy as error:
                if not found_no_place(error) or (until is not None and clock_s() + pause_s >= until):
                    raise
            if ended.wait(pause_s):
                raise CallAbandoned("the call that asked is over")
            pause_s = min(_AGAIN_S_MAX, 2 * pause_s)
