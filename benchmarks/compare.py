"""Compares two runs: ratio of medians with its spread, and a verdict where the samples allow one.

A figure differs if the ranges (lowest to highest round) of the two runs do not overlap, if there were enough rounds
for this not to be chance, and if its ratio to the limit of its own run differs in the same direction. A figure that
moved together with the limit says something about the machine, not about the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Figure, Spread

CHANCE_MAX = 0.01
"""Highest accepted probability of a chance difference. The ranges of n and m samples from the same distribution do not
overlap with probability 2 / C(n + m, n); 5 and 5 rounds are enough."""

NO_DIFFERENCE = "no difference seen"


@dataclass(frozen=True, slots=True)
class RatioOfMedians:
    """The second run's median divided by the first's, and the possible range of that ratio for single rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Spread, second: Spread) -> RatioOfMedians:
        """Compare two spreads."""
        return cls(_over(second.median, first.median), _over(second.low, first.high), _over(second.high, first.low))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure in both runs."""

    suite: str
    name: str
    unit: str
    first: Spread
    second: Spread
    ratio: RatioOfMedians
    against_limit: RatioOfMedians | None
    verdict: str


def compare_figures(first: Mapping[str, Sequence[Figure]], second: Mapping[str, Sequence[Figure]]) -> list[Comparison]:
    """Compare all figures that both runs have, suite by suite."""
    found = []
    for suite, figures in first.items():
        others = {figure.name: figure for figure in second.get(suite, ())}
        found += [_compare(suite, mine, others[mine.name]) for mine in figures if mine.name in others]
    return found


def verdict_on(first: Figure, second: Figure) -> str:
    """Return ``better`` or ``worse`` for the second run's figure, or why neither can be said."""
    direction = _direction(first.samples, second.samples)
    if direction == 0:
        return NO_DIFFERENCE
    count_first, count_second = len(first.samples), len(second.samples)
    if 2 / math.comb(count_first + count_second, count_first) > CHANCE_MAX:
        return f"{NO_DIFFERENCE} beyond chance: {count_first} and {count_second} rounds are too few to tell"
    better = direction > 0 if second.better == "higher" else direction < 0
    if first.ratios and second.ratios and _direction(first.ratios, second.ratios) != (1 if better else -1):
        return f"{NO_DIFFERENCE}: the limit moved along"
    return "better" if better else "worse"


def _compare(suite: str, first: Figure, second: Figure) -> Comparison:
    against_limit = None
    if first.ratios and second.ratios:
        against_limit = RatioOfMedians.of(Spread.of(first.ratios), Spread.of(second.ratios))
    ratio = RatioOfMedians.of(first.spread, second.spread)
    return Comparison(
        suite, first.name, first.unit, first.spread, second.spread, ratio, against_limit, verdict_on(first, second)
    )


def _direction(first: Sequence[float], second: Sequence[float]) -> int:
    """Return 1 if all of ``second`` is above ``first``, -1 if all is below, 0 if the ranges overlap."""
    if min(second) > max(first):
        return 1
    return -1 if max(second) < min(first) else 0


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 1.0
