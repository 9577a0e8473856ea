"""Processes in a function's sandbox that belong to no call."""

from __future__ import annotations

from collections.abc import Callable, Set

STRANGER_S = 15.0
"""How long a process that belongs to no call may exist: longer than forking or reaping one takes."""


class Strangers:
    """Remembers since when each of them has been there.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._first_seen: dict[int, float] = {}

    def stay(self, pids: Set[int]) -> bool:
        """Whether one of the processes that are there now has been there for too long."""
        now = self._clock_s()
        self._first_seen = {pid: self._first_seen.get(pid, now) for pid in pids}
        return any(now - seen > STRANGER_S for seen in self._first_seen.values())
