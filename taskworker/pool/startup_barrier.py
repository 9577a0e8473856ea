"""A pool that has just been started again: its workers live on, and are on their way back to it."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class StartupBarrier:
    """Who of the members is still to come. Thread-safe.

    Args:
        slots: of the members whose data users may ask for.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self._missing = set(slots)
        self._lock = threading.Lock()
        self._over = threading.Event()
        if not self._missing:
            self._over.set()

    def came(self, slot: int) -> None:
        """A member has joined."""
        with self._lock:
            self._missing.discard(slot)
            if not self._missing:
                self._over.set()

    def end(self) -> None:
        """Wait for nobody any more."""
        self._over.set()

    def wait(self) -> None:
        """Return once all have come, or have been waited for long enough."""
        self._over.wait()
