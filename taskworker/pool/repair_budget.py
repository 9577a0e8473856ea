"""How much was made anew for each worker lately, because it said that it was missing there."""

from __future__ import annotations

from collections.abc import Callable

_WINDOW_S = 3600.0


class RepairBudget:
    """Bytes by slot within an hour. Not thread-safe; the fleet's lock guards it.

    Args:
        now_s: monotonic seconds.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._spent: dict[int, tuple[float, int]] = {}  # since when, how much

    def spend(self, slot: int, size: int) -> int:
        """So much more was written to a worker; all of this hour."""
        since_s, spent = self._spent.get(slot, (self._now_s(), 0))
        if self._now_s() - since_s >= _WINDOW_S:
            since_s, spent = self._now_s(), 0
        self._spent[slot] = since_s, spent + size
        return spent + size
