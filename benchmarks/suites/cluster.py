"""A 4-of-6 pool with six workers: push, get, loss and repair, compared with a bare relay of the same bytes and hops."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import BufferedWriter
from pathlib import Path

from benchmarks import cluster_peers
from benchmarks.bare_relay import BareRelay
from benchmarks.cluster_peers import ClusterPeer, Found
from benchmarks.cluster_processes import POLL_S, SETTLED_TIMEOUT_S, ClientProcess, Cluster
from benchmarks.measure import MIB, Better, Figure, Limit, SuiteResult, Target, megabytes_per_second, rate, seconds_of
from benchmarks.processes import TaskFailed, started_together
from benchmarks.session import Session, human_size, settle
from benchmarks.workload import USER, Digest, Discard, RandomContent, small_content
from taskworker import Client
from taskworker.client.pool import PoolClient, PoolStatus

SMALL_BYTES = 4096
CLIENTS = 8
LOST = 2
LEASE_S = 1.0
RATIO_MIN = 0.5
DEGRADED_MIN = 0.7
CLIENTS_MIN = 0.9
BESIDE_MIN = 0.7
VERIFY_MAX = 1.1
_FILLED = 4  # files pushed first, so that shards are still being moved when push and get are done
POOL_MIB_MAX = 300
CLIENT_MIB_MAX = 150
MARK = "h"
PUSH_LIMIT = "bare relay: 1 MiB messages to it, 1.5x the bytes on to six sinks that write and fsync"
GET_LIMIT = "bare relay: 1 MiB messages from four sinks to it, and on to the client"
SMALL_LIMIT = "bare relay: a call to it, then one to each of six sinks that write a quarter and fsync"
MEND_LIMIT = "bare relay: reads the bytes from four sinks, writes a quarter of them to two that fsync"
TRUSTING_LIMIT = "the same by a pool that takes its workers at their word"
QUIET_LIMIT = "the same on the same pool with nothing else going on"
ALONE_LIMIT = "the same bytes by one such client"

FACTORS = {
    "Tahoe-LAFS": {"push": 5.0, "get": 10.0, "small": 20.0, "repair": 5.0},
    "GlusterFS": {"push": 1.5, "get": 1.5, "small": 1.0},
}
"""How many times faster than a peer the pool has to be."""


@dataclass(slots=True)
class Series:
    """Seconds by round for one store: the pool, the bare relay, or a peer."""

    push: list[float] = field(default_factory=list)
    get: list[float] = field(default_factory=list)
    degraded: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    repair: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Samples:
    """All measurements of the suite."""

    pool: Series = field(default_factory=Series)
    bare: Series = field(default_factory=Series)
    peers: defaultdict[str, Series] = field(default_factory=lambda: defaultdict(Series))
    alone: dict[str, list[float]] = field(default_factory=lambda: {"push": [], "get": []})
    together: dict[str, list[float]] = field(default_factory=lambda: {"push": [], "get": []})
    quiet: dict[str, list[float]] = field(default_factory=lambda: {"push": [], "get": []})
    beside: dict[str, list[float]] = field(default_factory=lambda: {"push": [], "get": []})
    """Seconds in a quiet pool (``quiet``), and while shards are moved off a worker (``beside``)."""
    verifying: dict[str, list[float]] = field(default_factory=lambda: {"repair": [], "move": []})
    trusting: dict[str, list[float]] = field(default_factory=lambda: {"repair": [], "move": []})
    """Seconds to repair a loss and to drain a worker, with reading back what was written, and without."""
    kill_to_whole: list[float] = field(default_factory=list)
    peaks: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Peak memory in MiB, at the end and before the first byte."""


def run(session: Session) -> SuiteResult:
    """Measure a healthy pool and one without two of its workers, then background work, repair and verification."""
    samples = Samples()
    with ExitStack() as stack:
        root = stack.enter_context(session.scratch("cluster"))
        session.progress.step("starting the bare relay" + (" and the peers" if session.peers else ""))
        bare = stack.enter_context(BareRelay(root))
        found = cluster_peers.start(root) if session.peers else Found([], [])
        for peer in found.peers:
            stack.callback(peer.close)
        sources = _sources(session, root)
        _rounds(session, root, sources, bare, found, samples)
        _beside_background_work(session, samples)
        _repairs(session, sources, bare, found, samples)
        _verifying(session, sources, samples)
    return result_of(session, samples, found)


