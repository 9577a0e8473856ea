"""Walks over all live objects, which deletions of single versions must not disturb.

A walk lists of each version only what it does not share with the one before it. If that one were deleted while the walk
is under way, what both share would be listed nowhere, and a collect would destroy it. So a walk takes a version for
deleted only if it was when the walk began; and while a walk runs, no collect removes what it still takes for live.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Walks:
    """The walks over live objects that are under way. Thread-safe.

    Args:
        sequence: returns the catalog's last sequence number.
    """

    def __init__(self, sequence: Callable[[], int]) -> None:
        self._sequence = sequence
        self._lock = threading.Lock()
        self._begun: Counter[int] = Counter()

    @contextmanager
    def walking(self) -> Iterator[int]:
        """Note a walk, for as long as the block runs; yields the sequence number at its begin."""
        with self._lock:  # so that no walk begins between another one's number and its entry
            begun = self._sequence()
            self._begun[begun] += 1
        try:
            yield begun
        finally:
            with self._lock:
                self._begun -= Counter((begun,))

    def oldest(self) -> int:
        """The number at which the oldest walk under way began; a walk must be under way."""
        with self._lock:
            return min(self._begun)
