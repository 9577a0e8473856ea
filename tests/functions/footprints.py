"""What processes hold, early and late in a long run: it must not grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from taskworker.sandbox.inside.init import SCRATCH

GROWTH_MAX = 0.10
GROWTH_BYTES_MAX = 6 << 20
"""What an allocator may keep beyond what is in use, besides."""
DESCRIPTORS_MORE = 8
"""Such as connections that callers have not closed yet."""
THREADS_MORE = 16
"""Threads that serve calls are started as they are needed, and stay."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process holds: anonymous memory in bytes, descriptors, threads, processes below it, mounts in those."""

    anonymous: int
    descriptors: int
    threads: int
    processes: int
    mounts: int

    @classmethod
    def of(cls, process: psutil.Process) -> Footprint:
        below = process.children(recursive=True)
        return cls(
            _anonymous(process.pid),
            process.num_fds(),
            process.num_threads(),
            len(below),
            max((_private_mounts(one.pid) for one in below), default=0),
        )


def grown(early: Mapping[str, Footprint], late: Mapping[str, Footprint]) -> Iterator[str]:
    """What there is late, beyond what there was early, by the names of processes, both times at rest."""
    for name, now in late.items():
        before = early[name]
        if now.anonymous > before.anonymous * (1 + GROWTH_MAX) + GROWTH_BYTES_MAX:
            yield f"{name} grew from {before.anonymous:,} to {now.anonymous:,} bytes"
        if now.descriptors > before.descriptors + DESCRIPTORS_MORE:
            yield f"{name} has {now.descriptors} descriptors, had {before.descriptors}"
        if now.threads > before.threads + THREADS_MORE:
            yield f"{name} has {now.threads} threads, had {before.threads}"
        if now.processes > before.processes:
            yield f"{name} has {now.processes} processes below it, had {before.processes}"
        if now.mounts > 1:
            yield f"a function of {name} has {now.mounts} directories for scratch files mounted"


def _anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _private_mounts(pid: int) -> int:
    """How many directories for scratch files a function's init has mounted: one, while it makes a call's root."""
    try:
        return sum(line.split()[4] == SCRATCH for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines())
    except OSError:
        return 0
