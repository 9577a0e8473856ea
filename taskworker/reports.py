"""What a pool tells of itself, the same for the pool, its services and its clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """A piece of background work for people.

    Attributes:
        name: repair, rebalance, heal, scrub, collect or audit.
        state: idle, waiting, running or failed.
        done: how much of ``total`` is done, in ``unit``.
        total: 0 if unknown, or nothing is to be done.
        note: what it is at, or what came of it last.
        seconds_left: None where it cannot be told.
        next_ms: when it is begun, or tried, next; 0: when there is something to do.
        queue: objects found that wait.
        errors: tries in a row that failed, up to now.
        error: what went wrong in the last one.
        ended_ms: when it last came to its end; 0: never.
        unit: what is counted: objects, bytes or steps.
        bytes_per_s: how fast it reads; 0 if that is not measured.
    """

    name: str
    state: str
    done: int = 0
    total: int = 0
    note: str = ""
    seconds_left: float | None = None
    next_ms: int = 0
    queue: int = 0
    errors: int = 0
    error: str = ""
    ended_ms: int = 0
    unit: str = "objects"
    bytes_per_s: float = 0.0
