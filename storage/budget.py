"""Memory that all calls share: many at once take hardly more of it than one."""

from __future__ import annotations

import threading


class Budget:
    """Bytes that may be under way at once. Thread-safe.

    Args:
        limit: how many; somebody who wants more than that gets it when nobody else has any.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Wait for so many bytes, and have them."""
        with self._changed:
            while not self._allows(count):
                self._changed.wait()
            self._taken += count

    def try_take(self, count: int) -> bool:
        """Have so many bytes if they are to be had at once."""
        with self._changed:
            allowed = self._allows(count)
            self._taken += count if allowed else 0
            return allowed

    def give_back(self, count: int) -> None:
        """Others may have them now."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def _allows(self, count: int) -> bool:
        return not self._taken or self._taken + count <= self._limit
