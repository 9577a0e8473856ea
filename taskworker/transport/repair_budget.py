"""How much was rebuilt for each worker lately: because it claims to lack it, or in place of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_S = 3600.0
_SPACING_S_MIN = 1.0


class RepairBudget:
    """Bytes rebuilt by slot within an hour, and who went away. Not thread-safe; the fleet's lock guards it.

    Args:
        clock_s: monotonic seconds.
        spacing_s: departures of a worker within this time count as one.
    """

    def __init__(self, clock_s: Callable[[], float], spacing_s: float) -> None:
        self._clock_s = clock_s
        self._spacing_s = max(spacing_s, _SPACING_S_MIN)
        self._spent: dict[int, tuple[float, int]] = {}  # start of the hour, bytes
        self._gone: deque[tuple[float, int]] = deque()  # time and slot, oldest first
        self._gone_last_s: dict[int, float] = {}

    def spend(self, slot: int, size: int) -> int:
        """Add bytes written to a worker; return the sum of the current hour."""
        since_s, spent = self._spent.get(slot, (self._clock_s(), 0))
        if self._clock_s() - since_s >= _WINDOW_S:
            since_s, spent = self._clock_s(), 0
        self._spent[slot] = since_s, spent + size
        return spent + size

    def note_gone(self, slot: int) -> None:
        """Note that a worker went away, so that others get its shards."""
        now_s, last_s = self._clock_s(), self._gone_last_s.get(slot)
        if last_s is None or now_s - last_s >= self._spacing_s:
            self._gone_last_s[slot] = now_s
            self._gone.append((now_s, slot))
        self._forget_old(now_s)

    def gone_but_for(self, slot: int) -> list[int]:
        """The other workers that went away within the last two hours, each as often as it did.

        Two hours, because the hour begins with the first bytes, and repair may begin long after a worker went away.
        """
        self._forget_old(self._clock_s())
        return [gone for _, gone in self._gone if gone != slot]

    def _forget_old(self, now_s: float) -> None:
        while self._gone and now_s - self._gone[0][0] >= 2 * _WINDOW_S:
            self._gone.popleft()
