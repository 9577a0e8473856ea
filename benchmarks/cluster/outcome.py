"""Figures and targets of the cluster suite, from its samples."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cluster.samples import CLIENTS, IDLE_CONNECTIONS, LEASE_S, LOST, TASKS, Costs, Samples, Series
from benchmarks.cluster_peers import Found
from benchmarks.measure import Better, Bound, Figure, Limit, SuiteResult, Target, megabytes_per_second, rate
from benchmarks.session import Session, human_size

PLAIN_MIN = {"push": 0.8, "get": 0.5}
ENGINE_MIN = {"push": 0.85, "get": 0.75}
BARE_MIN = 0.5
DEGRADED_MIN = 0.8
CLIENTS_MIN = 0.9
BESIDE_MIN = 0.7
VERIFY_MAX = 1.1
BEFORE_MAX = 0.5
LOADED_MAX = {"loaded": 5.0, "stopped": 3.0}
MIB_MAX = {
    "pool": 300,
    "client": 150,
    "pool under load": 300,
    "worker under load": 150,
    "worker with idle connections": 200,
}
PUSH_LIMIT = "plain sockets: BLAKE3, 1.5x the bytes to six sinks that write and fdatasync"
GET_LIMIT = "plain sockets: four quarters of each chunk from six sinks, BLAKE3"
SMALL_LIMIT = "plain sockets: 1 KiB to each of six sinks that write and fdatasync"
MEND_LIMIT = "bare relay: reads the bytes from four sinks, writes a quarter of them to two that fsync"
CPU_LIMIT = "plain sockets, client and sinks"
LOOPBACK_LIMIT = "plain sockets, which have no pool in between"
TRUSTING_LIMIT = "the same by a pool that takes its workers at their word"
QUIET_LIMIT = "the same on the same pool with nothing else going on"
ALONE_LIMIT = "the same bytes by one such client"
IDLE_LIMIT = "the same in the same pool with nothing else going on"
BARE_IDLE_LIMIT = "the same with nothing else going on"
THROUGHPUT, PROCESSOR, LOOPBACK, LATENCY = "throughput", "processor time", "bytes on loopback", "latency"

FACTORS = {
    "SeaweedFS": {"push": 4.0, "get": 0.6},
    "Tahoe-LAFS": {"push": 5.0, "get": 15.0, "small": 12.0, "repair": 5.0},
    "GlusterFS": {"push": 2.5, "get": 2.5, "small": 3.0},
}
"""How many times faster than a peer the pool has to be."""
ENGINE_FACTORS = {"SeaweedFS": {"get": 1.0}}
"""The same for an engine in the client's own process."""


def result_of(session: Session, samples: Samples, found: Found) -> SuiteResult:
    """Compute figures and targets from the samples."""
    outcome = _Outcome(session, samples, found)
    outcome.stores()
    outcome.costs()
    outcome.small_gets()
    outcome.many_clients()
    outcome.background()
    outcome.memory()
    remarks = (
        "Pool, workers and clients are processes on one machine, which shares its processors among all of them.",
        "Repair is timed from when the pool gives the worker up. Peaks are VmHWM, mapped files included.",
        "Bytes on loopback include headers, acknowledgements, and what else uses loopback meanwhile.",
        *found.remarks,
    )
    return SuiteResult("cluster", tuple(outcome.figures), tuple(outcome.targets), remarks)