def _sources(session: Session, root: Path) -> list[Path]:
    """Make a file for each round, as content that the pool already has would not be sent again."""
    session.progress.step("making the files")
    size = session.sizes.cluster_bytes
    count = max(session.sizes.rounds, session.sizes.cluster_repairs)
    return [RandomContent(f"cluster-{number}", size).write_to(root / f"source-{number}") for number in range(count)]


# -- healthy and degraded --------------------------------------------------------------------------


def _rounds(
    session: Session,
    root: Path,
    sources: list[Path],
    bare: BareRelay,
    found: Found,
    samples: Samples,
) -> None:
    session.progress.step("starting two pools and the clients")
    with ExitStack() as stack:
        healthy, degraded = Cluster(root / "healthy"), Cluster(root / "degraded")
        clients = [ClientProcess() for _ in range(CLIENTS)]
        stack.enter_context(started_together([healthy, degraded, *clients]))
        client = stack.enter_context(Client(healthy.address))
        survivor = stack.enter_context(Client(degraded.address))
        for connected in [each.begin("connect", address=healthy.address) for each in clients]:
            connected()
        for number in range(session.sizes.rounds):
            survivor.push(sources[number], filename=f"file-{number}", user_id=USER)
        degraded.kill(*degraded.workers[:LOST])
        _check(survivor, "file-0", session.sizes.cluster_bytes)
        _warm_up(client, session.sizes.cluster_bytes)
        for number in session.rounds(f"push and get of {human_size(session.sizes.cluster_bytes)}"):
            _round(session, number, sources[number], client, degraded, survivor, bare, samples)
            found.each(partial(_peer_round, session, number, sources[number], samples))
            _many_clients(session, number, healthy, clients, samples)
        _memory(session, root, healthy, samples)


def _round(
    session: Session,
    number: int,
    source: Path,
    client: Client,
    degraded: Cluster,
    survivor: Client,
    bare: BareRelay,
    samples: Samples,
) -> None:
    name, size = f"file-{number}", session.sizes.cluster_bytes
    samples.pool.push.append(seconds_of(lambda: client.push(source, filename=name, user_id=USER)))
    settle()
    samples.bare.push.append(seconds_of(lambda: bare.push(source)))
    settle()
    samples.pool.get.append(_seconds_of_get(client, name))
    samples.bare.get.append(seconds_of(lambda: bare.get(size)))
    samples.pool.degraded.append(_seconds_of_get(survivor, name))
    degraded.await_healed()  # healing uses the disk that the next measurements use
    bare.forget()
    contents = [small_content(name, index, SMALL_BYTES) for index in range(session.sizes.cluster_small_pushes)]
    settle()
    samples.pool.small.append(seconds_of(lambda: _push_each(client, name, contents)))
    settle()
    samples.bare.small.append(seconds_of(lambda: _put_each(bare, contents)))
    settle()


def _peer_round(session: Session, number: int, source: Path, samples: Samples, peer: ClusterPeer) -> None:
    into = samples.peers[peer.name]
    into.push.append(peer.push(source))
    settle()
    into.get.append(peer.get())
    into.small.append(peer.push_small(f"peer-{number}", session.sizes.cluster_small_pushes, SMALL_BYTES))
    settle()


def _warm_up(client: Client, size: int) -> None:
    """Do everything once, so that the first round does not include the cost of first use."""
    client.push(RandomContent("warm-up", size).pieces(), filename="warm-up", user_id=USER)
    _seconds_of_get(client, "warm-up")
    _push_each(client, "warm-up", [small_content("warm-up", 0, SMALL_BYTES)])


def _push_each(client: Client, series: str, contents: list[bytes]) -> None:
    for index, content in enumerate(contents):
        client.push(content, filename=f"{series}/{index}", user_id=USER)


def _put_each(bare: BareRelay, contents: list[bytes]) -> None:
    for content in contents:
        bare.put(content)


def _seconds_of_get(client: Client, name: str) -> float:
    found = client.find(name, user_id=USER)
    assert found is not None
    return seconds_of(lambda: client.download(found.file_id, BufferedWriter(Discard()), user_id=USER))


def _check(client: Client, name: str, size: int) -> None:
    """Read a file once, untimed, and check its content by its digest."""
    content = RandomContent("cluster-0", size)
    received = Digest()
    found = client.find(name, user_id=USER)
    assert found is not None
    with BufferedWriter(received) as target:
        client.download(found.file_id, target, user_id=USER)
    if received.hasher.digest() != content.digest():
        raise AssertionError(f"without {LOST} workers, the pool returned other bytes than were pushed")


