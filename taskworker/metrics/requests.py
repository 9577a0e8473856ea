"""Counts the requests that a gateway serves, in the registry of its process."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# From a small get on loopback to a large object over a slow line.
_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)


@dataclass(slots=True)
class Served:
    """What is known of a request so far.

    Attributes:
        operation: what it asks for; one of few.
        code: how it ended: ``OK``, or the code of an error, one of few.
        received: bytes of its body that came.
        sent: bytes of the reply's body.
    """

    operation: str = "Unknown"
    code: str = "OK"
    received: int = 0
    sent: int = 0


class RequestMetrics:
    """Counts requests, their bytes, and how long they took. Thread-safe.

    Args:
        registry: shows the figures.
        gateway: the protocol, as it is in the names of the figures.
    """

    def __init__(self, registry: CollectorRegistry, gateway: str) -> None:
        prefix = f"taskworker_{gateway}"
        self._seconds = Histogram(
            f"{prefix}_request_duration_seconds",
            "How long requests took, with their bodies, by the code that they ended with.",
            ["operation", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._received = Counter(
            f"{prefix}_received_bytes", "Bytes of bodies that arrived.", ["operation"], registry=registry
        )
        self._sent = Counter(
            f"{prefix}_sent_bytes", "Bytes of bodies that were sent.", ["operation"], registry=registry
        )
        self._running = Gauge(f"{prefix}_requests_in_progress", "Requests under way.", registry=registry)

    def begun(self) -> None:
        """Note that a request began."""
        self._running.inc()

    def ended(self, served: Served, seconds: float) -> None:
        """Note that a request ended, and after how many seconds."""
        self._running.dec()
        self._seconds.labels(served.operation, served.code).observe(seconds)
        if served.received:
            self._received.labels(served.operation).inc(served.received)
        if served.sent:
            self._sent.labels(served.operation).inc(served.sent)
