"""Processes kept after a call, to serve the next call of the same owner."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from taskworker.sandbox.image import Keep, Limits
from taskworker.sandbox.prewarmed import Look, PrewarmedProcess

KEPT_MAX = 64
"""Kept processes of one function; if there are more, the one that has waited the longest is ended."""
IDLE_S = 60.0
"""How long a process is kept without a call."""
LEFT_SHARE_MAX = 0.5
"""The fraction of a call's memory, descriptors and scratch files that may still be in use after it. A process that uses
more is not kept, as the next call would lack it."""
STANDARD_DESCRIPTORS = 4
"""Descriptors of every call: its channel, standard input, output and error."""


@dataclass(frozen=True, slots=True)
class KeptLoad:
    """What the kept processes of a function use.

    Attributes:
        processes: how many there are.
        holds_bytes: their memory and scratch files.
        waits_since: when the last call ended in the process that has waited the longest, on the monotonic clock.
    """

    processes: int
    holds_bytes: int
    waits_since: float


class KeptProcesses:
    """The kept processes of one function. Not thread-safe: callers hold a lock.

    Args:
        keep: how long a process may serve; None: no process is kept.
        limits: limits of each call.
        clock_s: monotonic seconds.

    Attributes:
        imported_bytes: size of a process's data before its first call.
    """

    def __init__(self, keep: Keep | None, limits: Limits, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._keep = keep
        self._limits = limits
        self.imported_bytes = 0
        self._waiting: OrderedDict[PrewarmedProcess, str] = OrderedDict()  # in the order in which they were put

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, owner: str) -> PrewarmedProcess | None:
        """Remove and return the owner's latest kept process that can serve another call; None if there is none."""
        for prewarmed in reversed(self._waiting):
            if self._waiting[prewarmed] == owner and self._is_fit(prewarmed):
                del self._waiting[prewarmed]
                return prewarmed
        return None

    def put(self, owner: str, prewarmed: PrewarmedProcess, look: Look, timers: int) -> bool:
        """Keep a process after a successful call.

        Args:
            owner: owner of the call.
            prewarmed: process of the call.
            look: its memory and threads, measured after the result came.
            timers: how many POSIX timers it has made (timer_create(2)). A process with any is not kept, as a timer
                may expire during a later call.

        Returns:
            Whether it is kept. It is not if it has served for long enough, or holds too much.
        """
        if self._keep is None or look.threads != 1 or timers:
            return False
        try:
            leavings = prewarmed.leavings()
        except OSError:
            return False
        own_bytes = look.data_bytes - self.imported_bytes
        room = self._limits.open_files - STANDARD_DESCRIPTORS
        if (
            own_bytes > LEFT_SHARE_MAX * self._limits.memory_bytes
            or leavings.descriptors - STANDARD_DESCRIPTORS > LEFT_SHARE_MAX * room
            or leavings.scratch_share > LEFT_SHARE_MAX
        ):
            return False
        prewarmed.rests(self._clock_s(), max(0, own_bytes) + leavings.scratch_bytes)
        if not self._is_fit(prewarmed):
            return False
        self._waiting[prewarmed] = owner
        return True

    def drop_spent(self) -> list[PrewarmedProcess]:
        """Remove and return the processes to end: those that served or waited long enough, are active, or too many."""
        idle_since = self._clock_s() - IDLE_S
        spent = [one for one in self._waiting if one.rests_since < idle_since or not self._is_fit(one)]
        for prewarmed in spent:
            del self._waiting[prewarmed]
        while len(self._waiting) > KEPT_MAX:
            spent.append(self._waiting.popitem(last=False)[0])
        return spent

    def drop_oldest(self) -> PrewarmedProcess | None:
        """Remove and return the process that has waited the longest, to be ended; None if there is none."""
        return self._waiting.popitem(last=False)[0] if self._waiting else None

    def drop_all(self) -> list[PrewarmedProcess]:
        """Remove and return all processes, to be ended."""
        prewarmed_processes = list(self._waiting)
        self._waiting.clear()
        return prewarmed_processes

    @property
    def load(self) -> KeptLoad:
        """How many processes are kept, and what they use."""
        first = next(iter(self._waiting), None)
        return KeptLoad(
            len(self._waiting),
            sum(prewarmed.holds_bytes for prewarmed in self._waiting),
            math.inf if first is None else first.rests_since,
        )

    def pids(self) -> set[int]:
        """Return the process ids of the kept processes."""
        return {prewarmed.pid for prewarmed in self._waiting}

    def _is_fit(self, prewarmed: PrewarmedProcess) -> bool:
        keep = self._keep
        if keep is None or prewarmed.served >= keep.calls:
            return False
        return self._clock_s() - prewarmed.first_used < keep.seconds and prewarmed.quiet