def _many_clients(
    session: Session, number: int, pool: Cluster, clients: Sequence[ClientProcess], samples: Samples
) -> None:
    """Push and get the same number of bytes with one client process, then with all of them at the same time."""
    size = session.sizes.cluster_bytes
    share = size // len(clients)
    first = clients[0]
    settle()
    alone = first.run("push_random", address=pool.address, name=f"alone-{number}", size=share * len(clients))
    samples.alone["push"].append(alone["seconds"])
    settle()
    wanted: list[dict[str, object]] = [
        {"address": pool.address, "name": f"together-{number}-{index}"} for index in range(len(clients))
    ]
    pushes = [each | {"size": share} for each in wanted]
    samples.together["push"].append(_seconds_of_all(clients, "push_random", pushes))
    settle()
    samples.alone["get"].append(first.run("get", address=pool.address, name=f"alone-{number}")["seconds"])
    samples.together["get"].append(_seconds_of_all(clients, "get", wanted))


def _seconds_of_all(clients: Sequence[ClientProcess], task: str, arguments: Sequence[dict[str, object]]) -> float:
    def action() -> None:
        pairs = zip(clients, arguments, strict=True)
        for outcome in [each.begin(task, **wanted) for each, wanted in pairs]:
            outcome()

    return seconds_of(action)


def _memory(session: Session, root: Path, pool: Cluster, samples: Samples) -> None:
    """Measure peak memory with a large file. The pool's peak also includes the rounds before."""
    size = session.sizes.cluster_memory_bytes
    session.progress.step(f"push and get of {human_size(size)} by a client in a process of its own")
    source = RandomContent("cluster-memory", size).write_to(root / "large")
    with ClientProcess() as client:
        floor = client.run("connect", address=pool.address)["peak_resident"] / MIB
        for task in ("push", "get"):
            arguments = {"source": source} if task == "push" else {}
            outcome = client.run(task, address=pool.address, name="large", **arguments)
    samples.peaks["client"] = (outcome["peak_resident"] / MIB, floor)
    samples.peaks["pool"] = (pool.pool_memory.resident / MIB, pool.idle_memory.resident / MIB)
    source.unlink()


# -- beside background work -----------------------------------------------------------------------


def _beside_background_work(session: Session, samples: Samples) -> None:
    """Alternate push and get on the pool while it is quiet, and while it moves the shards of a drained worker."""
    session.progress.step("filling a pool whose shards are to be moved")
    size = session.sizes.cluster_bytes
    with session.scratch("cluster-work") as home, Cluster(home) as pool, ClientProcess() as client:
        client.run("connect", address=pool.address)
        for number in range(_FILLED):
            client.run("push_random", address=pool.address, name=f"filled-{number}", size=size)
        with PoolClient(pool.address) as operator:
            for number in session.rounds("push and get beside background work"):
                drained = pool.workers[number % len(pool.workers)]
                for cancel in (False, True):  # shards move off the worker, and back
                    name = f"{number}-{cancel}"
                    _push_and_get(client, pool, f"quiet-{name}", size, samples.quiet)
                    operator.drain(drained, cancel=cancel)
                    _await(operator, lambda status: _state_of(status, "rebalance") == "running")
                    _push_and_get(client, pool, f"beside-{name}", size, samples.beside)
                    status = operator.status()
                    if status is None or not status.is_mending:
                        raise AssertionError("the pool finished moving shards before the client was done")
                    _await(operator, lambda status: not status.is_mending)


def _push_and_get(client: ClientProcess, pool: Cluster, name: str, size: int, into: dict[str, list[float]]) -> None:
    settle()
    into["push"].append(client.run("push_random", address=pool.address, name=name, size=size)["seconds"])
    into["get"].append(client.run("get", address=pool.address, name=name)["seconds"])


def _state_of(status: PoolStatus, name: str) -> str:
    return next(work.state for work in status.work if work.name == name)


def _await(operator: PoolClient, wanted: Callable[[PoolStatus], bool]) -> None:
    until = time.monotonic() + SETTLED_TIMEOUT_S
    while (status := operator.status()) is None or not wanted(status):
        if time.monotonic() > until:
            raise TaskFailed(f"the pool did not reach the expected state: {status}")
        time.sleep(POLL_S)


# -- repair ----------------------------------------------------------------------------------------


