"""The parameters of every suite: where to work, how much to do, and how to report progress."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.limits import PhysicalLimits
from benchmarks.measure import GIB, MIB, PartTimes
from benchmarks.progress import RunProgress


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each suite does. The acceptance targets are stated for the defaults."""

    rounds: int = 5
    file_bytes: int = GIB
    memory_file_bytes: int = 4 * GIB
    server_pushes: int = 8
    server_push_bytes: int = GIB
    repair_bytes: int = GIB // 2
    small_pushes: int = 500
    small_threaded_pushes: int = 4000
    small_gets: int = 5000
    pool_small_files: int = 500
    pool_small_seconds: float = 2.0
    plain_small_writes: int = 2000
    many_files: int = 10_000
    dns_questions: int = 40_000
    cluster_bytes: int = GIB // 4
    s3_bytes: int = 64 * MIB
    cluster_small_pushes: int = 200
    cluster_small_seconds: float = 5.0
    cluster_repairs: int = 3
    egress_requests: int = 200
    cluster_memory_bytes: int = 4 * GIB
    function_calls: int = 500
    function_seconds: float = 5.0
    function_balance_calls: int = 1500
    function_peer_calls: int = 20
    scale_files_few: int = 10_000
    scale_files_many: int = 1_000_000
    scale_operations: int = 200
    sandbox_calls: int = 400
    sandbox_cold_starts: int = 15
    sandbox_functions: int = 100
    folder_files: int = 75_000
    touched_bytes: int = 12 * GIB
    """Memory to touch before the first measurement: the most that a suite has in the page cache."""
    reduced: bool = False
    """Whether sizes are smaller than those of the targets."""


QUICK = Sizes(
    rounds=3,
    file_bytes=128 * MIB,
    memory_file_bytes=256 * MIB,
    server_push_bytes=32 * MIB,
    repair_bytes=64 * MIB,
    small_pushes=100,
    small_threaded_pushes=800,
    small_gets=1000,
    pool_small_files=50,
    pool_small_seconds=0.3,
    plain_small_writes=200,
    many_files=500,
    dns_questions=8_000,
    cluster_bytes=32 * MIB,
    s3_bytes=16 * MIB,
    cluster_small_pushes=40,
    cluster_small_seconds=0.5,
    cluster_repairs=1,
    egress_requests=60,
    cluster_memory_bytes=64 * MIB,
    function_calls=100,
    function_seconds=2.0,
    function_balance_calls=500,
    function_peer_calls=5,
    scale_files_few=2_000,
    scale_files_many=10_000,
    scale_operations=50,
    sandbox_calls=100,
    sandbox_cold_starts=5,
    sandbox_functions=20,
    folder_files=3_000,
    touched_bytes=GIB,
    reduced=True,
)


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the benchmarks.

    Attributes:
        directory: scratch space on the measured file system.
        sizes: how much to do.
        progress: where to report progress.
        peers: whether to measure other tools as well.
        keep: whether to keep the stores of the scale suite, and to reuse those of an earlier run.
        ray: an interpreter that has Ray, for comparison with functions; None: there is none.
        before: a directory with another version of this repository, to be compared with in the same rounds, where a
            suite can; None: there is none.
    """

    directory: Path
    sizes: Sizes
    progress: RunProgress
    peers: bool = False
    keep: bool = False
    ray: str | None = None
    before: Path | None = None

    @property
    def limits(self) -> PhysicalLimits:
        """The physical limits on this session's file system."""
        return PhysicalLimits(self.directory)

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Make a fresh directory, and remove it afterwards."""
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def rounds(self, text: str) -> Iterator[int]:
        """Yield the numbers of a measurement's rounds, showing progress. Each round starts with an idle disk."""
        with self.progress.counted(text, self.sizes.rounds) as counter:
            for number in range(self.sizes.rounds):
                settle()
                yield number
                counter.advance()


def settle() -> None:
    """Let the kernel finish writing the data of earlier steps, so that it does not slow down the next one."""
    os.sync()


def sampled(parts: Callable[[], Mapping[str, float]], into: list[Mapping[str, float]]) -> None:
    """Measure a limit once, with an idle disk, and append its parts to ``into``."""
    settle()
    into.append(parts())


def times(samples: list[Mapping[str, float]]) -> PartTimes:
    """Combine the parts of all rounds."""
    return PartTimes(tuple(samples))


def human_size(byte_count: int) -> str:
    """Format a size as a multiple of the largest unit that divides it: ``1 GiB``, ``128 MiB``, ``4 KiB``."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", 1024)):
        if byte_count >= size and byte_count % size == 0:
            return f"{byte_count // size} {unit}"
    return f"{byte_count:,} B"
