"""Polling a call's descriptors, with short pauses that keep many tiny writes from waking the reader each time."""

from __future__ import annotations

import math
import select
import time
from collections.abc import Collection


class Listening:
    """Waits for several descriptors, and can skip each of them for a while.

    A process that writes byte by byte would wake its reader for every byte. While its descriptor is skipped, the bytes
    gather and are then read together.

    Args:
        descriptors: the descriptors to wait for.
    """

    def __init__(self, descriptors: Collection[int]) -> None:
        self._poll = select.poll()
        for descriptor in descriptors:
            self._poll.register(descriptor, select.POLLIN)
        self._alone: dict[int, float] = {}

    def wait(self, seconds: float) -> list[int]:
        """Return the descriptors that have data or have reached their end; an empty list after the timeout."""
        if self._alone:
            now = time.monotonic()
            for descriptor in [one for one, until in self._alone.items() if until <= now]:
                del self._alone[descriptor]
                self._poll.register(descriptor, select.POLLIN)
            seconds = min(seconds, min(self._alone.values(), default=math.inf) - now)
        return [descriptor for descriptor, _ in self._poll.poll(max(0.0, math.ceil(seconds * 1000)))]

    def leave_alone(self, descriptor: int, seconds: float) -> None:
        """Skip a descriptor for this many seconds."""
        self._poll.unregister(descriptor)
        self._alone[descriptor] = time.monotonic() + seconds

    def leave_out(self, descriptor: int) -> None:
        """Stop waiting for a descriptor."""
        self._poll.unregister(descriptor)