class _Outcome:
    """Collects figures and targets."""

    def __init__(self, session: Session, samples: Samples, found: Found) -> None:
        self._session, self._samples, self._found = session, samples, found
        self._size = session.sizes.cluster_bytes
        self._label = human_size(self._size)
        self.figures: list[Figure] = []
        self.targets: list[Target] = []

    # -- push, get, small pushes and repair, of the pool, an engine alone, and others ---------------

    def stores(self) -> None:
        samples = self._samples
        push, get, degraded, *_ = self._add_store("pool", samples.pool)
        for task, figure in (("push", push), ("get", get)):
            self._target("a", f"{task} / plain sockets", "at least", PLAIN_MIN[task], figure.ratios, figure)
        slower = _ratios(degraded.samples, get.samples)
        text = f"get with {LOST} of 6 workers dead / healthy get"
        self._target("f", text, "at least", DEGRADED_MIN, slower, degraded)
        first = megabytes_per_second(self._size, samples.pool.after_kill)
        self.figures.append(
            Figure(f"pool: first get of {self._label} after {LOST} of 6 workers were killed", "MB/s", first)
        )
        self.figures.append(
            Figure(
                "pool: from the kill to full redundancy",
                "s",
                tuple(samples.kill_to_whole),
                "lower",
                Limit(MEND_LIMIT, tuple(samples.bare.repair)),
                f"with the {LEASE_S:g} s that a silent worker passes for a living one",
            )
        )
        self._add_store("through the pool", samples.relayed, "the same pool, with bytes that pass through it")
        self._add_store("as the command starts it", samples.started, "encrypted; clients write to workers themselves")
        note = "an engine in the client's own process, over workers of its own"
        for figure, task in zip(self._add_store("engine", samples.engine, note), TASKS, strict=True):
            text = f"{task} by an engine in the client / plain sockets"
            self._target("a", text, "at least", ENGINE_MIN[task], figure.ratios, figure)
        if samples.before.push:
            self._add_store("before", samples.before, "another version of this repository, its client excepted")
        bare = Series(samples.bare.push, samples.bare.get, small=samples.bare.small)
        self._add_store("bare relay", bare, "gRPC to a relay, and on to six sinks; no hashes")
        for task in TASKS:
            faster = _ratios(getattr(samples.bare, task), getattr(samples.pool, task))
            self._target("h", f"{task} / bare relay", "at least", BARE_MIN, faster)
        for task in TASKS:
            rates = megabytes_per_second(self._size, getattr(samples.plain, task))
            self.figures.append(Figure(f"plain sockets: {task} {self._label}", "MB/s", rates, chart=THROUGHPUT))
        for peer in self._found.peers:
            self._add_store(peer.name, samples.peers[peer.name], peer.note)
            self._peer_targets(peer.name)

    def _add_store(self, who: str, series: Series, note: str = "") -> list[Figure]:
        """Add the figures of one store, with plain sockets as the limit."""
        size, label, plain = self._size, self._label, self._samples.plain
        up = Limit(PUSH_LIMIT, megabytes_per_second(size, plain.push))
        down = Limit(GET_LIMIT, megabytes_per_second(size, plain.get))
        count = self._session.sizes.cluster_small_pushes
        writes = Limit(SMALL_LIMIT, rate(count, plain.small))
        mend = Limit(MEND_LIMIT, tuple(self._samples.bare.repair))
        pushed, got, degraded = (
            megabytes_per_second(size, each) for each in (series.push, series.get, series.degraded)
        )
        wanted: list[tuple[str, str, Sequence[float], Limit, Better, str]] = [
            (f"push {label}", "MB/s", pushed, up, "higher", THROUGHPUT),
            (f"get {label}", "MB/s", got, down, "higher", THROUGHPUT),
            (f"get {label}, {LOST} of 6 workers dead", "MB/s", degraded, down, "higher", THROUGHPUT),
            ("pushes of 4 KiB, one after another", "/s", rate(count, series.small), writes, "higher", ""),
            (f"repair of {label} after the loss of one worker", "s", series.repair, mend, "lower", ""),
        ]
        figures = [
            Figure(
                f"{who}: {name}",
                unit,
                tuple(found),
                better,
                limit if who != "bare relay" or unit != "s" else None,
                note,
                chart,
            )
            for name, unit, found, limit, better, chart in wanted
            if found
        ]
        self.figures += figures
        return figures

    def _peer_targets(self, name: str) -> None:
        texts = {"push": "push", "get": "get", "small": "pushes of 4 KiB", "repair": "repair of one lost worker"}
        marks = {"SeaweedFS": "a"}
        theirs = self._samples.peers[name]
        for task, factor in FACTORS[name].items():
            mark = "h" if task == "repair" else marks.get(name, "c")
            faster = _ratios(getattr(theirs, task), getattr(self._samples.pool, task))
            text = f"{texts[task]}, times faster than {name}"
            self._target(mark, text, "at least", factor, faster, needs_full_size=task == "repair")
        for task, factor in ENGINE_FACTORS.get(name, {}).items():
            faster = _ratios(getattr(theirs, task), getattr(self._samples.engine, task))
            self._target(
                "a", f"{task} by an engine in the client, times faster than {name}", "at least", factor, faster
            )

    # -- what pushing and getting costs ------------------------------------------------------------

    def costs(self) -> None:
        """Add processor time, and bytes on loopback."""
        for task in TASKS:
            mine, plain = self._samples.costs["pool", task], self._samples.costs["plain", task]
            before, started = self._samples.costs.get(("before", task)), self._samples.costs["started", task]
            self._processor_time("pool", task, mine, plain)
            self._processor_time("as the command starts it", task, started, plain)
            if before is not None:
                self._processor_time("before", task, before, plain)
                for whose, costs in (("the pool", mine), ("the pool as the command starts it", started)):
                    less = _ratios(costs.cpu["pool"], before.cpu["pool"])
                    self._target("e", f"processor time of {whose}, {task} / before", "at most", BEFORE_MAX, less)
            relayed = self._samples.costs.get(("relayed", task))
            if relayed is not None:
                self._processor_time("through the pool", task, relayed, plain)
            self._processor_time("plain sockets", task, plain, None)
        for task in TASKS:
            mine, plain = self._samples.costs["pool", task], self._samples.costs["plain", task]
            limit = Limit(LOOPBACK_LIMIT, tuple(plain.loopback))
            name = f"pool: bytes on loopback for each byte, {task}"
            self.figures.append(Figure(name, "B/B", tuple(mine.loopback), "lower", limit, chart=LOOPBACK))

    def _processor_time(self, who: str, task: str, costs: Costs, plain: Costs | None) -> None:
        for group, spent in costs.cpu.items():
            name = f"{who}: processor time to {task} 1 GiB, {group}"
            self.figures.append(Figure(name, "s", tuple(spent), "lower", chart=PROCESSOR))
        limit = Limit(CPU_LIMIT, tuple(plain.whole_cpu)) if plain else None
        name = f"{who}: processor time to {task} 1 GiB, all processes"
        self.figures.append(Figure(name, "s", tuple(costs.whole_cpu), "lower", limit, chart=PROCESSOR))

    # -- small gets beside others ------------------------------------------------------------------

    def small_gets(self) -> None:
        """Add the latency of small gets beside busy clients, and with a stopped worker."""
        p99_ms = self._samples.p99_ms
        idle = Limit(IDLE_LIMIT, tuple(p99_ms["idle"]))
        self.figures.append(Figure("pool: get of 4 KiB, p99", "ms", idle.samples, "lower", chart=LATENCY))
        bare_idle = Limit(BARE_IDLE_LIMIT, tuple(p99_ms["bare idle"]))
        bare = f"bare gRPC: call with an answer of 4 KiB while {CLIENTS} clients load the pool, p99"
        self.figures.append(Figure(bare, "ms", tuple(p99_ms["bare loaded"]), "lower", bare_idle, chart=LATENCY))
        texts = {
            "loaded": f"while {CLIENTS} clients push and get files of {self._label}",
            "stopped": "with one worker stopped",
        }
        for state, text in texts.items():
            figure = Figure(f"pool: get of 4 KiB {text}, p99", "ms", tuple(p99_ms[state]), "lower", idle, chart=LATENCY)
            self.figures.append(figure)
            slower = _ratios(p99_ms[state], p99_ms["idle"])
            self._target("f", f"p99 of a 4 KiB get {text} / idle", "at most", LOADED_MAX[state], slower, figure)

    # -- many clients, background work, memory -----------------------------------------------------

    def many_clients(self) -> None:
        """Add the throughput of several clients."""
        amount = self._size // CLIENTS * CLIENTS
        for task in TASKS:
            alone = Limit(ALONE_LIMIT, megabytes_per_second(amount, self._samples.alone[task]))
            rates = megabytes_per_second(amount, self._samples.together[task])
            figure = Figure(f"pool: {CLIENTS} clients {task} {human_size(amount)} in all", "MB/s", rates, limit=alone)
            self.figures.append(figure)
            self._target("h", f"{task} by {CLIENTS} clients / by one", "at least", CLIENTS_MIN, figure.ratios, figure)

    def background(self) -> None:
        """Add the throughput beside background work, and the cost of verification."""
        samples = self._samples
        for task in TASKS:
            quiet = Limit(QUIET_LIMIT, megabytes_per_second(self._size, samples.quiet[task]))
            rates = megabytes_per_second(self._size, samples.beside[task])
            name = f"pool: {task} {self._label} while shards are moved off a worker"
            figure = Figure(name, "MB/s", rates, limit=quiet)
            self.figures.append(figure)
            self._target("h", f"{task} beside background work / without", "at least", BESIDE_MIN, figure.ratios, figure)
        texts = {"repair": "repair after the loss of one worker", "move": "moving a drained worker's shards"}
        for task, text in texts.items():
            without = Limit(TRUSTING_LIMIT, tuple(samples.trusting[task]))
            name = f"pool: verify before drop, {text}, {self._label}"
            figure = Figure(name, "s", tuple(samples.verifying[task]), "lower", without)
            self.figures.append(figure)
            slower = _ratios(figure.samples, without.samples)
            self._target("h", f"{text}: with verification / without", "at most", VERIFY_MAX, slower, figure)

    def memory(self) -> None:
        """Add the peaks of memory."""
        large = f"push and get of {human_size(self._session.sizes.cluster_memory_bytes)}"
        busy = f"{CLIENTS} clients push and get files of {self._label}"
        texts = {
            "pool": large,
            "client": large,
            "pool under load": busy,
            "worker under load": busy,
            "worker with idle connections": f"{IDLE_CONNECTIONS:,} idle connections at each of its ports",
        }
        notes = {
            "pool": "all the rounds and clients above included",
            "worker under load": "the worker with the highest peak",
            "worker with idle connections": "the load above included",
        }
        for who, bound in MIB_MAX.items():
            peaks, floors = zip(*self._samples.peaks[who], strict=True)
            before = Limit("the same process before", floors)
            process = who.split()[0]
            figure = Figure(f"{process}: {texts[who]}", "MiB", peaks, "lower", before, notes.get(who, ""))
            self.figures.append(figure)
            mark = "h" if process == who else "g"
            self._target(mark, f"peak memory of the {who}", "at most", bound, peaks, figure, unit="MiB")

    def _target(
        self,
        mark: str,
        text: str,
        kind: Bound,
        bound: float,
        samples: Sequence[float],
        figure: Figure | None = None,
        *,
        unit: str = "x",
        needs_full_size: bool = False,
    ) -> None:
        name, reduced = figure.name if figure else "", self._session.sizes.reduced
        self.targets.append(Target(mark, text, kind, bound, unit, tuple(samples), name, reduced, needs_full_size))


def _ratios(above: Sequence[float], below: Sequence[float]) -> tuple[float, ...]:
    return tuple(one / other for one, other in zip(above, below, strict=True))
