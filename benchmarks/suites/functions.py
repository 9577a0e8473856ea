"""Function calls through a pool of three workers, compared with bare calls over the same hops; balance of the load."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster_processes import ClientProcess
from benchmarks.function_processes import ADD, ADD_KEPT, ARGUMENTS, WORKERS, BareCalls, FunctionPool, caller_process
from benchmarks.function_servers import BALANCED, SKEWED
from benchmarks.measure import Bound, Figure, Limit, SuiteResult, Target, seconds_of
from benchmarks.package_functions import PackageFunctions
from benchmarks.processes import started_together
from benchmarks.ray_peer import RayTasks
from benchmarks.session import Session
from taskworker.sandbox import bubblewrap

CALLERS = 16
CALLER_PROCESSES = 4
BLOCKS = 5
PAUSE_S = 0.1
SLOWER = 5.0
LATENCY_RATIO_MAX = 4.0
LATENCY_MS_MAX = 5.0
RATE_MIN = 300.0
SPREAD_MAX = 0.10
SLOW_SHARE_MAX = 1 / 8
PEER_FACTOR = 10.0
CPU_MS_MAX = 5.0
RATE_WANTED = 400.0
KEPT_RATIO_MAX = 2.0
KEPT_RATE_MIN = 900.0
RAY_TIMES_MIN = 1.0
BARE = "bare gRPC over the same two hops: empty handlers, the same sizes and options"
EQUAL = "an equal share"
_QUIET_S = 0.1
_PEER_PROGRAM = "import json, sys; print(json.dumps(sum(map(json.loads, sys.argv[1:]))))"


@dataclass(slots=True)
class Samples:
    """Samples by round."""

    latency_ms: list[float] = field(default_factory=list)
    bare_latency_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    bare_rate: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    bare_cpu_ms: list[float] = field(default_factory=list)
    peer_ms: list[float] = field(default_factory=list)
    balance: list[float] = field(default_factory=list)
    slow_share: list[float] = field(default_factory=list)
    kept_latency_ms: list[float] = field(default_factory=list)
    kept_rate: list[float] = field(default_factory=list)
    kept_cpu_ms: list[float] = field(default_factory=list)
    ray_ms: list[float] = field(default_factory=list)
    ray_rate: list[float] = field(default_factory=list)


def run(session: Session) -> SuiteResult:
    """In each round, measure single calls, many callers, a process for each call, and the workers' shares of calls."""
    samples = Samples()
    with ExitStack() as stack:
        root = stack.enter_context(session.scratch("functions"))
        packages = PackageFunctions(root)
        session.progress.step("starting the pool, its workers, the bare relay and the callers")
        pool, bare = FunctionPool(root, pause_s=PAUSE_S, slower=SLOWER), BareCalls()
        callers = [caller_process() for _ in range(CALLER_PROCESSES)]
        stack.enter_context(started_together([pool, bare, *callers]))
        peer = _peer(root)
        ray = None if session.ray is None else stack.enter_context(RayTasks(session.ray))
        for _ in session.rounds("calls"):
            _latency_round(session, pool, bare, callers[0], samples)
            samples.peer_ms.append(_median_ms(peer, session.sizes.function_peer_calls))
            _rate_round(session, pool, bare, callers, samples)
            if ray is not None:
                samples.ray_ms.append(statistics.median(ray.latencies_ms(session.sizes.function_calls)))
                samples.ray_rate.append(ray.rate(CALLERS, session.sizes.function_seconds))
            _share_round(session, pool, callers[0], samples)
        session.progress.step("fetching packages")
        packages.deploy(pool.address)
    with session.scratch("packages") as home:
        for _ in session.rounds("packages"):
            packages.round(session, home)
    return result_of(session, samples, packages)


def _latency_round(
    session: Session, pool: FunctionPool, bare: BareCalls, caller: ClientProcess, samples: Samples
) -> None:
    """Measure alternating blocks of calls, with pauses for the work that is left after a call."""
    mine: list[float] = []
    kept: list[float] = []
    theirs: list[float] = []
    for _ in range(BLOCKS):
        count = session.sizes.function_calls // BLOCKS
        mine += caller.run("latencies", address=pool.address, count=count, bare=False)["milliseconds"]
        time.sleep(_QUIET_S)
        kept += caller.run("latencies", address=pool.address, count=count, bare=False, function=ADD_KEPT)[
            "milliseconds"
        ]
        theirs += caller.run("latencies", address=bare.address, count=count, bare=True)["milliseconds"]
    samples.latency_ms.append(statistics.median(mine))
    samples.kept_latency_ms.append(statistics.median(kept))
    samples.bare_latency_ms.append(statistics.median(theirs))


