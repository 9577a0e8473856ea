"""Calls that calls make: they wait for places where others are refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from taskworker.calls.call import RunningCall
from taskworker.errors import CallAbandoned, ServerBusy

_AGAIN_S = 0.02
_AGAIN_S_MAX = 0.2


def found_no_place(error: ServerBusy) -> bool:
    """Whether a call was refused as too many were under way (``Places``), and not as too many wait for a function."""
    return type(error) is ServerBusy


def patiently(call: Callable[[float | None], str], timeout_s: float | None, asking: RunningCall) -> str:
    """Make a nested call, again and again until it finds a place; its result.

    Args:
        call: makes it; told how many seconds are left.
        timeout_s: how long all of it may take.
        asking: the call that waits; when it ends, nothing is tried any more.

    Raises:
        ServerBusy: it found no place in time.
        CallAbandoned: ``asking`` was ended.
        StorageError: what ``call`` raises.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    ended, pause_s = threading.Event(), _AGAIN_S
    with asking.ended_by(ended.set):
        while True:
            left_s = None if until is None else max(0.001, until - time.monotonic())
            try:
                return call(left_s)
            except ServerBusy as error:
                if not found_no_place(error) or (until is not None and time.monotonic() + pause_s >= until):
                    raise
            if ended.wait(pause_s):
                raise CallAbandoned("the call that asked is over")
            pause_s = min(_AGAIN_S_MAX, 2 * pause_s)
