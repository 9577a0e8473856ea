"""The registry of a process: its own figures, and histograms of the calls that it serves."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from taskworker.metrics.observers import Told

# From a small get on loopback to a large push over a slow line.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_SYNC_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


def new_registry(version: str) -> CollectorRegistry:
    """A registry with the figures that each process has: processor time, memory, descriptors, and its release."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a further series for each counter, which nothing here uses
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    release = Gauge("taskworker_build_info", "Always 1; the release is in the label.", ["version"], registry=registry)
    release.labels(version).set(1)
    return registry


def observed_calls(registry: CollectorRegistry) -> Told:
    """Observers that count calls in the registry."""
    seconds = Histogram(
        "taskworker_rpc_duration_seconds",
        "How long calls of gRPC took, by the status code that they ended with.",
        ["service", "method", "code"],
        buckets=_SECONDS,
        registry=registry,
    )
    received = Counter(
        "taskworker_rpc_received_bytes",
        "Bytes of messages that arrived with calls of gRPC.",
        ["service", "method"],
        registry=registry,
    )
    sent = Counter(
        "taskworker_rpc_sent_bytes",
        "Bytes of messages that were sent with calls of gRPC.",
        ["service", "method"],
        registry=registry,
    )
    shard_seconds = Histogram(
        "taskworker_shard_call_duration_seconds",
        "How long calls of the shard transport took, by the status code that they ended with.",
        ["call", "code"],
        buckets=_SECONDS,
        registry=registry,
    )
    shard_received = Counter(
        "taskworker_shard_received_bytes", "Bytes that arrived with calls for shards.", ["call"], registry=registry
    )
    shard_sent = Counter(
        "taskworker_shard_sent_bytes", "Bytes that were sent with calls for shards.", ["call"], registry=registry
    )
    syncs = Histogram(
        "taskworker_volume_sync_duration_seconds",
        "How long callers waited until the volume had made their shards durable.",
        buckets=_SYNC_SECONDS,
        registry=registry,
    )
    return Told(
        lambda service, method: _Counted((service, method), seconds, received, sent),
        lambda call: _Counted((call,), shard_seconds, shard_received, shard_sent),
        syncs.observe,
    )


class _Counted:
    """Counts the calls of one method; see ``CallObserver``.

    Looking a label up takes as long as counting, so it is done once for each code.
    """

    def __init__(self, labels: tuple[str, ...], seconds: Histogram, received: Counter, sent: Counter) -> None:
        self._labels = labels
        self._seconds = seconds
        self._by_code: dict[str, Histogram] = {}
        self._received = _Bytes(received, labels)
        self._sent = _Bytes(sent, labels)

    def received(self, count: int) -> None:
        """See ``CallObserver``."""
        self._received.add(count)

    def sent(self, count: int) -> None:
        """See ``CallObserver``."""
        self._sent.add(count)

    def ended(self, seconds: float, code: str) -> None:
        """See ``CallObserver``."""
        found = self._by_code.get(code)
        if found is None:
            found = self._by_code[code] = self._seconds.labels(*self._labels, code)
        found.observe(seconds)


class _Bytes:
    """Adds to one series of a counter, which is there once there is something to add: most calls are never made."""

    def __init__(self, counter: Counter, labels: tuple[str, ...]) -> None:
        self._counter = counter
        self._labels = labels
        self._series: Counter | None = None

    def add(self, count: int) -> None:
        if self._series is None:
            self._series = self._counter.labels(*self._labels)
        self._series.inc(count)