def _rate_round(
    session: Session, pool: FunctionPool, bare: BareCalls, callers: Sequence[ClientProcess], samples: Samples
) -> None:
    for measured, function, rates, cpu_ms in (
        (pool, ADD, samples.rate, samples.cpu_ms),
        (pool, ADD_KEPT, samples.kept_rate, samples.kept_cpu_ms),
        (bare, ADD, samples.bare_rate, samples.bare_cpu_ms),
    ):
        arguments = {
            "address": measured.address,
            "bare": measured is bare,
            "function": function,
            "callers": CALLERS // len(callers),
            "seconds": session.sizes.function_seconds,
        }
        begun = measured.cpu_s()
        told = [outcome() for outcome in [each.begin("sustain", **arguments) for each in callers]]
        time.sleep(_QUIET_S)
        calls = sum(one["calls"] for one in told)
        rates.append(calls / max(one["seconds"] for one in told))
        cpu_ms.append((measured.cpu_s() - begun + sum(one["cpu"] for one in told)) / calls * 1e3)


def _share_round(session: Session, pool: FunctionPool, caller: ClientProcess, samples: Samples) -> None:
    for function in (BALANCED, SKEWED):
        shares: dict[str, int] = caller.run(
            "share",
            address=pool.address,
            function=function,
            callers=CALLERS,
            count=session.sizes.function_balance_calls,
        )["shares"]
        counts = [shares.get(f"worker-{number}", 0) for number in range(WORKERS)]
        if function == BALANCED:
            samples.balance.append((max(counts) - min(counts)) / statistics.mean(counts))
        else:
            samples.slow_share.append(counts[-1] / sum(counts))


def _peer(root: Path) -> Callable[[], None]:
    """Return a function that runs the same addition as a program in its own bubblewrap."""
    script = root / "peer.py"
    script.write_text(_PEER_PROGRAM)
    options = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    command = [bubblewrap.find(), "--unshare-all", "--die-with-parent", *options]
    command += [sys.executable, "-I", str(script), *ARGUMENTS]

    def call() -> None:
        done = subprocess.run(command, capture_output=True, check=True, env={"PATH": os.environ["PATH"]})
        if json.loads(done.stdout) != sum(map(json.loads, ARGUMENTS)):
            raise AssertionError(f"bubblewrap and Python answered {done.stdout!r}")

    return call


def _median_ms(action: Callable[[], None], count: int) -> float:
    return statistics.median(seconds_of(action) for _ in range(count)) * 1e3


# -- the outcome -----------------------------------------------------------------------------------


