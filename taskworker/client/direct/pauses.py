"""What failed lately and is not tried again for a while; each time, for longer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

_PAUSE_S = 60.0
_PAUSE_S_MAX = 900.0

KeyT = TypeVar("KeyT")


class Pauses(Generic[KeyT]):
    """Remembers what failed. Thread-safe.

    Args:
        kept_max: how many are remembered at most; the latest ones.
        clock_s: monotonic seconds.
    """

    def __init__(self, kept_max: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kept_max = kept_max
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._failed: OrderedDict[KeyT, tuple[int, float]] = OrderedDict()  # how often, and until when to pause

    def has(self, key: KeyT) -> bool:
        """Whether something is not to be tried now."""
        found = self._failed.get(key)
        return found is not None and self._clock_s() < found[1]

    def note_failed(self, key: KeyT) -> None:
        """Something failed. Failures of what was under way meanwhile count once."""
        with self._lock:
            if self.has(key):
                return
            failures = self._failed.pop(key, (0, 0.0))[0] + 1
            self._failed[key] = failures, self._clock_s() + pause_s(failures)
            if len(self._failed) > self._kept_max:
                self._failed.popitem(last=False)

    def note_worked(self, key: KeyT) -> None:
        """Something worked: its next pause is short again."""
        with self._lock:
            self._failed.pop(key, None)


def pause_s(failures: int) -> float:
    """How long not to try again what has failed this often in a row, at least once."""
    doublings = min(failures - 1, 4)  # the longest pause is shorter than that
    return min(_PAUSE_S * (1 << doublings), _PAUSE_S_MAX)
