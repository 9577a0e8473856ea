"""Snapshots of a folder with many files, beside restic and borg: first, unchanged, one file changed, restored.

Each tool is run by its command line, as users run it, with an empty cache of its own for the first snapshot. Ours keeps
four of six shards of everything, theirs keep one copy. restic encrypts and compresses, borg compresses, ours neither.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import MEGABYTE, MIB, Figure, Limit, SuiteResult, Target
from benchmarks.session import Session, settle

OURS, RESTIC, BORG = "taskworker", "restic", "borg"
STEPS = ("first snapshot", "unchanged", "one file changed", "restore")
PRUNE = "forget and free"
BOUNDS: Mapping[str, float] = {"first snapshot": 1.0, "unchanged": 0.3, "one file changed": 0.3, "restore": 1.0}
MEMORY_BOUND = 0.5
MARK = "c"
FILES_IN_DIRECTORY = 15  # as in a source tree of Linux
TYPICAL_BYTES = 6000
LARGE_EVERY = 3000
LARGE_BYTES = 100 * MIB
LINKED_SHARE = 0.05  # of directories that have a symbolic link, or another name of a file
SEED = 20
POLL_S = 0.005
PASSWORD = "benchmark"  # restic requires one


@dataclass(slots=True)
class Samples:
    """Measurements by round, of each tool."""

    seconds: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    memory_mb: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Tool:
    """A tool that takes snapshots, by its command line.

    Args:
        name: which one.
        home: directory of its repository and its cache.
        tree: the folder.
    """

    def __init__(self, name: str, home: Path, tree: Path) -> None:
        self.name = name
        self._home = home
        self._tree = tree
        # Installed programs have .pyc files; without them, ours starts twice as slowly.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._environment = inherited | {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "RESTIC_REPOSITORY": str(home / "repository"),
            "RESTIC_PASSWORD": PASSWORD,
            "BORG_BASE_DIR": str(home),
            "BORG_REPO": str(home / "repository"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "TASKWORKER_STORE": str(home / "repository"),
            "TASKWORKER_USER": "benchmark",
        }
        home.mkdir()
        for command in {RESTIC: [["restic", "init"]], BORG: [["borg", "init", "-e", "none"]]}.get(name, []):
            self._run(command)

    def take(self) -> float:
        """Take a snapshot; returns seconds."""
        commands = {
            OURS: [*_program(), "folder", "snapshot", str(self._tree), "--name", "tree"],
            RESTIC: ["restic", "backup", "--quiet", str(self._tree)],
            BORG: ["borg", "create", f"::{time.time_ns()}", str(self._tree)],
        }
        return self._run(commands[self.name])[0]

    def restore(self, target: Path) -> float:
        """Restore the newest snapshot; returns seconds."""
        target.mkdir()
        newest = "" if self.name != BORG else self._output(["borg", "list", "--last", "1", "--format", "{archive}"])
        commands = {
            OURS: [*_program(), "folder", "restore", "tree", "-o", str(target)],
            RESTIC: ["restic", "restore", "latest", "--quiet", "--target", str(target)],
            BORG: ["borg", "extract", f"::{newest}"],
        }
        return self._run(commands[self.name], directory=target)[0]

    def prune(self) -> tuple[float, float]:
        """Forget all snapshots but the newest, and free their space; returns seconds, and peak memory in MB."""
        commands = {
            OURS: [
                [*_program(), "folder", "forget", "tree", "--keep-last", "1"],
                [*_program(), "collect", "--grace", "0"],
            ],
            RESTIC: [["restic", "forget", "--quiet", "--keep-last", "1", "--prune"]],
            BORG: [["borg", "prune", "--keep-last", "1"], ["borg", "compact"]],
        }
        measured = [self._run(command) for command in commands[self.name]]
        return sum(seconds for seconds, _ in measured), max(memory for _, memory in measured)

    def _run(self, command: Sequence[str], directory: Path | None = None) -> tuple[float, float]:
        """Run a command; returns seconds and its peak memory in MB."""
        started = time.perf_counter()
        memory_mb = 0.0
        with subprocess.Popen(
            command, cwd=directory or self._home, env=self._environment, stdout=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:  # what wait4 says of memory includes that of this process before the exec
                memory_mb = max(memory_mb, _peak_memory_mb(process.pid))
                time.sleep(POLL_S)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        return time.perf_counter() - started, memory_mb

    def _output(self, command: Sequence[str]) -> str:
        return subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout.strip()


def run(session: Session) -> SuiteResult:
    """Measure all tools that are installed, in turn."""
    names = [OURS, *(name for name in (RESTIC, BORG) if shutil.which(name) is not None)]
    samples = Samples()
    with session.scratch("folders") as root:
        session.progress.step(f"making a tree of {session.sizes.folder_files:,} files")
        tree = root / "tree"
        size = make_tree(tree, session.sizes.folder_files)
        for number in session.rounds("snapshots of a folder"):
            for name in (*names[number % len(names) :], *names[: number % len(names)]):
                home = root / name
                _measure(Tool(name, home, tree), tree, root / "restored", samples)
                shutil.rmtree(home)
    return _result(session, names, samples, size)


def _measure(tool: Tool, tree: Path, target: Path, samples: Samples) -> None:
    def add(step: str, seconds: float) -> None:
        samples.seconds[tool.name, step].append(seconds)
        settle()

    settle()
    add(STEPS[0], tool.take())
    add(STEPS[1], tool.take())
    changed = tree / "0" / "1"
    changed.write_bytes(os.urandom(TYPICAL_BYTES))
    add(STEPS[2], tool.take())
    add(STEPS[3], tool.restore(target))
    restored = target if tool.name == OURS else target / tree.relative_to("/")
    subprocess.run(["diff", "-r", "--no-dereference", tree, restored], check=True)
    if tool.name == OURS and attributes(restored) != attributes(tree):
        raise AssertionError("modes, times or links were not restored as they were")
    shutil.rmtree(target)
    seconds, memory = tool.prune()
    add(PRUNE, seconds)
    samples.memory_mb[tool.name].append(memory)


def make_tree(tree: Path, count: int) -> int:
    """Make a tree of files with sizes as in a source tree, and a few large ones; returns their bytes.

    Some files are executable or read-only, some directories have a symbolic link or another name of a file. All have
    times of the past.
    """
    chance = random.Random(SEED)
    size = 0
    for number in range(count):
        directory = tree / str(number // FILES_IN_DIRECTORY)
        directory.mkdir(parents=True, exist_ok=True)
        length = int(chance.lognormvariate(0, 1.5) * TYPICAL_BYTES)
        if number % LARGE_EVERY == LARGE_EVERY - 1:
            length = LARGE_BYTES
        file = directory / str(number)
        file.write_bytes(chance.randbytes(length))
        size += length
        if number % FILES_IN_DIRECTORY == 0:
            _add_links(directory, file, chance)
        file.chmod(chance.choices((0o644, 0o755, 0o444, 0o600), (90, 6, 2, 2))[0])
        _date(file, chance)
    for directory in (*tree.iterdir(), tree):
        _date(directory, chance)
    return size


def _add_links(directory: Path, file: Path, chance: random.Random) -> None:
    if chance.random() < LINKED_SHARE:
        link = directory / "link"
        link.symlink_to(file.name)
        _date(link, chance)
    if chance.random() < LINKED_SHARE:
        (directory / "名字").hardlink_to(file)


def _date(path: Path, chance: random.Random) -> None:
    time_ns = chance.randrange(1_000_000_000, 1_700_000_000) * 1_000_000_000 + chance.randrange(1_000_000_000)
    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def attributes(tree: Path) -> dict[str, tuple[object, ...]]:
    """Mode, time of change, target and group of hard links of all in a tree, by path."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for path in (tree, *sorted(tree.rglob("*"))):
        status, name = path.lstat(), str(path.relative_to(tree))
        target = os.readlink(path) if path.is_symlink() else ""
        is_linked = status.st_nlink > 1 and path.is_file() and not target
        group = groups.setdefault(status.st_ino, name) if is_linked else ""
        found[name] = (status.st_mode, status.st_mtime_ns, target, group)
    return found


