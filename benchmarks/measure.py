"""Data of a measurement: samples of a figure, samples of its limit, and their ratios.

Figure and limit are measured alternately (A B A B ...), so that drift of the machine affects both. Ratios are computed
within each round and then summarised.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20
GIB = 1 << 30
MEGABYTE = 1e6

Better = Literal["higher", "lower"]
Bound = Literal["at least", "at most"]
Verdict = Literal["met", "missed", "not judged"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, quartiles and extremes of samples."""

    median: float
    low_quartile: float
    high_quartile: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Summarise ``samples`` (at least one)."""
        if len(samples) > 1:
            low_quartile, _, high_quartile = statistics.quantiles(samples, n=4, method="inclusive")
        else:
            low_quartile = high_quartile = samples[0]
        median = statistics.median(samples)
        return cls(median, low_quartile, high_quartile, min(samples), max(samples), len(samples))


@dataclass(frozen=True, slots=True)
class Limit:
    """A physical limit, sampled in the same rounds and the same unit as its figure.

    If the limit is a sum of parts, ``parts`` are the median seconds of each part.
    """

    name: str
    samples: tuple[float, ...]
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured figure, with one sample per round.

    ``chart`` names a plot of its own that shows the values of all figures with the same name; empty: none does.
    """

    name: str
    unit: str
    samples: tuple[float, ...]
    better: Better = "higher"
    limit: Limit | None = None
    note: str = ""
    chart: str = ""

    @property
    def spread(self) -> Spread:
        """Summary of the samples."""
        return Spread.of(self.samples)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratio of figure to limit in each round. 1 is the limit itself, and more is better."""
        if self.limit is None:
            return ()
        pairs = zip(self.samples, self.limit.samples, strict=True)
        return tuple(mine / bound if self.better == "higher" else bound / mine for mine, bound in pairs)


@dataclass(frozen=True, slots=True)
class Target:
    """An acceptance target: samples, and the bound that their median has to keep."""

    mark: str
    text: str
    bound_kind: Bound
    bound: float
    unit: str
    samples: tuple[float, ...]
    figure: str = ""
    reduced: bool = False
    """Whether the run used smaller sizes than those of the target."""
    needs_full_size: bool = False
    """Whether the target can only be judged at full size, because one of the compared times grows with the size."""

    @property
    def spread(self) -> Spread:
        """Summary of the samples."""
        return Spread.of(self.samples)

    @property
    def verdict(self) -> Verdict:
        """Whether the median keeps the bound."""
        if self.reduced and self.needs_full_size:
            return "not judged"
        median = self.spread.median
        kept = median >= self.bound if self.bound_kind == "at least" else median <= self.bound
        return "met" if kept else "missed"

    @property
    def within_noise(self) -> bool:
        """Whether some rounds kept the bound and others did not."""
        spread = self.spread
        return (
            spread.low < self.bound <= spread.high
            if self.bound_kind == "at least"
            else (spread.low <= self.bound < spread.high)
        )


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """Results of one suite."""

    name: str
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0


def seconds_of(action: Callable[[], object]) -> float:
    """Return the wall-clock seconds that ``action`` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def rate(amount: float, seconds: Sequence[float]) -> tuple[float, ...]:
    """Return ``amount`` per second for each of ``seconds``."""
    return tuple(amount / duration for duration in seconds)


def megabytes_per_second(byte_count: int, seconds: Sequence[float]) -> tuple[float, ...]:
    """Return the throughput in MB/s (10^6 bytes) for each of ``seconds``."""
    return rate(byte_count / MEGABYTE, seconds)


@dataclass(frozen=True, slots=True)
class PartTimes:
    """Seconds of each part of a sequential limit, by round."""

    rounds: tuple[Mapping[str, float], ...]

    @property
    def totals(self) -> tuple[float, ...]:
        """Sum of the parts in each round, as if they ran one after another."""
        return tuple(sum(parts.values()) for parts in self.rounds)

    @property
    def medians(self) -> dict[str, float]:
        """Median seconds of each part."""
        return {name: statistics.median(parts[name] for parts in self.rounds) for name in self.rounds[0]}

    def limit(self, name: str, amount: float) -> Limit:
        """Return the limit as a rate: ``amount`` divided by the sum of the parts."""
        return Limit(name, rate(amount, self.totals), self.medians)

    def limit_ms(self, name: str) -> Limit:
        """Return the limit as a duration in milliseconds."""
        return Limit(name, tuple(total * 1e3 for total in self.totals), self.medians)