def _repairs(session: Session, sources: list[Path], bare: BareRelay, found: Found, samples: Samples) -> None:
    """Repair fresh pools with one file each: kill one worker, and wait until the other five have all shards."""
    count = session.sizes.cluster_repairs
    with session.progress.counted(f"repairs of {human_size(session.sizes.cluster_bytes)}", count) as counter:
        for number in range(count):
            with session.scratch("cluster-repair") as home, Cluster(home, LEASE_S) as pool:
                with Client(pool.address) as client:
                    client.push(sources[number], filename="file", user_id=USER)
                settle()
                _repair(pool, samples)
            bare.push(sources[number])
            settle()
            samples.bare.repair.append(seconds_of(lambda: bare.mend(session.sizes.cluster_bytes)))
            bare.forget()
            found.each(partial(_peer_repair, sources[number], samples))
            counter.advance()


def _peer_repair(source: Path, samples: Samples, peer: ClusterPeer) -> None:
    if peer.repairs:
        peer.push(source)
        settle()
        samples.peers[peer.name].repair.append(peer.repair())


def _repair(pool: Cluster, samples: Samples) -> None:
    lost, *left = pool.workers
    killed = time.time()
    pool.kill(lost)
    pool.await_settled(left)
    whole = time.time()
    samples.kill_to_whole.append(whole - killed)
    samples.pool.repair.append(whole - pool.lost_at(lost))


# -- the cost of verifying what workers store -------------------------------------------------------


def _verifying(session: Session, sources: list[Path], samples: Samples) -> None:
    """Alternate a pool that reads back what it writes and one that does not. Each loses a worker and drains one."""
    count = session.sizes.cluster_repairs
    pools = (("benchmarks.pool_process", samples.verifying), ("benchmarks.trusting_pool_process", samples.trusting))
    with session.progress.counted("repairs and drains with verification and without", 2 * count) as counter:
        for number in range(count):
            for module, into in pools if number % 2 == 0 else pools[::-1]:
                with session.scratch("cluster-verify") as home, Cluster(home, LEASE_S, module) as pool:
                    with Client(pool.address) as client:
                        client.push(sources[number], filename="file", user_id=USER)
                    settle()
                    lost, drained, *left = pool.workers
                    pool.kill(lost)
                    pool.await_settled([drained, *left])
                    into["repair"].append(time.time() - pool.lost_at(lost))
                    settle()
                    with PoolClient(pool.address) as operator:
                        into["move"].append(seconds_of(partial(_drain, operator, pool, drained, left)))
                counter.advance()


def _drain(operator: PoolClient, pool: Cluster, drained: str, left: list[str]) -> None:
    operator.drain(drained)
    pool.await_settled(left)


# -- the outcome -----------------------------------------------------------------------------------


