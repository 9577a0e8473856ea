"""Callers that have not shown yet what entitles them: how many connections they may have, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Protocol, TypeVar

FAILURES_MAX = 16
"""How many calls in a row may fail until a caller is a stranger again."""


class StrangersLimits(NamedTuple):
    """What callers of a server may have before one of their calls was carried out without an error.

    Attributes:
        connections: how many connections all of them have at once.
        of_host: how many of these come from one host.
        bodies_bytes: memory for all of their calls that are being received or carried out, besides that for others; a
            host has half of it at most, in which one of the largest calls must find room.
        proving_s: seconds after which a connection is closed on which no such call was made.
        body_bytes_max: the largest body of a call; None: as large as that of others.
    """

    connections: int
    of_host: int
    bodies_bytes: int
    proving_s: float
    body_bytes_max: int | None = None


class Standing:
    """What a caller has shown on a connection so far: one of a stranger, until a call was carried out without an error.

    It is one again when :data:`FAILURES_MAX` calls in a row failed.

    Args:
        now_s: monotonic seconds.

    Attributes:
        is_proven: whether it is no stranger.
        since_s: since when it was a stranger the last time.
    """

    def __init__(self, now_s: float) -> None:
        self.is_proven = False
        self.since_s = now_s
        self._failures = 0

    def succeeded(self) -> None:
        """A call was carried out."""
        self._failures = 0
        self.is_proven = True

    def failed(self, now_s: float) -> None:
        """A call failed."""
        self._failures += 1
        if self.is_proven and self._failures >= FAILURES_MAX:
            self.is_proven, self.since_s = False, now_s


class Stranger(Protocol):
    """A connection of such a caller.

    Attributes:
        began_s: when it was accepted.
    """

    began_s: float


StrangerT = TypeVar("StrangerT", bound=Stranger)


def to_drop(strangers: Iterable[tuple[str, StrangerT]], host: str, limits: StrangersLimits) -> StrangerT | None:
    """The connection to close in favour of a new one from a host; None: there is room for one more.

    It is the oldest one of the same host, or else of the host that has most, so that a flood from one host harms no
    others.

    Args:
        strangers: the connections of such callers, and their hosts.
        host: where the new one comes from.
        limits: how many there may be.
    """
    there = list(strangers)
    counts = Counter(each for each, _ in there)
    if counts[host] >= limits.of_host:
        crowded = host
    elif len(there) >= limits.connections:
        crowded = max(counts, key=lambda each: counts[each])
    else:
        return None
    return min((one for each, one in there if each == crowded), key=lambda one: one.began_s)
