"""The S3 gateway of a 4-of-6 pool: objects through it, beside the pool's own client, and SeaweedFS's S3 gateway.

Requests are signed, and their bodies are not (UNSIGNED-PAYLOAD), as programs do over TLS. The client of S3 does as
little as possible: the kernel sends files, and what is received is discarded.

Large objects also pass through a plain relay, which shows what the hop from the client's process to another one costs,
and through a gateway with random entity tags, which needs no MD5.
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
QUICK, RELAY = "the gateway without MD5", "the client behind a plain socket"
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
        quick = Gateway(root / "quick", cluster.address, "--entity-tags", "random")
        client, direct, callers = ClientProcess("benchmarks.s3_gateway"), ClientProcess(), Callers()
        relay = ClientProcess("benchmarks.client_relay")
        stack.enter_context(started_together([gateway, quick, client, direct, relay, callers]))
        peer = _peer(session, root, stack, remarks)
        relayed = str(relay.run("serve", pool=cluster.address)["address"])
        places = {OURS: gateway.address, QUICK: quick.address, RELAY: relayed, **({PEER: peer} if peer else {})}
        measured = _Measured(session, root, cluster, gateway, client, direct, callers, places, samples)
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
    places: dict[str, str]
    """Addresses of all but the pool's client."""
    samples: Samples

    def warm_up(self) -> None:
        """Do everything once, so that the first round does not include the cost of first use."""
        self.direct.run("connect", address=self.cluster.address)
        self.client.run("connect_relay", address=self.places[RELAY])
        for who in (OURS, QUICK, PEER):
            if who in self.places:  # both gateways have the same buckets
                self.client.run("connect", address=self.places[who], makes_bucket=who != QUICK)
        for task in TASKS:
            for who in self._large_whos(task):
                self._large(who, WARM, task)
        for kind, address in self._small_places():
            self.callers.fill(kind, address, self.session.sizes.pool_small_files)

    def round(self, number: int) -> None:
        """Measure everything once, beginning with another one each time."""
        for task in TASKS:
            whos = self._large_whos(task)
            self._in_turn(number, [partial(self._one_large, who, f"object-{number}", task) for who in whos])
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
        return [OURS, CLIENT, *([PEER] if PEER in self.places else [])]

    def _large_whos(self, task: Operation) -> list[str]:
        return [*self._whos(), RELAY, *([QUICK] if task == "push" else [])]

    def _small_places(self) -> list[tuple[Stored, str]]:
        places: list[tuple[Stored, str]] = [("s3", self.gateway.address), ("pool", self.cluster.address)]
        return [*places, ("s3", self.places[PEER])] if PEER in self.places else places

    def _large(self, who: str, name: str, task: Operation) -> tuple[float, Usage]:
        """Store or get a large object; return the seconds, and what it cost.

        Everyone's content is another one, as a pool stores what it has already faster.
        """
        more = {"source": source_of(self.root, f"{name}-{who}", self.session.sizes.s3_bytes)} if task == "push" else {}
        settle()
        if who == CLIENT:
            act = partial(self.direct.run, task, address=self.cluster.address, name=f"direct/{name}", **more)
        else:
            act_name = f"{S3_NAMES[task]}_relayed" if who == RELAY else S3_NAMES[task]
            of = {RELAY: "relay/", QUICK: "quick/"}.get(who, "")
            act = partial(self.client.run, act_name, address=self.places[who], name=of + name, **more)
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


class _Report:
    """The figures and targets of a run.

    Args:
        reduced: whether sizes are smaller than those that targets are about.
    """

    def __init__(self, *, reduced: bool) -> None:
        self._reduced = reduced
        self.figures: list[Figure] = []
        self.targets: list[Target] = []

    def add(self, name: str, unit: str, task: Operation, found: dict[str, tuple[float, ...]], least: float) -> None:
        """Add what everyone reached, and the bounds of ratios to the pool's client and to the peer."""
        limit = Limit(CLIENT, found[CLIENT])
        self.figures += [
            Figure(f"{name}, {who}", unit, found[who], limit=None if who == CLIENT else limit) for who in found
        ]
        if RELAY in found:
            relayed = Limit(RELAY, found[RELAY])
            self.figures.append(Figure(f"{name}, {OURS}, beside {RELAY}", unit, found[OURS], limit=relayed))
        self._require(name, found, OURS, CLIENT, least)
        if QUICK in found:
            self._require(name, found, QUICK, CLIENT, least)
        if PEER in found and task == "push":
            self._require(name, found, OURS, PEER, PEER_MIN)

    def _require(self, name: str, found: dict[str, tuple[float, ...]], who: str, other: str, least: float) -> None:
        ratios = tuple(one / two for one, two in zip(found[who], found[other], strict=True))
        text = f"{name}, {who} / {other}"
        self.targets.append(Target(MARK, text, "at least", least, "x", ratios, f"{name}, {who}", self._reduced))


def _result(session: Session, samples: Samples, held: int, memory: int, remarks: list[str]) -> SuiteResult:
    report = _Report(reduced=session.sizes.reduced)
    figures, targets = report.figures, report.targets
    size = session.sizes.s3_bytes
    whos = [who for who in (OURS, CLIENT, PEER) if samples.large_s[who, "push"]]
    for task in TASKS:
        large_whos = [*whos, RELAY, *([QUICK] if task == "push" else [])]
        rates = {who: megabytes_per_second(size, samples.large_s[who, task]) for who in large_whos}
        report.add(f"{S3_NAMES[task]} of {human_size(size)}", "MB/s", task, rates, LARGE_MIN)
    for count in CALLERS:
        for task in TASKS:
            found = {who: tuple(samples.small[who, task, count]) for who in whos}
            of = f"{count} caller{'s' * (count > 1)}"
            report.add(f"{S3_NAMES[task]} of {human_size(SMALL_BYTES)}, {of}", "/s", task, found, SMALL_MIN)
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
