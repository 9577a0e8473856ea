"""After a pool's restart, makes requests wait until the workers, which kept running, have joined again."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class StartupBarrier:
    """Waits for members to join again. Thread-safe.

    Args:
        slots: slots of the members that hold data of users.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self._missing = set(slots)
        self._lock = threading.Lock()
        self._over = threading.Event()
        if not self._missing:
            self._over.set()

    def came(self, slot: int) -> None:
        """Note that a member has joined."""
        with self._lock:
            self._missing.discard(slot)
            if not self._missing:
                self._over.set()

    def end(self) -> None:
        """End all waiting."""
        self._over.set()

    def wait(self) -> None:
        """Wait until all members have joined, or :meth:`end` is called."""
        self._over.wait()