def result_of(session: Session, samples: Samples, packages: PackageFunctions) -> SuiteResult:
    """Compute figures and targets from the samples."""
    latency = Figure(
        "warm call, p50",
        "ms",
        tuple(samples.latency_ms),
        "lower",
        Limit(BARE, tuple(samples.bare_latency_ms)),
        "one caller; three sandboxed processes wait on three workers",
    )
    peer = Figure(
        "bwrap ... python script for each call, p50",
        "ms",
        tuple(samples.peer_ms),
        "lower",
        Limit("warm call, p50", tuple(samples.latency_ms)),
    )
    rate = Figure(
        f"calls a second by {CALLERS} callers",
        "/s",
        tuple(samples.rate),
        limit=Limit(BARE, tuple(samples.bare_rate)),
        note=f"{CALLER_PROCESSES} processes of {CALLERS // CALLER_PROCESSES} threads",
    )
    cpu = Figure(
        "processor time of a call, of all processes",
        "ms",
        tuple(samples.cpu_ms),
        "lower",
        Limit(BARE, tuple(samples.bare_cpu_ms)),
        "callers, pool, workers and sandboxes; what else runs on the machine does not count",
    )
    kept_latency = Figure(
        'warm call with isolation="user", p50',
        "ms",
        tuple(samples.kept_latency_ms),
        "lower",
        Limit("warm call, p50", tuple(samples.latency_ms)),
        "one caller, of one user",
    )
    kept_rate = Figure(
        f'calls a second by {CALLERS} callers with isolation="user"',
        "/s",
        tuple(samples.kept_rate),
        limit=Limit('isolation="call"', tuple(samples.rate)),
        note="all of one user",
    )
    kept_cpu = Figure(
        'processor time of a call with isolation="user"',
        "ms",
        tuple(samples.kept_cpu_ms),
        "lower",
        Limit('isolation="call"', tuple(samples.cpu_ms)),
    )
    beside = _beside_ray(samples)
    balance = Figure(
        f"spread of {WORKERS} equal workers' calls", "", tuple(samples.balance), "lower", note="(most - fewest) / mean"
    )
    slow = Figure(
        f"share of the one of {WORKERS} workers that is {SLOWER:g}x slower",
        "",
        tuple(samples.slow_share),
        "lower",
        Limit(EQUAL, (1 / WORKERS,) * len(samples.slow_share)),
        "its function takes so much longer",
    )
    ratios = tuple(mine / bare for mine, bare in zip(samples.latency_ms, samples.bare_latency_ms, strict=True))
    kept_ratios = tuple(
        mine / bare for mine, bare in zip(samples.kept_latency_ms, samples.bare_latency_ms, strict=True)
    )
    faster = tuple(other / mine for other, mine in zip(samples.peer_ms, samples.latency_ms, strict=True))
    times = tuple(ray / mine for ray, mine in zip(samples.ray_ms, samples.kept_latency_ms, strict=False))
    reduced = session.sizes.reduced

    def target(
        mark: str, text: str, kind: Bound, bound: float, unit: str, values: Sequence[float], of: Figure
    ) -> Target:
        return Target(mark, text, kind, bound, unit, tuple(values), of.name, reduced)

    targets = (
        target("7a", "warm call / bare call", "at most", LATENCY_RATIO_MAX, "x", ratios, latency),
        target("7a", "warm call, p50", "at most", LATENCY_MS_MAX, "ms", latency.samples, latency),
        target("7a", f"calls by {CALLERS} callers", "at least", RATE_MIN, "/s", rate.samples, rate),
        target("7a", "times faster than bwrap ... python", "at least", PEER_FACTOR, "x", faster, peer),
        target("16b", "processor time of a call", "at most", CPU_MS_MAX, "ms", cpu.samples, cpu),
        target("16b", f"calls by {CALLERS} callers", "at least", RATE_WANTED, "/s", rate.samples, rate),
        target("16b", "kept call / bare call", "at most", KEPT_RATIO_MAX, "x", kept_ratios, kept_latency),
        target(
            "16b", f"kept calls by {CALLERS} callers", "at least", KEPT_RATE_MIN, "/s", kept_rate.samples, kept_rate
        ),
        *(
            target("16b", "task of Ray / kept call", "at least", RAY_TIMES_MIN, "x", times, figure)
            for figure in beside[:1]
        ),
        target("7d", "spread of equal workers' calls", "at most", SPREAD_MAX, "", balance.samples, balance),
        target("7d", f"share of a {SLOWER:g}x slower worker", "at most", SLOW_SHARE_MAX, "", slow.samples, slow),
    )
    remarks = (
        "Pool, workers, sandboxes and callers are processes on one machine, which shares its processors among them.",
        f"Both rates are of {CALLERS} callers in turn, not at once.",
        *packages.remarks(),
    )
    return SuiteResult(
        "functions",
        (latency, kept_latency, peer, rate, kept_rate, cpu, kept_cpu, *beside, balance, slow, *packages.figures()),
        targets,
        remarks,
    )


def _beside_ray(samples: Samples) -> tuple[Figure, ...]:
    """Return Ray's figures, if it was measured."""
    if not samples.ray_ms:
        return ()
    return (
        Figure(
            "Ray: a task, p50",
            "ms",
            tuple(samples.ray_ms),
            "lower",
            Limit('warm call with isolation="user", p50', tuple(samples.kept_latency_ms)),
            "one driver, one task after another; Ray's workers are not confined",
        ),
        Figure(
            f"Ray: tasks a second by {CALLERS} threads",
            "/s",
            tuple(samples.ray_rate),
            limit=Limit('calls with isolation="user"', tuple(samples.kept_rate)),
            note="of one driver",
        ),
    )
