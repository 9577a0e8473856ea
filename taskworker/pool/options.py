"""The options that a pool is run with, and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from taskworker.pool.background.auditing import AUDIT_BYTES_PER_S
from taskworker.pool.background.collecting import COLLECT_EVERY_S

_CAPACITY_MAX = 1 << 50


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool is run.

    Attributes:
        lease_s: how long a worker's heartbeat counts.
        grace_s: how long a silent worker keeps its part in the layout, and is waited for before its shards are made
            again on the others.
        margin: what has fewer shards left than this many more than it needs does not wait for that.
        allow_fragile: take files that the loss of one worker would make unreadable, too.
        tranquility: while users are at work, how long background work rests after each object, in
            multiples of the time that it took. 0 mends as fast as can be.
        collect_every_s: how often the space of what no file needs is freed; 0: only when told.
        capacity_max: in bytes, the most that a worker's word about its own capacity counts.
        audit_bytes_per_s: how fast shards chosen at random are fetched from the workers and verified; 0: not at all.
        rebuild: id of a pool whose directory is lost: a new pool takes its place, and takes no calls of users
            until its catalog was made again from what the workers hold (:meth:`storage.FileStorage.rebuild`).
    """

    lease_s: float = 3.0
    grace_s: float = 30.0
    margin: int = 1
    allow_fragile: bool = False
    tranquility: float = 4.0
    collect_every_s: float = COLLECT_EVERY_S
    capacity_max: int = _CAPACITY_MAX
    audit_bytes_per_s: int = AUDIT_BYTES_PER_S
    rebuild: str = ""
