"""Keeps short what waits to be sent over a slow link.

The kernel takes megabytes for a connection, and congestion control sends until a queue on the way is full. Over a link
of 1 Mbit/s that is many seconds, and what other connections send over the same link, such as heartbeats, waits behind
it or is dropped. So a connection whose bytes need longer than :data:`_TOO_LONG_S` gets a smaller send buffer: it then
has no more on the way than the link takes in :data:`_WANTED_S`, which still fills a link with a round trip as long.

Where no queue builds up, as congestion control avoids it (BBR) or the link is distant and loses packets, the kernel
knows better: a small buffer would be full of bytes that are to be sent again, and congestion control could not find out
how fast the link is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from storage.limits import KIB, MIB

_LOOK_S = 0.25
_SAMPLE_S_MAX = 1.0  # a longer time without a look had pauses in it
_TOO_LONG_S = 0.4
_WANTED_S = 0.3
_SHORT_S = 0.15
_QUEUED_S, _HARDLY_QUEUED_S = 0.25, 0.15  # packets of a distant link without a queue may come as much later as this
_SAMPLES = 8
_BACKLOG_BYTES = 16 * KIB  # with less, the link was not busy all the time
_LIMIT_MIN, _LIMIT_MAX = 32 * KIB, 4 * MIB


class SendBacklog:
    """Watches what one connection sends. Used by one thread at a time.

    Args:
        unsent: returns how many bytes the other end's system has not taken yet.
        queued_s: returns how long packets wait in queues on the way, in seconds.
        limit: sets the size of the send buffer, in bytes.
        clock_s: monotonic seconds.
    """

    __slots__ = (
        "_clock_s",
        "_limit",
        "_limit_now",
        "_looked_s",
        "_queued_s",
        "_rates",
        "_sent",
        "_taken",
        "_unsent",
        "_waiting",
    )

    def __init__(
        self,
        unsent: Callable[[], int],
        queued_s: Callable[[], float],
        limit: Callable[[int], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._unsent = unsent
        self._queued_s = queued_s
        self._limit = limit
        self._clock_s = clock_s
        self._limit_now: int | None = None
        self._sent = self._taken = self._waiting = 0
        self._looked_s = clock_s()
        self._rates: deque[float] = deque(maxlen=_SAMPLES)

    def note(self, count: int) -> None:
        """Note that the kernel has taken so many bytes."""
        self._sent += count
        now_s = self._clock_s()
        passed_s = now_s - self._looked_s
        if passed_s < _LOOK_S:
            return
        waiting = self._unsent()
        taken = self._sent - waiting
        if min(waiting, self._waiting) >= _BACKLOG_BYTES and passed_s <= _SAMPLE_S_MAX:
            self._rates.append((taken - self._taken) / passed_s)
        self._looked_s, self._waiting, self._taken = now_s, waiting, taken
        # The highest of late: over a link that loses packets, there are moments in which nothing arrives.
        rate = max(self._rates, default=0.0)
        if rate > 0:
            self._adapt(waiting / rate, rate)

    def _adapt(self, wait_s: float, rate: float) -> None:
        limit = self._limit_now
        if limit is None and wait_s <= _TOO_LONG_S:
            return
        queued_s = self._queued_s()
        if wait_s > _TOO_LONG_S and queued_s > _QUEUED_S:
            wanted = max(_LIMIT_MIN, int(rate * _WANTED_S))
            if limit is not None and wanted >= limit:
                return
        elif limit is not None and limit < _LIMIT_MAX and (wait_s < _SHORT_S or queued_s < _HARDLY_QUEUED_S):
            wanted = min(_LIMIT_MAX, 2 * limit)
        else:
            return
        self._limit_now = wanted
        self._limit(wanted)
