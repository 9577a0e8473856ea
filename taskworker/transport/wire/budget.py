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
        self._refused = False

    def take(self, count: int, leaving: int = 0) -> bool:
        """Take ``count`` bytes; return False if there are not so many now besides ``leaving``, which are for others."""
        with self._lock:
            if count > self._left - leaving:
                self._refused = True
                return False
            self._left -= count
            return True

    def give_back(self, count: int) -> bool:
        """Give ``count`` bytes back; return whether somebody was refused some meanwhile."""
        with self._lock:
            self._left += count
            refused, self._refused = self._refused, False
            return refused

    @property
    def is_free(self) -> bool:
        """Whether nobody was refused since bytes were last given back."""
        return not self._refused
