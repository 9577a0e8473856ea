"""Items that a generator gives: how many are ahead of who takes them, and until when."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from taskworker.calls.call import Items
from taskworker.errors import (
    DeadlineExceeded,
)
from taskworker.functions.routing.port import RoutedFunction

CACHED_RESULT_BYTES_MAX = 1 << 20


def item_bytes(item: str) -> int:
    """What an item takes in memory."""
    return len(item) + 64  # and about so much for the text's own head


class Given:
    """Hands over items; knows whether there were any, and which, if they are small enough to be cached.

    A call has ended when its function's time is over; whoever takes its items may then hold nothing up any more. So
    those that are not taken by then are dropped, until the worker tells how the call ended.
    """

    def __init__(self, items: Items, function: RoutedFunction) -> None:
        self._items = items
        self._function = function
        self._over_at = math.inf
        self._bytes = 0
        self._late = False
        self.any = False
        self.kept: list[str] | None = []

    def __call__(self, item: str, over: Callable[[], bool]) -> None:
        """Hand over one item."""
        if not self.any:
            self._over_at = time.monotonic() + self._function.wall_s
        self.any = True
        self._bytes += item_bytes(item)
        if self._bytes > CACHED_RESULT_BYTES_MAX:
            self.kept = None
        elif self.kept is not None:
            self.kept.append(item)
        if not self._late:
            self._items(item, lambda: over() or self._is_late())

    def _is_late(self) -> bool:
        """Asked while an item waits to be taken, and then it is dropped."""
        self._late = time.monotonic() >= self._over_at
        return self._late

    def require_all(self) -> None:
        """Return if all that was given was handed over.

        Raises:
            DeadlineExceeded: it was not, as it was not taken in time.
        """
        if self._late:
            raise DeadlineExceeded(
                f"function {self._function.name}: what it gave was not taken within its time limit of "
                f"{self._function.wall_s:g} s"
            )


class Until:
    """A point in time by which a call must have ended."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def is_over(self) -> bool:
        """Whether it has come."""
        return self._at is not None and time.monotonic() >= self._at

    def left_s(self) -> float | None:
        """Seconds left.

        Raises:
            DeadlineExceeded: none are.
        """
        if self._at is None:
            return None
        left = self._at - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"the call did not end within {self._timeout_s:.3g} s")
        return left
