"""The S3 gateway of a 4-of-6 pool: objects through it, beside the pool's own client, and SeaweedFS's S3 gateway.

Requests are signed, and their bodies are not (UNSIGNED-PAYLOAD), as programs do over TLS. The client of S3 does as
little as possible: the kernel sends files, and what is received is discarded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import cluster_peers
from benchmarks.callers import SMALL_BYTES, Callers, Operation, Stored
from benchmarks.cluster_processes import ClientProcess, Cluster
from benchmarks.measure import MIB, Figure, Limit, SuiteResult, Target, megabytes_per_second
from benchmarks.peer_processes import PeerFailed
from benchmarks.processes import started_together
from benchmarks.s3_gateway import Gateway, source_of
from benchmarks.session import Session, human_size, settle
from benchmarks.usage import Meter, Usage

CALLERS = (1, 16)
LARGE_MIN, SMALL_MIN, PEER_MIN = 0.8, 0.5, 1.0
CONNECTIONS = 1000
MEMORY_MAX_MIB = 300.0
MARK = "b"
WARM = "warm-up"
OURS, CLIENT, PEER = "the gateway", "the pool's client", "SeaweedFS's S3"
TASKS: tuple[Operation, ...] = ("push", "get")
S3_NAMES = {"push": "put", "get": "get"}


@dataclass(slots=True)
class Samples:
    """Measurements by round."""

    large_s: defaultdict[tuple[str, Operation], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds to store or get a large object."""
    small: defaultdict[tuple[str, Operation, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Operations a second on objects of 4 KiB, by number of callers."""
    costs: defaultdict[tuple[str, Operation], list[Usage]] = field(default_factory=lambda: defaultdict(list))
    """What large objects cost the gateway and the pool."""


def run(session: Session) -> SuiteResult:
    """Measure the gateway, the pool's client and, with ``--peers``, SeaweedFS's S3 gateway in turn."""
    samples, remarks = Samples(), list[str]()
    with session.scratch("s3") as root, ExitStack() as stack:
        session.progress.step("starting the pool and the gateway")
        cluster = stack.enter_context(Cluster(root / "pool"))
        gateway = Gateway(root / "gateway", cluster.address)
        client, direct, callers = ClientProcess("benchmarks.s3_gateway"), ClientProcess(), Callers()
        stack.enter_context(started_together([gateway, client, direct, callers]))
        peer = _peer(session, root, stack, remarks)
        measured = _Measured(session, root, cluster, gateway, client, direct, callers, peer, samples)
        measured.warm_up()
        for number in session.rounds(f"objects of {human_size(session.sizes.s3_bytes)} and of 4 KiB"):
            measured.round(number)
        held = measured.hold(CONNECTIONS)
        return _result(session, samples, held, gateway.memory.resident, remarks)


def _peer(session: Session, root: Path, stack: ExitStack, remarks: list[str]) -> str | None:
    if not session.peers:
        return None
    (root / "seaweedfs").mkdir()
    try:
        peer = cluster_peers.seaweed_fs(root / "seaweedfs")
        stack.callback(peer.close)
        return peer.serve_s3()
    except (PeerFailed, OSError) as error:
        remarks.append(f"SeaweedFS was left out: {error}.")
        return None


@dataclass(frozen=True, slots=True)
class _Measured:
    session: Session
    root: Path
    cluster: Cluster
    gateway: Gateway
    client: ClientProcess
    direct: ClientProcess
    callers: Callers
    peer: str | None
    samples: Samples

    def warm_up(self) -> None:
        """Do everything once, so that the first round does not include the cost of first use."""
        self.direct.run("connect", address=self.cluster.address)
        for address in self._s3_addresses():
            self.client.run("connect", address=address)
        for who in self._whos():
            for task in TASKS:
                self._large(who, WARM, task)
        for kind, address in self._small_places():
            self.callers.fill(kind, address, self.session.sizes.pool_small_files)

    def round(self, number: int) -> None:
        """Measure everything once, beginning with another one each time."""
        for task in TASKS:
            self._in_turn(number, [partial(self._one_large, who, f"object-{number}", task) for who in self._whos()])
        for count in CALLERS:
            for task in TASKS:
                places = zip(self._whos(), self._small_places(), strict=True)
                self._in_turn(number, [partial(self._one_small, who, task, count, place) for who, place in places])

    def hold(self, count: int) -> int:
        """Hold many connections, and ask at all of them at once; return how many were answered."""
        self.session.progress.step(f"{count} connections")
        self.client.run("hold", address=self.gateway.address, count=count)
        answered = int(self.client.run("ask_held", name="fill/0")["answered"])
        self.client.run("let_go")
        return answered

    def _whos(self) -> list[str]:
        return [OURS, CLIENT, *([PEER] if self.peer else [])]

    def _s3_addresses(self) -> list[str]:
        return [self.gateway.address, *([self.peer] if self.peer else [])]

    def _small_places(self) -> list[tuple[Stored, str]]:
        places: list[tuple[Stored, str]] = [("s3", self.gateway.address), ("pool", self.cluster.address)]
        return [*places, ("s3", self.peer)] if self.peer else places

    def _large(self, who: str, name: str, task: Operation) -> tuple[float, Usage]:
        """Store or get a large object; return the seconds, and what it cost.

        Everyone's content is another one, as a pool stores what it has already faster.
        """
        more = {"source": source_of(self.root, f"{name}-{who}", self.session.sizes.s3_bytes)} if task == "push" else {}
        settle()
        if who == CLIENT:
            act = partial(self.direct.run, task, address=self.cluster.address, name=f"direct/{name}", **more)
        else:
            address = self.gateway.address if who == OURS else self.peer
            act = partial(self.client.run, S3_NAMES[task], address=address, name=name, **more)
        meter = Meter({"gateway": [self.gateway.pid], "pool": [self.cluster.pool_pid]})
        outcome, usage = meter.during(act)
        for path in more.values():
            path.unlink()
        return float(outcome["took"]), usage

    def _one_large(self, who: str, name: str, task: Operation) -> None:
        took, usage = self._large(who, name, task)
        self.samples.large_s[who, task].append(took)
        self.samples.costs[who, task].append(usage)

    def _one_small(self, who: str, task: Operation, count: int, place: tuple[Stored, str]) -> None:
        kind, address = place
        seconds = self.session.sizes.pool_small_seconds
        self.samples.small[who, task, count].append(self.callers.measure(kind, task, address, count, seconds).rate)

    def _in_turn(self, number: int, steps: list[Callable[[], None]]) -> None:
        first = number % len(steps)
        for step in (*steps[first:], *steps[:first]):
            settle()
            step()


def _result(session: Session, samples: Samples, held: int, memory: int, remarks: list[str]) -> SuiteResult:
    figures: list[Figure] = []
    targets: list[Target] = []
    reduced = session.sizes.reduced
    size = session.sizes.s3_bytes
    whos = [who for who in (OURS, CLIENT, PEER) if samples.large_s[who, "push"]]

    def add(name: str, unit: str, task: Operation, found: dict[str, tuple[float, ...]], least: float) -> None:
        limit = Limit(CLIENT, found[CLIENT])
        figures.extend(
            Figure(f"{name}, {who}", unit, found[who], limit=None if who == CLIENT else limit) for who in whos
        )
        for other, bound in ((CLIENT, least), (PEER, PEER_MIN)):
            if other in found and (other == CLIENT or task == "push"):
                ratios = tuple(one / two for one, two in zip(found[OURS], found[other], strict=True))
                text = f"{name}, {OURS} / {other}"
                targets.append(Target(MARK, text, "at least", bound, "x", ratios, f"{name}, {OURS}", reduced))

    for task in TASKS:
        rates = {who: megabytes_per_second(size, samples.large_s[who, task]) for who in whos}
        add(f"{S3_NAMES[task]} of {human_size(size)}", "MB/s", task, rates, LARGE_MIN)
    for count in CALLERS:
        for task in TASKS:
            found = {who: tuple(samples.small[who, task, count]) for who in whos}
            of = f"{count} caller{'s' * (count > 1)}"
            add(f"{S3_NAMES[task]} of {human_size(SMALL_BYTES)}, {of}", "/s", task, found, SMALL_MIN)
    for task in TASKS:
        for group in ("gateway", "pool"):
            costs = tuple(1e3 * one.cpu_s[group] for one in samples.costs[OURS, task])
            name = f"processor time of the {group}, {S3_NAMES[task]} of {human_size(size)}"
            figures.append(Figure(name, "ms", costs, "lower"))
    peak = (memory / MIB,)
    figures.append(Figure(f"connections answered, of {CONNECTIONS} held", "", (float(held),)))
    figures.append(Figure("peak memory of the gateway", "MiB", peak, "lower"))
    targets.append(Target(MARK, "connections held and answered", "at least", CONNECTIONS, "", (float(held),)))
    targets.append(Target(MARK, "peak memory of the gateway", "at most", MEMORY_MAX_MIB, "MiB", peak))
    return SuiteResult("s3", tuple(figures), tuple(targets), tuple(remarks))
