"""What security costs: the same work in a pool with nothing, with tokens and TLS, and with encryption at rest as well.

The pools are started by the command line, as users start them. All ends of all connections are on this machine, so
that a byte that is encrypted and decrypted on the way costs its processors twice.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.callers import Callers, Latencies, Operation
from benchmarks.cluster_processes import ClientProcess
from benchmarks.function_processes import caller_process
from benchmarks.measure import Bound, Figure, Limit, SuiteResult, Target, megabytes_per_second
from benchmarks.processes import started_together
from benchmarks.program_pools import ProgramPool, contexts_in
from benchmarks.session import Session, human_size, settle
from benchmarks.workload import RandomContent

OFF, TLS, ALL = "off", "TLS and tokens", "TLS, tokens and encryption"
OPTIONS: Mapping[str, Sequence[str]] = {
    OFF: ("--no-auth", "--no-encryption"),
    TLS: ("--tls", "--no-encryption"),
    ALL: ("--tls", "--encryption"),
}
JOIN_WITH_TOKENS = {TLS, ALL}
CALLERS = (1, 16)
TASKS: tuple[Operation, ...] = ("push", "get")
LARGE_MIN, SMALL_MIN, CALLS_MAX = 0.75, 0.9, 1.15
MARK = "e"
CHARTS = {"MB/s": "large files", "/s": "small files", "ms": "calls"}
LIMIT = "the same without tokens, TLS and encryption"


@dataclass(slots=True)
class Samples:
    """Measurements by round, for each of `OPTIONS`."""

    large: defaultdict[tuple[str, Operation], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds to push and get a large file."""
    small: defaultdict[tuple[str, Operation, int], list[Latencies]] = field(default_factory=lambda: defaultdict(list))
    """Pushes and gets of 4 KiB, by number of callers."""
    calls_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Median time of a call."""


def run(session: Session) -> SuiteResult:
    """Measure all pools in turn, in each round beginning with another one."""
    samples = Samples()
    with session.scratch("security") as root, contexts_in(root / "contexts"), ExitStack() as stack:
        session.progress.step("starting the pools")
        pools = {
            how: ProgramPool(root / str(number), options, joins=how in JOIN_WITH_TOKENS)
            for number, (how, options) in enumerate(OPTIONS.items())
        }
        stack.enter_context(started_together([*pools.values()]))
        callers, client, functions = Callers(), ClientProcess(), caller_process()
        stack.enter_context(started_together([callers, client, functions]))
        for pool in pools.values():
            client.run("connect", address=pool.address)
            callers.fill("pool", pool.address, session.sizes.pool_small_files)
        _Round(session, root, "warm-up", pools, client, callers, functions).run(Samples(), 0)
        for number in session.rounds("pushes, gets and calls with and without security"):
            _Round(session, root, f"round-{number}", pools, client, callers, functions).run(samples, number)
    return _result(session, samples)


@dataclass(frozen=True, slots=True)
class _Round:
    session: Session
    root: Path
    name: str
    pools: Mapping[str, ProgramPool]
    client: ClientProcess
    callers: Callers
    functions: ClientProcess

    def run(self, samples: Samples, number: int) -> None:
        """Make one round of everything."""
        source = RandomContent(self.name, self.session.sizes.cluster_bytes).write_to(self.root / self.name)
        self._in_turn(number, partial(self._large, samples, "push", source=source))
        source.unlink()
        self._in_turn(number, partial(self._large, samples, "get"))
        for count in CALLERS:
            for task in TASKS:
                self._in_turn(number, partial(self._small, samples, task, count))
        self._in_turn(number, partial(self._calls, samples))

    def _in_turn(self, number: int, measure: Callable[[str, ProgramPool], None]) -> None:
        found = list(self.pools.items())
        first = number % len(found)
        for how, pool in (*found[first:], *found[:first]):
            settle()
            measure(how, pool)

    def _large(self, samples: Samples, task: Operation, how: str, pool: ProgramPool, **arguments: object) -> None:
        outcome = self.client.run(task, address=pool.address, name=self.name, **arguments)
        samples.large[how, task].append(outcome["took"])

    def _small(self, samples: Samples, task: Operation, count: int, how: str, pool: ProgramPool) -> None:
        seconds = self.session.sizes.pool_small_seconds
        samples.small[how, task, count].append(self.callers.measure("pool", task, pool.address, count, seconds))

    def _calls(self, samples: Samples, how: str, pool: ProgramPool) -> None:
        outcome = self.functions.run(
            "latencies", address=pool.address, count=self.session.sizes.function_calls // 5, bare=False
        )
        samples.calls_ms[how].append(statistics.median(outcome["milliseconds"]))


def _result(session: Session, samples: Samples) -> SuiteResult:
    figures: list[Figure] = []
    targets: list[Target] = []

    def add(name: str, unit: str, found: Mapping[str, Sequence[float]], kind: Bound, bound: float, text: str) -> None:
        limit = Limit(LIMIT, tuple(found[OFF]))
        for how, values in found.items():
            better = "higher" if kind == "at least" else "lower"
            figures.append(
                Figure(f"{name}, {how}", unit, tuple(values), better, limit if how != OFF else None, chart=CHARTS[unit])  # type: ignore[arg-type]
            )
        ratios = [one / other for one, other in zip(found[ALL], found[OFF], strict=True)]
        reduced = session.sizes.reduced
        targets.append(Target(MARK, text, kind, bound, "x", tuple(ratios), f"{name}, {ALL}", reduced))

    size = session.sizes.cluster_bytes
    for task in TASKS:
        large = {how: megabytes_per_second(size, samples.large[how, task]) for how in OPTIONS}
        add(f"{task} {human_size(size)}", "MB/s", large, "at least", LARGE_MIN, f"{task} of a large file, on / off")
    for count in CALLERS:
        of = f"{count} caller{'s' * (count > 1)}"
        for task in TASKS:
            rates = {how: [one.rate for one in samples.small[how, task, count]] for how in OPTIONS}
            text = f"{task} of 4 KiB by {of}, on / off"
            add(f"{task} of 4 KiB, {of}", "/s", rates, "at least", SMALL_MIN, text)
    add("call of a function, p50", "ms", samples.calls_ms, "at most", CALLS_MAX, "p50 of a call, on / off")
    remarks = ("All processes, and both ends of every connection, share this machine's processors.",)
    return SuiteResult("security", tuple(figures), tuple(targets), remarks)
