"""Waiting for what a call's process sends, so that what it sends costs no more than it is worth."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Collection


class Listening:
    """Waits for several descriptors; each of them may be left alone for a while.

    Whoever writes byte by byte would have its reader wake up for each. Left alone, the bytes come together.

    Args:
        descriptors: to wait for.
    """

    def __init__(self, descriptors: Collection[int]) -> None:
        self._poll = select.poll()
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)
        self._alone: dict[int, float] = {}

    def wait(self, seconds: float) -> list[int]:
        """Give the descriptors that have something, or have ended; none if nothing comes in time."""
        if self._alone:
            now = time.monotonic()
            for descriptor in [one for one, until in self._alone.items() if until <= now]:
                del self._alone[descriptor]
                self._poll.register(descriptor, select.POLLIN)
            seconds = min(seconds, min(self._alone.values(), default=math.inf) - now)
        return [descriptor for descriptor, _ in self._poll.poll(max(0.0, math.ceil(seconds * 1000)))]

    def leave_alone(self, descriptor: int, seconds: float) -> None:
        """Do not wait for a descriptor for so long."""
        self._poll.unregister(descriptor)
        self._alone[descriptor] = time.monotonic() + seconds

    def leave_out(self, descriptor: int) -> None:
        """Do not wait for a descriptor any more."""
        self._poll.unregister(descriptor)
