"""What runs in a sandbox and within which limits; the state of a warm function."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one call.

    Attributes:
        memory_bytes: address space beyond that of the imported function.
        cpu_s: processor time of all its threads, in seconds.
        wall_s: time from request to result, in seconds.
        threads: threads at the same time, including the main one.
        disk_bytes: files in its private directory, which is in memory.
        open_files: open descriptors.
        output_bytes: standard output and standard error together; the rest is dropped.
        result_bytes: size of the result.
    """

    memory_bytes: int = 256 << 20
    cpu_s: float = 10.0
    wall_s: float = 30.0
    threads: int = 32
    disk_bytes: int = 64 << 20
    open_files: int = 64
    output_bytes: int = 1 << 20
    result_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Keep:
    """How long a process serves calls of one owner, one after another.

    Attributes:
        calls: the most calls it serves.
        seconds: the longest time from the beginning of its first call to the beginning of its last.
    """

    calls: int
    seconds: float

    def within(self, most: Keep) -> Keep:
        """Return these bounds, each at most the one in ``most``."""
        return Keep(min(self.calls, most.calls), min(self.seconds, most.seconds))


@dataclass(frozen=True, slots=True)
class FunctionImage:
    """One version of a function.

    Attributes:
        key: hash of its bundle; there is one sandbox for each key.
        root: the bundle's directory, below the host's directory of bundles.
        document: bytes for the program inside the sandbox; opaque to the host.
        limits: limits of each call.
        keep: how long a process serves its owner; None: each call has a process of its own.
        lean: whether the function uses few of the modules that can be preloaded, so that it is forked from the lean
            base process. If this is wrong, it takes longer until the function is warm.
    """

    key: str
    root: Path
    document: bytes
    limits: Limits = field(default_factory=Limits)
    keep: Keep | None = None
    lean: bool = False


@dataclass(frozen=True, slots=True)
class WarmView:
    """The state of one warm function.

    Attributes:
        key: key of its image.
        pids: process ids of its init and its zygote, on this machine.
        running: calls under way.
        prewarmed_processes: processes forked ahead of calls.
        kept: processes that wait for their owner's next call.
        pss_bytes: memory of init and zygote as proportional set size: shared pages are divided by their users.
        started: when it was started, in seconds since 1970.
        used: when a call last took a process, in seconds since 1970.
    """

    key: str
    pids: tuple[int, ...]
    running: int
    prewarmed_processes: int
    kept: int
    pss_bytes: int
    started: float
    used: float
