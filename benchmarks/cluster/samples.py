"""What the cluster suite measures, by round."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks.measure import GIB
from benchmarks.usage import Usage

SMALL_BYTES = 4096
CLIENTS = 8
IDLE_CONNECTIONS = 1000
LOST = 2
LEASE_S = 1.0
TASKS = ("push", "get")


def by_task() -> dict[str, list[float]]:
    """Return an empty list for each of `TASKS`."""
    return {task: [] for task in TASKS}


@dataclass(slots=True)
class Series:
    """Seconds by round for one store: the pool, a limit, or a peer."""

    push: list[float] = field(default_factory=list)
    get: list[float] = field(default_factory=list)
    degraded: list[float] = field(default_factory=list)
    after_kill: list[float] = field(default_factory=list)
    """A single get, right after workers were killed, by a client that was connected to them."""
    small: list[float] = field(default_factory=list)
    repair: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Costs:
    """What a store spends for the bytes of its users: processor seconds for each GiB, and bytes for each byte."""

    cpu: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By group of processes."""
    loopback: list[float] = field(default_factory=list)

    def add(self, usage: Usage, size: int) -> None:
        """Add what was spent for ``size`` bytes."""
        for group, seconds in usage.cpu_s.items():
            self.cpu[group].append(seconds / size * GIB)
        self.loopback.append(usage.loopback_bytes / size)

    @property
    def whole_cpu(self) -> list[float]:
        """Processor seconds of all groups, by round."""
        return [sum(each) for each in zip(*self.cpu.values(), strict=True)]


@dataclass(slots=True)
class Samples:
    """All measurements of the suite."""

    pool: Series = field(default_factory=Series)
    engine: Series = field(default_factory=Series)
    before: Series = field(default_factory=Series)
    """A pool of another version of this repository."""
    started: Series = field(default_factory=Series)
    """A pool as the command starts it: encrypted, with clients that write to the workers themselves."""
    plain: Series = field(default_factory=Series)
    bare: Series = field(default_factory=Series)
    relayed: Series = field(default_factory=Series)
    """The pool, with bytes that pass through it instead of coming from the workers."""
    peers: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    costs: defaultdict[tuple[str, str], Costs] = field(default_factory=lambda: defaultdict(Costs))
    """By store ("pool", "relayed", "started", "plain" or "before") and task ("push" or "get")."""
    alone: dict[str, list[float]] = field(default_factory=by_task)
    together: dict[str, list[float]] = field(default_factory=by_task)
    quiet: dict[str, list[float]] = field(default_factory=by_task)
    beside: dict[str, list[float]] = field(default_factory=by_task)
    """Seconds in a quiet pool (``quiet``), and while shards are moved off a worker (``beside``)."""
    verifying: dict[str, list[float]] = field(default_factory=lambda: {"repair": [], "move": []})
    trusting: dict[str, list[float]] = field(default_factory=lambda: {"repair": [], "move": []})
    """Seconds to repair a loss and to drain a worker, with reading back what was written, and without."""
    kill_to_whole: list[float] = field(default_factory=list)
    p99_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """99th percentile of small gets: in an "idle" pool, while it is "loaded" by clients, and with one worker "stopped".

    Also that of a bare server's calls at the same times: "bare idle" and "bare loaded".
    """
    peaks: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Peak memory in MiB, at the end and before the first byte."""
