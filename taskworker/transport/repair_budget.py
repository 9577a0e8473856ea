"""How much was made anew for each worker lately: what it says is missing there, and what it holds for others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_S = 3600.0
_SPACING_S_MIN = 1.0


class RepairBudget:
    """Bytes by slot within an hour, and who went meanwhile. Not thread-safe; the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.
        spacing_s: a worker that goes again before has passed counts as having gone once.
    """

    def __init__(self, clock_s: Callable[[], float], spacing_s: float) -> None:
        self._clock_s = clock_s
        self._spacing_s = max(spacing_s, _SPACING_S_MIN)
        self._spent: dict[int, tuple[float, int]] = {}  # since when, how much
        self._gone: deque[tuple[float, int]] = deque()  # when, who; the oldest first
        self._gone_last_s: dict[int, float] = {}

    def spend(self, slot: int, size: int) -> int:
        """So much more was written to a worker; all of this hour."""
        since_s, spent = self._spent.get(slot, (self._clock_s(), 0))
        if self._clock_s() - since_s >= _WINDOW_S:
            since_s, spent = self._clock_s(), 0
        self._spent[slot] = since_s, spent + size
        return spent + size

    def note_gone(self, slot: int) -> None:
        """A worker went away: others are given what it holds."""
        now_s, last_s = self._clock_s(), self._gone_last_s.get(slot)
        if last_s is None or now_s - last_s >= self._spacing_s:
            self._gone_last_s[slot] = now_s
            self._gone.append((now_s, slot))
        self._forget_old(now_s)

    def gone_but_for(self, slot: int) -> list[int]:
        """The others that went within twice the hour, each as often as it did.

        Twice, as what is spent is counted from the first of it on, and repair may begin long after they went.
        """
        self._forget_old(self._clock_s())
        return [gone for _, gone in self._gone if gone != slot]

    def _forget_old(self, now_s: float) -> None:
        while self._gone and now_s - self._gone[0][0] >= 2 * _WINDOW_S:
            self._gone.popleft()
