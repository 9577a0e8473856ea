"""Scrubbing: workers verify the shards they hold; this module sums up their reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskworker.pool.membership import WorkerLoad
from taskworker.reports import WorkStatus

SCRUB = "scrub"


class Scrubs:
    """Shows the workers' scrubs as background work (a ``ShownWork``).

    Args:
        loads: returns the loads that the present workers reported.
    """

    def __init__(self, loads: Callable[[], Sequence[WorkerLoad]]) -> None:
        self._loads = loads

    def views(self) -> list[WorkStatus]:
        """The status of all scrubs, summed up."""
        return [scrub_view(self._loads())]


def scrub_view(loads: Sequence[WorkerLoad]) -> WorkStatus:
    """The scrubs of all present workers as one piece of work.

    Its last end is the earliest of the workers' last ends: everything written before it has been verified.
    """
    running = [load for load in loads if load.scrub_total]
    done, total = sum(load.scrub_done for load in running), sum(load.scrub_total for load in running)
    rate = sum(load.scrub_bytes_per_s for load in running)
    rated = [load for load in running if load.scrub_bytes_per_s]
    left_s = [(load.scrub_total - load.scrub_done) / load.scrub_bytes_per_s for load in rated]
    errors = sum(load.scrub_errors for load in loads)
    ends = [load.scrub_ended_ms for load in loads]
    planned = [load.scrub_next_ms for load in loads if load.scrub_next_ms]
    return WorkStatus(
        SCRUB,
        "running" if running else "idle",
        done,
        total,
        _note(loads, len(running)),
        max(left_s, default=-1.0) if len(left_s) == len(running) else -1.0,
        min(planned, default=0),
        errors=errors,
        error="some volumes could not be verified; see the workers' logs" if errors else "",
        ended_ms=min(ends, default=0),
        unit="bytes",
        bytes_per_s=rate,
    )


def _note(loads: Sequence[WorkerLoad], running: int) -> str:
    rotten = sum(load.rotten for load in loads)
    verified = sum(load.scrub_ended_ms > 0 for load in loads)
    parts = [f"{running} of {len(loads)} workers are scrubbing"] if running else []
    parts.append(f"{verified} of {len(loads)} have verified all they hold" if loads else "no worker is connected")
    if rotten:
        parts.append(f"{rotten:,} rotten shards found since they started")
    return "; ".join(parts)
