"""The body of a call that is arriving, and how fast it does."""

from __future__ import annotations

from typing import NamedTuple

from storage.limits import KIB
from taskworker.transport.wire.body_memory import Charge

STALLED_S = 20.0
"""A peer from which nothing comes for so long in the middle of a frame is as good as away."""
_BYTES_PER_S_MIN = 16 * KIB
_HOGGING_S = 2.0
_HOGGING_BYTES_PER_S = 256 * KIB


class ArrivingBody(NamedTuple):
    """A body that has not arrived completely.

    Attributes:
        memory: where it is put; it may be longer than the body.
        length: how many bytes it has.
        charge: for the call.
        since_s: since when it arrives, monotonic seconds.
        received_before: how many bytes the connection had received then.
    """

    memory: bytearray
    length: int
    charge: Charge
    since_s: float
    received_before: int

    def is_too_slow(self, now_s: float) -> bool:
        """Whether it takes longer than any use of it is worth."""
        return now_s - self.since_s > STALLED_S + self.length / _BYTES_PER_S_MIN

    def hogged(self, now_s: float, received: int) -> int:
        """How many bytes of memory it takes while it arrives slowly; 0 if it is fast.

        Args:
            now_s: monotonic seconds.
            received: how many bytes the connection has received now.
        """
        since_s = now_s - self.since_s
        if since_s < _HOGGING_S:
            return 0
        return self.length if received - self.received_before < _HOGGING_BYTES_PER_S * since_s else 0