def result_of(session: Session, samples: Samples, found: Found) -> SuiteResult:
    """Compute figures and targets from the samples."""
    sizes = session.sizes
    push, get, degraded, *_ = own = _figures(session, "pool", samples.pool, samples)
    whole = Figure(
        "pool: from the kill to full redundancy",
        "s",
        tuple(samples.kill_to_whole),
        "lower",
        Limit(MEND_LIMIT, tuple(samples.bare.repair)),
        f"with the {LEASE_S:g} s that a silent worker passes for a living one",
    )
    slower = tuple(mine / other for mine, other in zip(degraded.samples, get.samples, strict=True))
    targets = [
        _target("push / bare relay", RATIO_MIN, push.ratios, push, session),
        _target("get / bare relay", RATIO_MIN, get.ratios, get, session),
        _target(f"get with {LOST} of 6 workers dead / healthy get", DEGRADED_MIN, slower, degraded, session),
    ]
    figures = [*own, whole]
    for peer in found.peers:
        others = _figures(session, peer.name, samples.peers[peer.name], samples, peer.note)
        figures += others
        targets += _peer_targets(session, peer.name, samples)
    for task in ("push", "get"):
        amount = sizes.cluster_bytes // CLIENTS * CLIENTS
        alone = Limit(ALONE_LIMIT, megabytes_per_second(amount, samples.alone[task]))
        rates = megabytes_per_second(amount, samples.together[task])
        figure = Figure(f"pool: {CLIENTS} clients {task} {human_size(amount)} in all", "MB/s", rates, limit=alone)
        figures.append(figure)
        targets.append(_target(f"{task} by {CLIENTS} clients / by one", CLIENTS_MIN, figure.ratios, figure, session))
    for task in ("push", "get"):
        quiet = Limit(QUIET_LIMIT, megabytes_per_second(sizes.cluster_bytes, samples.quiet[task]))
        rates = megabytes_per_second(sizes.cluster_bytes, samples.beside[task])
        name = f"pool: {task} {human_size(sizes.cluster_bytes)} while shards are moved off a worker"
        figure = Figure(name, "MB/s", rates, limit=quiet)
        figures.append(figure)
        text = f"{task} beside background work / without"
        targets.append(_target(text, BESIDE_MIN, figure.ratios, figure, session))
    for task, text in (("repair", "repair after the loss of one worker"), ("move", "moving a drained worker's shards")):
        without = Limit(TRUSTING_LIMIT, tuple(samples.trusting[task]))
        name = f"pool: verify before drop, {text}, {human_size(sizes.cluster_bytes)}"
        figure = Figure(name, "s", tuple(samples.verifying[task]), "lower", without)
        figures.append(figure)
        ratios = [with_it / other for with_it, other in zip(figure.samples, without.samples, strict=True)]
        text = f"{text}: with verification / without"
        targets.append(Target(MARK, text, "at most", VERIFY_MAX, "x", tuple(ratios), name, sizes.reduced))
    for who, bound in (("pool", POOL_MIB_MAX), ("client", CLIENT_MIB_MAX)):
        peak, floor = samples.peaks[who]
        name = f"{who}: push and get of {human_size(sizes.cluster_memory_bytes)}"
        before = Limit(f"the same {who} before its first byte", (floor,))
        note = "all the rounds and clients above included" if who == "pool" else ""
        figure = Figure(name, "MiB", (peak,), "lower", before, note)
        figures.append(figure)
        targets.append(Target(MARK, f"peak memory of the {who}", "at most", bound, "MiB", (peak,), name, sizes.reduced))
    remarks = (
        "Pool, workers and clients are processes on one machine, which shares its processors among all of them.",
        "Repair is timed from when the pool gives the worker up. Peaks are VmHWM, mapped files included.",
        *found.remarks,
    )
    return SuiteResult("cluster", tuple(figures), tuple(targets), remarks)


def _figures(session: Session, who: str, series: Series, samples: Samples, note: str = "") -> list[Figure]:
    """Return the figures of one store, with the bare relay as the limit."""
    sizes = session.sizes
    size, label, count = sizes.cluster_bytes, human_size(sizes.cluster_bytes), sizes.cluster_small_pushes
    bare = samples.bare
    stream_up = Limit(PUSH_LIMIT, megabytes_per_second(size, bare.push))
    stream_down = Limit(GET_LIMIT, megabytes_per_second(size, bare.get))
    calls = Limit(SMALL_LIMIT, rate(count, bare.small))
    mend = Limit(MEND_LIMIT, tuple(bare.repair))
    wanted: list[tuple[str, str, Sequence[float], Limit, Better]] = [
        (f"push {label}", "MB/s", megabytes_per_second(size, series.push), stream_up, "higher"),
        (f"get {label}", "MB/s", megabytes_per_second(size, series.get), stream_down, "higher"),
        (
            f"get {label}, {LOST} of 6 workers dead",
            "MB/s",
            megabytes_per_second(size, series.degraded),
            stream_down,
            "higher",
        ),
        ("pushes of 4 KiB, one after another", "/s", rate(count, series.small), calls, "higher"),
        (f"repair of {label} after the loss of one worker", "s", series.repair, mend, "lower"),
    ]
    return [
        Figure(f"{who}: {name}", unit, tuple(found), better, limit, note)
        for name, unit, found, limit, better in wanted
        if found
    ]


def _peer_targets(session: Session, name: str, samples: Samples) -> list[Target]:
    texts = {"push": "push", "get": "get", "small": "pushes of 4 KiB", "repair": "repair of one lost worker"}
    mine, theirs = samples.pool, samples.peers[name]
    targets = []
    for task, factor in FACTORS[name].items():
        pairs = zip(getattr(theirs, task), getattr(mine, task), strict=True)
        faster = tuple(other / own for other, own in pairs)
        text, growing = f"{texts[task]}, times faster than {name}", task == "repair"
        reduced = session.sizes.reduced
        targets.append(Target(MARK, text, "at least", factor, "x", faster, "", reduced, needs_full_size=growing))
    return targets


def _target(text: str, bound: float, samples: Sequence[float], figure: Figure, session: Session) -> Target:
    return Target(MARK, text, "at least", bound, "x", tuple(samples), figure.name, session.sizes.reduced)
