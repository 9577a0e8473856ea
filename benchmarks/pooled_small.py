"""Files of 4 KiB through a pool: rates, percentiles of latency and costs, with 1, 16 and 64 callers.

Callers are threads of one client process. Plain sockets, bare gRPC calls and SeaweedFS are measured in the same rounds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.callers import Callers, Latencies, Operation, Stored
from benchmarks.cluster_peers import seaweed_fs
from benchmarks.cluster_processes import Cluster
from benchmarks.measure import Figure, Limit, Target, rate
from benchmarks.peer_processes import PeerFailed
from benchmarks.plain_sockets import PlainSockets
from benchmarks.processes import ServerProcess, started_together
from benchmarks.seaweed import SeaweedFS
from benchmarks.session import Session, settle
from benchmarks.usage import Meter, Usage

CALLERS = (1, 16, 64)
WEB_CALLERS = (1, 16)
"""With how many callers SeaweedFS is measured."""
COUNTED_CALLERS = (1, 16)
"""With how many callers the costs of a pool are counted."""
OPERATIONS: tuple[Operation, ...] = ("push", "get")
GROUPS = ("client", "pool", "workers")
PUSH_PLAIN_MIN = 0.225
"""450 pushes a second where plain sockets make 2,000 writes."""
PUSH_WEB_MIN = 1.0
GET_BARE_MIN = {1: 0.6, 16: 0.7}
MANY_MIN: dict[Operation, float] = {"push": 3000, "get": 6000}
MARK = "b"
WRITE_LIMIT = "plain sockets: 1 KiB to each of six sinks that write and fdatasync, one write after another"
READS = "1 KiB from each of four sinks at once"
READ_LIMIT = f"plain sockets: {READS}, one read after another"
CALL_LIMIT = "bare gRPC: unary calls with answers of 4 KiB, by as many callers"
RATE, LATENCY, COSTS = "rate", "latency", "costs"


@dataclass(slots=True)
class PooledSamples:
    """Measurements by round."""

    measured: defaultdict[tuple[Stored, Operation, int], list[Latencies]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """By store, operation and number of callers."""
    costs: defaultdict[tuple[Operation, int], list[Usage]] = field(default_factory=lambda: defaultdict(list))
    """Of one operation of the pool, by number of callers."""
    writes: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    """Seconds for the small writes and reads of plain sockets."""
    many: dict[Operation, list[float]] = field(default_factory=lambda: {"push": [], "get": []})
    """Seconds for many files in one call."""
    remarks: list[str] = field(default_factory=list)


def measure(session: Session, samples: PooledSamples) -> None:
    """Measure all rounds."""
    session.progress.step("starting a pool, the plain sockets and a bare server" + (", SeaweedFS" * session.peers))
    with session.scratch("small-pool") as root, ExitStack() as stack:
        pool, plain, bare = Cluster(root / "pool"), PlainSockets(root), ServerProcess("benchmarks.bare_stream", root)
        stack.enter_context(started_together([pool, plain, bare]))
        callers = stack.enter_context(Callers())
        web = _web_store(root, samples) if session.peers else None
        addresses: dict[Stored, str] = {"pool": pool.address, "bare": bare.address}
        if web is not None:
            stack.callback(web.close)
            addresses["web"] = web.address
        for kind in ("pool", "web"):
            if kind in addresses:
                callers.fill(kind, addresses[kind], session.sizes.pool_small_files)
        meter = Meter({"client": [callers.pid], "pool": [pool.pool_pid], "workers": pool.worker_pids})
        for _ in session.rounds("pushes and gets of 4 KiB through a pool"):
            settle()
            samples.writes.append(plain.write_small(session.sizes.plain_small_writes))
            samples.reads.append(plain.read_small(session.sizes.small_gets))
            plain.forget()
            for count in CALLERS:
                _round(session, count, callers, addresses, meter, samples)
            settle()
            samples.many["push"].append(callers.push_many(pool.address, session.sizes.many_files))
            samples.many["get"].append(callers.get_many(pool.address))


def _web_store(root: Path, samples: PooledSamples) -> SeaweedFS | None:
    home = root / "seaweed"
    home.mkdir()
    try:
        return seaweed_fs(home)
    except (PeerFailed, OSError) as error:
        samples.remarks.append(f"SeaweedFS was left out: {error}.")
        return None


def _round(
    session: Session,
    count: int,
    callers: Callers,
    addresses: dict[Stored, str],
    meter: Meter,
    samples: PooledSamples,
) -> None:
    """Measure all stores in turn, with the same number of callers."""
    seconds = session.sizes.pool_small_seconds
    for operation in OPERATIONS:
        for kind, address in addresses.items():
            if (kind == "bare" and operation == "push") or (kind == "web" and count not in WEB_CALLERS):
                continue
            settle()
            told, usage = meter.during(_measurement(callers, kind, operation, address, count, seconds))
            samples.measured[kind, operation, count].append(told)
            if kind == "pool" and count in COUNTED_CALLERS:
                samples.costs[operation, count].append(_each(usage, told))


def _measurement(
    callers: Callers, kind: Stored, operation: Operation, address: str, count: int, seconds: float
) -> Callable[[], Latencies]:
    return lambda: callers.measure(kind, operation, address, count, seconds)


def _each(usage: Usage, told: Latencies) -> Usage:
    """Return what one operation cost."""
    cpu_s = {group: spent / told.count for group, spent in usage.cpu_s.items()}
    return Usage(cpu_s, round(usage.loopback_bytes / told.count))


# -- the outcome -----------------------------------------------------------------------------------


def figures_of(session: Session, samples: PooledSamples) -> list[Figure]:
    """Return all figures."""
    writes = Limit(WRITE_LIMIT, rate(session.sizes.plain_small_writes, samples.writes))
    reads = rate(session.sizes.small_gets, samples.reads)
    figures = [
        Figure("plain sockets: writes of 4 KiB, 1 caller", "/s", writes.samples, chart=RATE),
        Figure("plain sockets: reads of 4 KiB, 1 caller", "/s", reads, note=READS, chart=RATE),
    ]
    for (kind, operation, count), told in sorted(samples.measured.items(), key=_order):
        limits = _limits_of_gets(samples, count) if kind == "pool" and operation == "get" else {}
        if operation == "push":
            limits["rate"] = writes
        name = name_of(kind, operation, count)
        figures.append(Figure(name, "/s", _rates(told), limit=limits.get("rate"), chart=RATE))
        for percentile in ("p50", "p99"):
            latencies = tuple(getattr(one, f"{percentile}_ms") for one in told)
            limit = limits.get(percentile)
            figures.append(Figure(f"{name}, {percentile}", "ms", latencies, "lower", limit, chart=LATENCY))
    for operation, limit in (("push", writes), ("get", Limit(READ_LIMIT, reads))):
        rates = rate(session.sizes.many_files, samples.many[operation])
        figures.append(Figure(_name_of_many(operation), "/s", rates, limit=limit, chart=RATE))
    return figures + _costs(samples)


def _name_of_many(operation: Operation) -> str:
    return f"pool: {operation}_many of files of 4 KiB"


def name_of(kind: Stored, operation: Operation, count: int) -> str:
    """Return the name of the figure with this rate."""
    who = {"pool": "pool", "bare": "bare gRPC", "web": "SeaweedFS"}[kind]
    what = "calls with answers" if kind == "bare" else {"push": "pushes", "get": "gets"}[operation]
    return f"{who}: {what} of 4 KiB, {count} caller{'s' * (count > 1)}"


def targets_of(session: Session, samples: PooledSamples, figures: Sequence[Figure]) -> list[Target]:
    """Return all targets."""
    by_name = {figure.name: figure for figure in figures}
    alone = by_name[name_of("pool", "push", 1)]
    targets = [_target("4 KiB pushes by one caller / plain sockets", PUSH_PLAIN_MIN, alone.ratios, alone)]
    if theirs := samples.measured.get(("web", "push", 16)):
        mine = samples.measured["pool", "push", 16]
        pairs = zip(_rates(mine), _rates(theirs), strict=True)
        faster = [one / other for one, other in pairs]
        targets.append(_target("4 KiB pushes by 16 callers, times those of SeaweedFS", PUSH_WEB_MIN, faster))
    for count, bound in GET_BARE_MIN.items():
        figure = by_name[name_of("pool", "get", count)]
        callers = "one caller" if count == 1 else f"{count} callers"
        targets.append(_target(f"4 KiB gets by {callers} / bare gRPC calls", bound, figure.ratios, figure))
    for operation, bound in MANY_MIN.items():
        figure = by_name[_name_of_many(operation)]
        text = f"{operation}_many of {session.sizes.many_files:,} files of 4 KiB"
        reduced = session.sizes.reduced
        targets.append(Target(MARK, text, "at least", bound, "/s", figure.samples, figure.name, reduced))
    return targets


def _target(text: str, bound: float, ratios: Sequence[float], figure: Figure | None = None) -> Target:
    return Target(MARK, text, "at least", bound, "x", tuple(ratios), figure.name if figure else "")


def _limits_of_gets(samples: PooledSamples, count: int) -> dict[str, Limit]:
    bare = samples.measured["bare", "get", count]
    return {
        "rate": Limit(CALL_LIMIT, _rates(bare)),
        "p50": Limit(CALL_LIMIT, tuple(one.p50_ms for one in bare)),
        "p99": Limit(CALL_LIMIT, tuple(one.p99_ms for one in bare)),
    }


def _costs(samples: PooledSamples) -> list[Figure]:
    """Return the processor time of one operation, and its bytes on loopback."""
    figures = []
    for (operation, count), costs in sorted(samples.costs.items(), key=lambda item: item[0]):
        callers = f"{count} caller{'s' * (count > 1)}"
        for group in GROUPS:
            name = f"pool: processor time to {operation} 4 KiB, {callers}, {group}"
            spent = tuple(one.cpu_s[group] * 1e3 for one in costs)
            figures.append(Figure(name, "ms", spent, "lower", chart=COSTS))
        name = f"pool: bytes on loopback to {operation} 4 KiB, {callers}"
        figures.append(Figure(name, "B", tuple(float(one.loopback_bytes) for one in costs), "lower", chart=COSTS))
    return figures


def _order(item: tuple[tuple[Stored, Operation, int], list[Latencies]]) -> tuple[bool, int, int]:
    kind, operation, count = item[0]
    return operation == "get", count, ("pool", "bare", "web").index(kind)


def _rates(told: Sequence[Latencies]) -> tuple[float, ...]:
    return tuple(one.rate for one in told)
