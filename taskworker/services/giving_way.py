"""Expensive calls of one user rest while other users call, so that these find the processor free most of the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from storage.clocks import monotonic_s
from taskworker.rpc.authorization import user_of
from taskworker.rpc.binding import Caller, require_active

_REST_TIMES = 3.0  # seconds of rest for each second of work: a quarter of the time is left for the work
_REST_S_MAX = 1.0  # the caller may have left meanwhile
_LATELY_S = 0.25  # other users count as active if they called within this time

Progress = Callable[[int, int], None]
HasOthers = Callable[[str, float], bool]
"""(user, seconds) → whether another user has called within so many seconds."""


def paced(
    caller: Caller,
    has_others: HasOthers,
    clock_s: Callable[[], float] = monotonic_s,
    wait: Callable[[float], object] = time.sleep,
) -> Progress:
    """A progress callback for the expensive work of a call: it ends with its caller, and gives way to other users.

    Args:
        caller: whose call it is. Without a known user, nobody is given way to.
        has_others: whether other users are active.
        clock_s: monotonic seconds.
        wait: waits for so many seconds.
    """
    user = user_of(caller)
    began_s = clock_s()

    def progress(_done: int, _total: int) -> None:
        nonlocal began_s
        require_active(caller)
        if user is not None and has_others(user, _LATELY_S):
            wait(min(_REST_S_MAX, _REST_TIMES * (clock_s() - began_s)))
            require_active(caller)
        began_s = clock_s()

    return progress
