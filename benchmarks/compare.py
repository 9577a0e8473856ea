"""Two runs side by side: ratio of medians with its spread, and a verdict only where there can be one.

A figure differs when the ranges (lowest to highest round) of the two runs are apart, when there were
enough rounds for that not to be luck, and when its ratio to the limit of its own run differs the same
way: a figure that moved together with the limit tells of the machine, not of the program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Figure, Spread

CHANCE_MAX = 0.01
"""The ranges of n and m samples of the same thing are apart with chance 2 / C(n + m, n): 5 and 5 rounds do."""

NO_DIFFERENCE = "no difference seen"


@dataclass(frozen=True, slots=True)
class RatioOfMedians:
    """The second run's median over the first's, and the range the ratio of single rounds can have."""

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
    """``better``, ``worse`` or why neither can be said of the second run's figure."""
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
    """1 when all of ``second`` lies above ``first``, -1 when below, 0 when the ranges overlap."""
    if min(second) > max(first):
        return 1
    return -1 if max(second) < min(first) else 0


def _over(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 1.0
