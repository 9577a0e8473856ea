"""What was measured: how long operations took, and how many there were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """What this machine does at best, measured in the same run.

    Attributes:
        what: what was measured.
        seconds: of one operation by one caller, the median.
    """

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One kind of operation with one number of callers.

    Attributes:
        operation: put, get or call.
        size: bytes of each file; None for calls.
        callers: how many worked at the same time.
        count: operations that ended well.
        failed: operations that did not.
        median_s: half of the operations took at most this, s.
        p90_s: nine of ten did.
        p99_s: 99 of 100 did.
        slowest_s: all did.
        per_s: operations in a second, of all callers together.
        bytes_per_s: bytes in a second; None for calls.
        limit: what could be reached at best; None if nothing could be measured.
        of_limit: the limit's seconds over the median; None without a limit.
        error: what the first that failed said; empty if none did.
    """

    operation: str
    size: int | None
    callers: int
    count: int
    failed: int
    median_s: float | None
    p90_s: float | None
    p99_s: float | None
    slowest_s: float | None
    per_s: float
    bytes_per_s: float | None
    limit: Limit | None
    of_limit: float | None
    error: str


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """The smallest of the values that at least this part of them does not exceed; None if there are none.

    Args:
        ordered: the values, the smallest first.
        part: from 0 to 1.
    """
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else None


def figures(
    operation: str,
    size: int | None,
    callers: int,
    durations_s: Sequence[float],
    wall_s: float,
    limit: Limit | None,
    failures: Sequence[str] = (),
) -> Figures:
    """The figures of operations that were measured.

    Args:
        operation: put, get or call.
        size: bytes of each file; None for calls.
        callers: how many worked at the same time.
        durations_s: seconds of each operation that ended well.
        wall_s: seconds from the first one's start to the last one's end.
        limit: what could be reached at best.
        failures: what the others said.
    """
    ordered = sorted(durations_s)
    median_s = percentile(ordered, 0.5)
    per_s = len(ordered) / wall_s if wall_s > 0 else 0.0
    return Figures(
        operation,
        size,
        callers,
        len(ordered),
        len(failures),
        median_s,
        percentile(ordered, 0.9),
        percentile(ordered, 0.99),
        ordered[-1] if ordered else None,
        per_s,
        None if size is None else per_s * size,
        limit,
        None if limit is None or not median_s else limit.seconds / median_s,
        failures[0] if failures else "",
    )
