"""What a link does to packets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """What a link does to each packet, in either direction.

    Attributes:
        delay_ms: how long it takes.
        jitter_ms: by how much the delay varies, more or less. Packets stay in order.
        loss: share of packets that are lost.
        reorder: share of packets that overtake those before them, because they have no delay.
        rate_kbit: kilobits per second; 0: no limit. What would wait for more than 0.4 s is lost.
        outage_s: for how many seconds of every ``period_s`` all packets are lost.
        period_s: see there.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    rate_kbit: float = 0.0
    outage_s: float = 0.0
    period_s: float = 4.0
