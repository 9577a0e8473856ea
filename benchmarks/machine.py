"""The machine on which the figures are measured."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

LIBRARIES = ("blake3", "zfec", "lmdb", "pyeclib", "cffi", "grpcio", "protobuf")
TOUCH_BYTES = 64 << 20
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@dataclass(frozen=True, slots=True)
class Machine:
    """Description of the machine, its software, and the file system of the stores."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    file_system: str
    python: str
    libraries: dict[str, str]
    accelerator: str
    commit: str
    load_at_start: float

    def as_json(self) -> dict[str, object]:
        """Return plain values for a JSON report."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the description as short lines of text."""
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        return [
            f"{self.cpu}, {self.cores} cores, {self.memory_bytes / (1 << 30):.1f} GiB memory",
            f"kernel {self.kernel}; stores on {self.file_system}",
            f"Python {self.python}; {libraries}",
            f"erasure code computed by {self.accelerator}; commit {self.commit}; "
            f"load average {self.load_at_start:.2f} at start",
        ]


def describe(directory: Path) -> Machine:
    """Describe this machine and the file system of ``directory``."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        file_system=file_system(directory),
        python=platform.python_version(),
        libraries=_library_versions(),
        accelerator=_accelerator(),
        commit=_commit(),
        load_at_start=os.getloadavg()[0],
    )


def file_system(directory: Path) -> str:
    """Return the type of the file system of ``directory``, as the kernel names it."""
    real = directory.resolve()
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        mount_point = Path(left.split()[4].encode().decode("unicode_escape"))
        if real.is_relative_to(mount_point) and len(mount_point.parts) >= len(best.parts):
            best, kind = mount_point, right.split()[0]
    return kind


def in_memory(directory: Path) -> bool:
    """Whether ``directory`` is on a file system in memory, where fsync costs nothing."""
    return file_system(directory) in MEMORY_FILE_SYSTEMS


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Processor time since the machine started, in seconds: of all processes, and of this one with its children."""

    busy: float
    own: float
    total: float

    @classmethod
    def now(cls) -> ProcessorTimes:
        """Read the kernel's counters. Children count once they have ended."""
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        idle = ticks[3] + ticks[4]
        mine = os.times()
        own = mine.user + mine.system + mine.children_user + mine.children_system
        return cls(sum(ticks) - idle, own, sum(ticks))

    def share_of_others(self, later: ProcessorTimes) -> float:
        """Return the fraction of processor time that other processes used between this moment and ``later``."""
        total = later.total - self.total
        return max(0.0, (later.busy - self.busy - (later.own - self.own)) / total) if total else 0.0


def available_memory() -> int:
    """Return how many bytes of memory are available without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 0


def touch_memory(byte_count: int) -> None:
    """Touch this much memory once, and release it.

    The host of a virtual machine provides memory when it is first touched, at about 0.5 GB/s where this was measured.
    This includes the page cache for writes, so that without touching, the disk seems five times slower than it is.
    """
    held = [
        mmap.mmap(-1, TOUCH_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
        for _ in range(byte_count // TOUCH_BYTES)
    ]
    for block in held:
        block.close()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _accelerator() -> str:
    from storage.erasure import ErasureProfile, accelerator_name

    return accelerator_name(ErasureProfile())


def _commit() -> str:
    root = Path(__file__).resolve().parent
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with local changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
