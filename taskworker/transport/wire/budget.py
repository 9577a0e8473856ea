"""Memory that all connections of a server share."""

from __future__ import annotations

import threading


class Budget:
    """A number of bytes to take and to give back. Thread-safe.

    Args:
        size: how many bytes.
    """

    def __init__(self, size: int) -> None:
        self._left = size
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Take ``count`` bytes; return False if there are not so many now."""
        with self._lock:
            if count > self._left:
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> None:
        """Give ``count`` bytes back."""
        with self._lock:
            self._left += count
