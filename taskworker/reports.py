"""Reports of a pool's state, shared by the pool, its services and its clients."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkStatus:
    """The status of one kind of background work.

    Attributes:
        name: repair, rebalance, heal, scrub, collect, audit or encrypt.
        state: idle, waiting, running or failed.
        done: how much of ``total`` is done, in ``unit``.
        total: 0 if unknown, or if there is nothing to do.
        note: what it is doing, or the outcome of the last run.
        seconds_left: estimated seconds left; None if unknown.
        next_ms: when it runs or is retried next; 0: as soon as there is something to do.
        queue: objects that were found and wait.
        errors: consecutive failed attempts up to now.
        error: what went wrong in the last attempt.
        ended_ms: when it last finished; 0: never.
        unit: the unit of ``done`` and ``total``: objects, bytes, steps or files.
        bytes_per_s: its read rate; 0 if that is not measured.
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
