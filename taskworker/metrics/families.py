"""Families of metrics that a collector reads anew on each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

Rows = Iterable[tuple[Sequence[str], float]]
"""Values of labels, each with the value of the metric."""

Families = Iterator[Metric]
"""Some families, as they are read."""

Parts = dict[str, Callable[[], Families]]
"""What to read, by name. What one of them raises is logged, and the others are shown nevertheless."""

MS_PER_S = 1000.0


def gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    """A value that goes up and down."""
    return GaugeMetricFamily(name, help_text, value=value)


def gauges(name: str, help_text: str, labels: Sequence[str], rows: Rows) -> GaugeMetricFamily:
    """Such values, by labels."""
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def counter(name: str, help_text: str, value: float) -> CounterMetricFamily:
    """A value that only grows, until the process restarts."""
    return CounterMetricFamily(name, help_text, value=value)


def counters(name: str, help_text: str, labels: Sequence[str], rows: Rows) -> CounterMetricFamily:
    """Such values, by labels."""
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def at(time_ms: float) -> float:
    """A time, in seconds since 1970."""
    return time_ms / MS_PER_S
