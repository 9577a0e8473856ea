"""Passes on the items of a generator, within a limit on items ahead of the consumer, until the deadline."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

from taskworker.calls.call import Items
from taskworker.errors import (
    DeadlineExceeded,
)
from taskworker.functions.routing.port import RoutedFunction

CACHED_RESULT_BYTES_MAX = 1 << 20


def item_bytes(item: str) -> int:
    """Bytes that an item takes in memory: up to four for each character."""
    return sys.getsizeof(item) + 8  # plus its place in a list


class Given:
    """Passes items on, and keeps them for the cache while they are small enough.

    A call has ended when its function's time is over, and a slow consumer of its items must not delay anything after
    that. So items that are not taken by then are dropped, until the worker reports how the call ended.

    Args:
        items: receives the items.
        function: the function that is called.
        clock_s: monotonic seconds.
    """

    def __init__(self, items: Items, function: RoutedFunction, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._items = items
        self._function = function
        self._over_at = math.inf
        self._bytes = 0
        self._late = False
        self.any = False
        self.kept: list[str] | None = []

    def __call__(self, item: str, over: Callable[[], bool]) -> None:
        """Pass on one item."""
        if not self.any:
            self._over_at = self._clock_s() + self._function.wall_s
        self.any = True
        self._bytes += item_bytes(item)
        if self._bytes > CACHED_RESULT_BYTES_MAX:
            self.kept = None
        elif self.kept is not None:
            self.kept.append(item)
        if not self._late:
            self._items(item, lambda: over() or self._is_late())

    def _is_late(self) -> bool:
        """Whether the call's time is over, so that an item that waits to be taken is dropped."""
        self._late = self._clock_s() >= self._over_at
        return self._late

    def require_all(self) -> None:
        """Check that all items were passed on.

        Raises:
            DeadlineExceeded: some items were dropped because they were not taken in time.
        """
        if self._late:
            raise DeadlineExceeded(
                f"function {self._function.name}: its items were not received within its time limit of "
                f"{self._function.wall_s:g} s"
            )


class Until:
    """A point in time by which a call must have ended.

    Args:
        timeout_s: seconds until then; None: no limit.
        clock_s: monotonic seconds.
    """

    def __init__(self, timeout_s: float | None, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock_s = clock_s
        self._at = None if timeout_s is None else clock_s() + timeout_s

    @property
    def is_over(self) -> bool:
        """Whether this point in time has passed."""
        return self._at is not None and self._clock_s() >= self._at

    def left_s(self) -> float | None:
        """Seconds left; None: no limit.

        Raises:
            DeadlineExceeded: no time is left.
        """
        if self._at is None:
            return None
        left = self._at - self._clock_s()
        if left <= 0:
            raise DeadlineExceeded(f"the call did not end within {self._timeout_s:.3g} s")
        return left
