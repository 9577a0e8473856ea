"""Prevents amplification attacks: limits how much larger UDP replies may be than their questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_network

from cachetools import LRUCache

_NETWORKS_MAX = 10_000
_BURST_S = 1.0


class ReplyBudget:
    """Limits by how many bytes replies over UDP may exceed their questions, for each network of clients.

    An attacker who forges sender addresses gains the difference in size, so that difference is counted. Beyond the
    limit, replies have no records and are no longer than the questions, and honest clients retry over TCP.

    Args:
        bytes_per_s: limit for each network, an IPv4 /24 or IPv6 /56.
        clock_s: monotonic seconds.
    """

    def __init__(self, bytes_per_s: float, clock_s: Callable[[], float]) -> None:
        self._rate = bytes_per_s
        self._burst = bytes_per_s * _BURST_S
        self._clock_s = clock_s
        self._left: LRUCache[str, tuple[float, float]] = LRUCache(_NETWORKS_MAX)

    def allows(self, host: str, excess: int) -> bool:
        """Whether a reply ``excess`` bytes larger than its question may be sent; if so, it is counted."""
        if excess <= 0:
            return True
        network, now = network_of(host), self._clock_s()
        left, at = self._left.get(network, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = excess <= left
        self._left[network] = (left - excess if allowed else left, now)
        return allowed


@lru_cache(_NETWORKS_MAX)
def network_of(host: str) -> str:
    """The network that a client belongs to: a client with one of its addresses may use all of them."""
    prefix = 56 if ":" in host else 24
    return str(ip_network((host.partition("%")[0], prefix), strict=False))
