"""What security costs: the same work in a pool with nothing, with tokens and TLS, and with encryption at rest as well.

Large files are pushed to a further pool, whose clients write to the workers themselves.

The pools are started by the command line, as users start them. All ends of all connections are on this machine, so
that a byte that is encrypted and decrypted on the way costs its processors twice.

Plain sockets with and without TLS are measured beside them. They do the same work as shards do between a pool and its
workers, and nothing else, so that they show what TLS costs whoever uses it from Python.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.callers import Callers, Latencies, Operation
from benchmarks.cluster_processes import ClientProcess
from benchmarks.function_processes import caller_process
from benchmarks.measure import GIB, Bound, Figure, Limit, SuiteResult, Target, megabytes_per_second, rate
from benchmarks.plain_sockets import PlainSockets
from benchmarks.processes import started_together
from benchmarks.program_pools import ProgramPool, contexts_in
from benchmarks.session import Session, human_size, settle
from benchmarks.usage import Meter
from benchmarks.workload import RandomContent

OFF, TLS, ALL = "off", "TLS and tokens", "TLS, tokens and encryption"
DIRECT = f"{ALL}, direct pushes"
OPTIONS: Mapping[str, Sequence[str]] = {
    OFF: ("--no-auth", "--no-encryption"),
    TLS: ("--tls", "--no-encryption"),
    ALL: ("--tls", "--encryption", "--no-direct-pushes"),
    DIRECT: ("--tls", "--encryption"),
}
FOR_ALL = (OFF, TLS, ALL)
"""The options with which everything is measured: direct pushes are for large files only."""
JOIN_WITH_TOKENS = {TLS, ALL, DIRECT}
CALLERS = (1, 16)
TASKS: tuple[Operation, ...] = ("push", "get")
RELAYED = "get_relayed"
LARGE = {"push": "push", "get": "get", RELAYED: "get through the pool"}
LARGE_MIN, SMALL_MIN, CALLS_MAX = 0.75, 0.9, 1.15
MARK = "e"
CHARTS = {"MB/s": "large files", "/s": "small files", "ms": "calls", "s/GiB": "processor time of the pool"}
LIMIT = "the same without tokens, TLS and encryption"
PLAIN_LIMIT = "the same without TLS"
PLAIN = {
    "push": "plain sockets, {size} to six sinks",
    "get": "plain sockets, {size} from four of six sinks",
    "write": "plain sockets, writes of 4 KiB",
    "read": "plain sockets, reads of 4 KiB",
}
"""What plain sockets do, and the names of the figures."""


@dataclass(slots=True)
class Samples:
    """Measurements by round, for each of `OPTIONS`."""

    large: defaultdict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds to push and get a large file, and to get it through the pool."""
    pool_s_per_gib: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Processor time of the pool to push, by gibibyte."""
    small: defaultdict[tuple[str, Operation, int], list[Latencies]] = field(default_factory=lambda: defaultdict(list))
    """Pushes and gets of 4 KiB, by number of callers."""
    calls_ms: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Median time of a call."""
    plain: defaultdict[tuple[bool, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds of each of `PLAIN`, and whether they were encrypted."""


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
        plain = {encrypted: _plain_sockets(root / f"sinks-{encrypted}", encrypted) for encrypted in (False, True)}
        stack.enter_context(started_together([callers, client, functions, *plain.values()]))
        for pool in pools.values():
            client.run("connect", address=pool.address)
        for how in FOR_ALL:
            callers.fill("pool", pools[how].address, session.sizes.pool_small_files)
        _Round(session, root, "warm-up", pools, client, callers, functions, plain).run(Samples(), 0)
        for number in session.rounds("pushes, gets and calls with and without security"):
            _Round(session, root, f"round-{number}", pools, client, callers, functions, plain).run(samples, number)
    return _result(session, samples)


def _plain_sockets(directory: Path, encrypted: bool) -> PlainSockets:
    directory.mkdir()
    return PlainSockets(directory, encrypted=encrypted)


@dataclass(frozen=True, slots=True)
class _Round:
    session: Session
    root: Path
    name: str
    pools: Mapping[str, ProgramPool]
    client: ClientProcess
    callers: Callers
    functions: ClientProcess
    plain: Mapping[bool, PlainSockets]

    def run(self, samples: Samples, number: int) -> None:
        """Make one round of everything."""
        source = RandomContent(self.name, self.session.sizes.cluster_bytes).write_to(self.root / self.name)
        self._in_turn(number, partial(self._push, samples, source), OPTIONS)
        for encrypted in (True, False) if number % 2 else (False, True):
            settle()
            self._plainly(samples, encrypted, source)
        source.unlink()
        self._in_turn(number, partial(self._large, samples, "get"))
        self._in_turn(number, partial(self._large, samples, RELAYED))
        for count in CALLERS:
            for task in TASKS:
                self._in_turn(number, partial(self._small, samples, task, count))
        self._in_turn(number, partial(self._calls, samples))

    def _in_turn(
        self, number: int, measure: Callable[[str, ProgramPool], None], options: Collection[str] = FOR_ALL
    ) -> None:
        found = list(options)
        first = number % len(found)
        for how in (*found[first:], *found[:first]):
            settle()
            measure(how, self.pools[how])

    def _push(self, samples: Samples, source: Path, how: str, pool: ProgramPool) -> None:
        meter = Meter({how: [pool.pool_pid]})
        _, usage = meter.during(lambda: self._large(samples, "push", how, pool, source=source))
        samples.pool_s_per_gib[how].append(usage.cpu_s[how] * GIB / self.session.sizes.cluster_bytes)

    def _large(self, samples: Samples, task: str, how: str, pool: ProgramPool, **arguments: object) -> None:
        outcome = self.client.run(task, address=pool.address, name=self.name, **arguments)
        samples.large[how, task].append(outcome["took"])

    def _plainly(self, samples: Samples, encrypted: bool, source: Path) -> None:
        sockets, sizes = self.plain[encrypted], self.session.sizes
        samples.plain[encrypted, "push"].append(sockets.push(source))
        samples.plain[encrypted, "get"].append(sockets.get())
        samples.plain[encrypted, "write"].append(sockets.write_small(sizes.plain_small_writes))
        samples.plain[encrypted, "read"].append(sockets.read_small(sizes.small_gets))
        sockets.forget()

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
    for task, text in LARGE.items():
        options = OPTIONS if task == "push" else FOR_ALL
        large = {how: megabytes_per_second(size, samples.large[how, task]) for how in options}
        add(f"{text} {human_size(size)}", "MB/s", large, "at least", LARGE_MIN, f"{text} of a large file, on / off")
    for count in CALLERS:
        of = f"{count} caller{'s' * (count > 1)}"
        for task in TASKS:
            rates = {how: [one.rate for one in samples.small[how, task, count]] for how in FOR_ALL}
            text = f"{task} of 4 KiB by {of}, on / off"
            add(f"{task} of 4 KiB, {of}", "/s", rates, "at least", SMALL_MIN, text)
    add("call of a function, p50", "ms", samples.calls_ms, "at most", CALLS_MAX, "p50 of a call, on / off")
    figures += _plain_figures(session, samples)
    figures += [
        Figure(f"processor of the pool to push, {how}", "s/GiB", tuple(spent), "lower", chart=CHARTS["s/GiB"])
        for how, spent in samples.pool_s_per_gib.items()
    ]
    remarks = (
        "All processes, and both ends of every connection, share this machine's processors.",
        "Plain sockets with TLS are the limit of what TLS from Python allows for shards. What is pushed, or "
        "got through the pool, passes TLS twice: between client and pool by gRPC, and between pool and workers from "
        "Python. What is got from the workers passes it once.",
    )
    return SuiteResult("security", tuple(figures), tuple(targets), remarks)


def _plain_figures(session: Session, samples: Samples) -> list[Figure]:
    """What plain sockets reach, with and without TLS."""
    sizes = session.sizes
    counts = {"write": sizes.plain_small_writes, "read": sizes.small_gets}
    figures: list[Figure] = []
    for task, name in PLAIN.items():
        limit: Limit | None = None
        for encrypted in (False, True):
            seconds = samples.plain[encrypted, task]
            unit = "/s" if task in counts else "MB/s"
            values = (
                rate(counts[task], seconds) if task in counts else megabytes_per_second(sizes.cluster_bytes, seconds)
            )
            text = name.format(size=human_size(sizes.cluster_bytes)) + (", TLS" if encrypted else ", no TLS")
            figures.append(Figure(text, unit, values, limit=limit))
            limit = Limit(PLAIN_LIMIT, values)
    return figures
