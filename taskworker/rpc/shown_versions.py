"""Versions that links to the newest version have shown, so that a download does not end when a newer one is stored."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

SHOWN_S = 86_400.0
"""For how long a reader may go on with a version after a link last showed it as the newest, in seconds."""
_KEPT_MAX = 16_384


class ShownVersions:
    """Remembers which version each link showed as the newest one. Thread-safe.

    It is in memory only: after a restart, a version that is not the newest any more is not shown.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._shown: OrderedDict[tuple[str, str], float] = OrderedDict()  # until when; the first to end comes first

    def note(self, link_id: str, version_id: str) -> None:
        """A link shows this version as the newest one now."""
        key = link_id, version_id
        with self._lock:
            self._shown.pop(key, None)
            self._shown[key] = self._clock_s() + SHOWN_S
            if len(self._shown) > _KEPT_MAX:
                self._shown.popitem(last=False)

    def has(self, link_id: str, version_id: str) -> bool:
        """Whether the link showed this version within the last :data:`SHOWN_S` seconds."""
        with self._lock:
            return self._shown.get((link_id, version_id), float("-inf")) > self._clock_s()
