"""Figures that are read anew on each scrape, from what ``taskworker status`` shows as well."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from taskworker.metrics.families import Families, Parts, gauge, gauges

log = logging.getLogger(__name__)


class Figures(Collector):
    """All figures of a process.

    Args:
        registry: shows them from now on.
        unready: gives the reason why the process cannot do its work now; empty: it can.
        parts: what to read, by name.
    """

    def __init__(self, registry: CollectorRegistry, unready: Callable[[], str], parts: Parts) -> None:
        self._unready = unready
        self._parts = parts
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what is there depends on the moment."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        failed: dict[str, bool] = {}
        yield gauge("taskworker_ready", "Whether this process can do its work, as /readyz says.", not self.unready())
        for part, read in self._parts.items():
            families, failed[part] = self._read(part, read)
            yield from families
        yield gauges(
            "taskworker_collect_failed",
            "Whether these figures could not be read for this scrape; the log says why.",
            ["part"],
            [([part], has_failed) for part, has_failed in failed.items()],
        )

    def unready(self) -> str:
        """Why the process cannot do its work now; also if that cannot be found out."""
        try:
            return self._unready()
        except Exception as error:
            log.warning("whether this process is ready cannot be told: %s", error)
            return str(error) or type(error).__name__

    def _read(self, part: str, read: Callable[[], Families]) -> tuple[list[Metric], bool]:
        try:
            return list(read()), False
        except Exception as error:
            log.warning("the metrics of the %s cannot be read: %s", part, error)
            return [], True