def _peak_memory_mb(pid: int) -> float:
    """The most memory that a process has had so far; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 / MEGABYTE if found else 0.0


def _program() -> list[str]:
    return [sys.executable, "-m", "taskworker"]


def _result(session: Session, names: Sequence[str], samples: Samples, size: int) -> SuiteResult:
    figures: list[Figure] = []
    targets: list[Target] = []
    reduced = session.sizes.reduced
    for step in (*STEPS, PRUNE):
        limit = Limit(RESTIC, tuple(samples.seconds[RESTIC, step])) if RESTIC in names else None
        for name in names:
            taken = tuple(samples.seconds[name, step])
            figures.append(Figure(f"{step}, {name}", "s", taken, "lower", limit if name == OURS else None))
        if limit is not None and step in BOUNDS:
            ratios = tuple(one / other for one, other in zip(samples.seconds[OURS, step], limit.samples, strict=True))
            targets.append(
                Target(
                    MARK, f"{step}, time / restic's", "at most", BOUNDS[step], "x", ratios, f"{step}, {OURS}", reduced
                )
            )
    figures += [
        Figure(f"{PRUNE}, peak memory, {name}", "MB", tuple(samples.memory_mb[name]), "lower") for name in names
    ]
    if RESTIC in names:
        ratios = tuple(
            one / other for one, other in zip(samples.memory_mb[OURS], samples.memory_mb[RESTIC], strict=True)
        )
        text = f"{PRUNE}, peak memory / restic's"
        figure = f"{PRUNE}, peak memory, {OURS}"
        targets.append(Target(MARK, text, "at most", MEMORY_BOUND, "x", ratios, figure, reduced))
    remarks = (
        f"{session.sizes.folder_files:,} files, {size / MEGABYTE:,.0f} MB of random bytes. Restored trees were "
        "compared with `diff -r`, and ours also in modes, times and links.",
        "Not installed: " + ", ".join({RESTIC, BORG} - {*names}) if len(names) < 3 else "All tools are installed.",
    )
    return SuiteResult("folders", tuple(figures), tuple(targets), remarks)
