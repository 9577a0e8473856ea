"""How to tell whether a peer is alive, besides by what arrives on a connection to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _never() -> float:
    return -math.inf


@dataclass(frozen=True, slots=True)
class SignsOfLife:
    """What else was heard of a peer. All times are those of the connections' clock, in seconds.

    Attributes:
        arrived_s: when something of another connection to the same peer last arrived, at either end. Over a slow link,
            a small call waits for that.
        told_s: when the peer last said by other means that it is alive. While other traffic fills its link, a small
            call may get no answer for a while.
    """

    arrived_s: Callable[[], float] = _never
    told_s: Callable[[], float] = _never


NO_OTHERS = SignsOfLife()
"""Nothing is heard but what arrives on the connection."""
