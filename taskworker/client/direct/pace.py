"""How fast all pushes of a client together get through to workers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from storage.limits import MIB

# Over a link of 64 Mbit/s or less, a push through the pool is faster: it carries the file's bytes, and not n/k times as
# many.
_WORTHWHILE_BYTES_PER_S = 8 * MIB
_JUDGED_BYTES = 24 * MIB
_HOPELESS_S_MIN = 3.0  # new connections to distant workers take a while to become fast


class Pace:
    """Judges, each time that enough was written or could have been, whether that was worthwhile. Thread-safe.

    Args:
        clock_s: monotonic seconds.

    Attributes:
        is_known_fast: whether it was worthwhile when it was judged last; False before that.
    """

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._writing = 0
        self._since_s = 0.0
        self._busy_s = 0.0  # before that
        self._bytes = 0
        self._begun_bytes = 0
        self.is_known_fast = False

    def begin(self, size: int) -> None:
        """Shards of so many bytes begin to be written."""
        with self._lock:
            if not self._writing:
                self._since_s = self._clock_s()
            self._writing += 1
            self._begun_bytes += size

    @property
    def is_hopeless(self) -> bool:
        """Whether it would be too slow even if all that was begun were written now."""
        with self._lock:
            busy_s = self._busy_s + (self._clock_s() - self._since_s if self._writing else 0.0)
            return busy_s >= _HOPELESS_S_MIN and self._bytes + self._begun_bytes < _WORTHWHILE_BYTES_PER_S * busy_s

    def end(self, size: int) -> bool | None:
        """Shards of so many bytes were written, or not taken.

        Returns:
            Whether all has been fast enough lately; None: that is not known yet.
        """
        with self._lock:
            self._writing -= 1
            self._begun_bytes -= size
            self._bytes += size
            now_s = self._clock_s()
            self._busy_s += now_s - self._since_s
            self._since_s = now_s
            worthwhile_bytes = _WORTHWHILE_BYTES_PER_S * self._busy_s
            if max(self._bytes, worthwhile_bytes) < _JUDGED_BYTES:
                return None
            self.is_known_fast = is_fast = self._bytes >= worthwhile_bytes
            self._bytes, self._busy_s = 0, 0.0
            return is_fast
