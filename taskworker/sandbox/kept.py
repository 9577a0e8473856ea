"""Processes that have served calls of an owner, and wait for the same owner's next one."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass

from taskworker.sandbox.image import Keep, Limits
from taskworker.sandbox.prewarmed import Look, PrewarmedProcess

KEPT_MAX = 64
"""Of one function; the one that waits longest makes room."""
IDLE_S = 60.0
"""How long one waits for a call that does not come."""
LEFT_SHARE_MAX = 0.5
"""Of what a call may have of memory, descriptors and scratch files: with more in use, the next call would lack it."""
STANDARD_DESCRIPTORS = 4
"""That every call has: its channel, standard input, output and error."""


@dataclass(frozen=True, slots=True)
class KeptLoad:
    """Processes that wait for calls.

    Attributes:
        processes: how many.
        holds_bytes: what they have of memory and scratch files.
        waits_since: when the call ended of the one that waits for longest, on the monotonic clock.
    """

    processes: int
    holds_bytes: int
    waits_since: float


class KeptProcesses:
    """Of one function. Not thread-safe: who uses it holds a lock.

    Args:
        keep: how long a process may serve; None: none is kept.
        limits: of each call.

    Attributes:
        imported_bytes: the data that a process has before its first call.
    """

    def __init__(self, keep: Keep | None, limits: Limits) -> None:
        self._keep = keep
        self._limits = limits
        self.imported_bytes = 0
        self._waiting: OrderedDict[PrewarmedProcess, str] = OrderedDict()  # the one that came last is the last

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, owner: str) -> PrewarmedProcess | None:
        """Take the owner's process that came last, if one is fit for another call; it is waiting no more."""
        for prewarmed in reversed(self._waiting):
            if self._waiting[prewarmed] == owner and self._is_fit(prewarmed):
                del self._waiting[prewarmed]
                return prewarmed
        return None

    def put(self, owner: str, prewarmed: PrewarmedProcess, look: Look, timers: int) -> bool:
        """Keep a process whose call has ended well; False if it has served for long enough, or left too much behind.

        Args:
            owner: of the call.
            prewarmed: its process.
            look: at it, after the result came.
            timers: that it ever made (timer_create(2)): one may expire amid a later call.
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
        prewarmed.rests(max(0, own_bytes) + leavings.scratch_bytes)
        if not self._is_fit(prewarmed):
            return False
        self._waiting[prewarmed] = owner
        return True

    def drop_spent(self) -> list[PrewarmedProcess]:
        """Give those that are to end: they have served or waited for long enough, are not quiet, or are too many."""
        idle_since = time.monotonic() - IDLE_S
        spent = [one for one in self._waiting if one.rests_since < idle_since or not self._is_fit(one)]
        for prewarmed in spent:
            del self._waiting[prewarmed]
        while len(self._waiting) > KEPT_MAX:
            spent.append(self._waiting.popitem(last=False)[0])
        return spent

    def drop_oldest(self) -> PrewarmedProcess | None:
        """Give the one that waits for longest, to end; None if none does."""
        return self._waiting.popitem(last=False)[0] if self._waiting else None

    def drop_all(self) -> list[PrewarmedProcess]:
        """Give all of them, to end."""
        prewarmed_processes = list(self._waiting)
        self._waiting.clear()
        return prewarmed_processes

    @property
    def load(self) -> KeptLoad:
        """How many wait, and what they have."""
        first = next(iter(self._waiting), None)
        return KeptLoad(
            len(self._waiting),
            sum(prewarmed.holds_bytes for prewarmed in self._waiting),
            math.inf if first is None else first.rests_since,
        )

    def pids(self) -> set[int]:
        """Of those that wait."""
        return {prewarmed.pid for prewarmed in self._waiting}

    def _is_fit(self, prewarmed: PrewarmedProcess) -> bool:
        keep = self._keep
        if keep is None or prewarmed.served >= keep.calls:
            return False
        return time.monotonic() - prewarmed.first_used < keep.seconds and prewarmed.quiet
