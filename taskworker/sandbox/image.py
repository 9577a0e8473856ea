"""What is to run in a sandbox, within which limits, and what a sandbox is doing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take.

    Attributes:
        memory_bytes: address space beyond what the imported function has.
        cpu_s: processor time of all its threads, in seconds.
        wall_s: time from request to result, in seconds.
        threads: at once, the main one included.
        disk_bytes: in its private directory, which is in memory.
        open_files: descriptors.
        output_bytes: of standard output and error together; the rest is dropped.
        result_bytes: of the result.
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
    """How long a process goes on serving calls of one owner, one after another.

    Attributes:
        calls: at most.
        seconds: from its first call to the beginning of its last, at most.
    """

    calls: int
    seconds: float

    def within(self, most: Keep) -> Keep:
        """As long, but no longer than that."""
        return Keep(min(self.calls, most.calls), min(self.seconds, most.seconds))


@dataclass(frozen=True, slots=True)
class FunctionImage:
    """One version of a function.

    Attributes:
        key: hash of its bundle; there is one sandbox per key.
        root: the bundle's directory, below the host's bundles directory.
        document: handed to the program inside, opaque to the sandbox.
        limits: of each call.
        keep: None: each call has a process of its own.
        lean: whether it uses little of what is loaded ahead; if that is wrong, it takes longer to be warm.
    """

    key: str
    root: Path
    document: bytes
    limits: Limits = field(default_factory=Limits)
    keep: Keep | None = None
    lean: bool = False


@dataclass(frozen=True, slots=True)
class WarmView:
    """One warm function, as seen from outside.

    Attributes:
        key: the image's.
        pids: of its init and its zygote, on this machine.
        running: calls under way.
        prewarmed_processes: processes forked ahead.
        kept: processes that wait for the next call of whom they served.
        pss_bytes: memory of init and zygote, shared pages counted by their share.
        started: when, in seconds since the epoch.
        used: when a call last began, likewise.
    """

    key: str
    pids: tuple[int, ...]
    running: int
    prewarmed_processes: int
    kept: int
    pss_bytes: int
    started: float
    used: float
