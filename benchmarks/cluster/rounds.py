"""Push and get of large files and pushes of small ones, by a pool, its limits and its peers in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from io import BufferedWriter
from pathlib import Path

from benchmarks.bare_relay import BareRelay
from benchmarks.cluster.samples import CLIENTS, LOST, SMALL_BYTES, Samples
from benchmarks.cluster_peers import ClusterPeer, Found
from benchmarks.cluster_processes import ClientProcess, Cluster
from benchmarks.measure import MIB, seconds_of
from benchmarks.plain_sockets import PlainSockets
from benchmarks.processes import started_together
from benchmarks.program_pools import ProgramPool, contexts_in
from benchmarks.session import Session, human_size, settle
from benchmarks.usage import Meter
from benchmarks.workload import USER, Digest, RandomContent, small_content
from taskworker import Client


class Rounds:
    """All stores that are measured in turn, running.

    Args:
        session: the run.
        root: a directory for the data.
        sources: a file for each round.
        bare: a bare relay.
        found: the peers.
        samples: where to add the measurements.
    """

    def __init__(
        self, session: Session, root: Path, sources: Sequence[Path], bare: BareRelay, found: Found, samples: Samples
    ) -> None:
        self._session, self._root, self._sources = session, root, sources
        self._bare, self._found, self._samples = bare, found, samples
        self._size = session.sizes.cluster_bytes

    def run(self) -> None:
        """Start the stores, and measure all rounds."""
        self._session.progress.step("starting the pools, the plain sockets and the clients")
        with contexts_in(self._root / "contexts"), ExitStack() as stack:
            self._healthy, self._degraded = Cluster(self._root / "healthy"), Cluster(self._root / "degraded")
            self._engine = Cluster(self._root / "engine", module="benchmarks.engine_process")
            self._started = ProgramPool(self._root / "started", (), joins=False)
            self._plain = PlainSockets(self._root)
            clients = [ClientProcess() for _ in range(CLIENTS)]
            pools = [self._healthy, self._degraded, self._engine]
            stack.enter_context(started_together([*pools, self._started, self._plain, *clients]))
            self._client, *_ = clients
            self._former = self._started_former(stack)
            self._survivor = self._without_workers(stack)
            self._warm_up(clients)
            for number in self._session.rounds(f"push and get of {human_size(self._size)}"):
                self._push(number)
                self._get(number)
                self._small(number)
                self._found.each(partial(self._peer, number))
                self._many_clients(number, clients)
            self._memory()

    # -- before the rounds -------------------------------------------------------------------------

    def _started_former(self, stack: ExitStack) -> Cluster | None:
        """Start a pool of another version of this repository, if one is to be compared with."""
        if self._session.before is None:
            return None
        return stack.enter_context(Cluster(self._root / "before", checkout=self._session.before))

    def _without_workers(self, stack: ExitStack) -> Client:
        """Fill a pool, kill two of its workers, and wait until it has noticed that; return a client of it."""
        pool, dead = self._degraded, self._degraded.workers[:LOST]
        survivor = stack.enter_context(Client(pool.address))
        for number in range(self._session.sizes.rounds):
            survivor.push(self._sources[number], filename=f"file-{number}", user_id=USER)
        self._client.run("connect", address=pool.address)
        self._client.run("get", address=pool.address, name="file-0")
        settle()
        pool.kill(*dead)
        first = self._client.run("get", address=pool.address, name="file-0")
        self._samples.pool.after_kill.append(first["took"])
        survivor.push(b"for all workers", filename="noticed", user_id=USER)
        pool.await_noticed(dead)
        content, received = RandomContent("cluster-0", self._size), Digest()
        found = survivor.find("file-0", user_id=USER)
        assert found is not None
        with BufferedWriter(received) as target:
            survivor.download(found.file_id, target, user_id=USER)
        if received.hasher.digest() != content.digest():
            raise AssertionError(f"without {LOST} workers, the pool returned other bytes than were pushed")
        pool.await_healed()
        return survivor

    def _warm_up(self, clients: Sequence[ClientProcess]) -> None:
        """Do everything once, so that the first round does not include the cost of first use."""
        warm = RandomContent("warm-up", self._size).write_to(self._root / "warm-up")
        connected = [each.begin("connect", address=self._healthy.address) for each in clients]
        for outcome in connected:
            outcome()
        pools: list[Cluster | ProgramPool] = [self._healthy, self._started, *([self._former] if self._former else [])]
        for pool in pools:
            self._client.run("connect", address=pool.address)
            self._client.run("push", address=pool.address, name="warm-up", source=warm)
            self._client.run("get", address=pool.address, name="warm-up")
            self._client.run("get_relayed", address=pool.address, name="warm-up")
        for number, each in enumerate(clients):
            each.run("push_random", address=self._healthy.address, name=f"warm-up-{number}", size=MIB)
            each.run("get", address=self._healthy.address, name="warm-up")
        self._client.run("push_small", address=self._healthy.address, series="warm-up", count=1, size=SMALL_BYTES)
        self._engine.run_in_pool("push", name="warm-up", source=warm)
        self._engine.run_in_pool("get", name="warm-up")
        self._plain.push(warm)
        self._plain.get()
        self._plain.forget()
        warm.unlink()

    # -- a round -----------------------------------------------------------------------------------

    def _push(self, number: int) -> None:
        source = self._sources[number]
        self._in_turn(
            number,
            partial(self._through_pool, self._healthy, "pool", "push", number, source=source),
            partial(self._through_pool, self._started, "started", "push", number, source=source),
            partial(self._by_engine, "push", number, source=source),
            partial(self._by_plain_sockets, "push", lambda: self._plain.push(source)),
            lambda: self._samples.bare.push.append(seconds_of(lambda: self._bare.push(source))),
            partial(self._through_former, "push", number, source=source),
        )

    def _get(self, number: int) -> None:
        self._in_turn(
            number,
            partial(self._through_pool, self._healthy, "pool", "get", number),
            partial(self._through_pool, self._started, "started", "get", number),
            partial(self._through_pool, self._healthy, "relayed", "get", number),
            partial(self._by_engine, "get", number),
            partial(self._by_plain_sockets, "get", self._plain.get),
            lambda: self._samples.bare.get.append(seconds_of(lambda: self._bare.get(self._size))),
            partial(self._through_former, "get", number),
            partial(self._degraded_get, number),
        )
        self._bare.forget()
        self._plain.forget()

    def _in_turn(self, number: int, *steps: Callable[[], None]) -> None:
        """Make the steps of a round. Each round begins with another one, as earlier ones may slow down later ones."""
        first = number % len(steps)
        for step in (*steps[first:], *steps[:first]):
            step()
            settle()

    def _through_pool(self, pool: Cluster | ProgramPool, who: str, task: str, number: int, **arguments: object) -> None:
        """Push or get a file through a pool, and add the time and the cost."""
        meter = Meter({"client": [self._client.pid], "pool": [pool.pool_pid], "workers": pool.worker_pids})
        name = "get_relayed" if who == "relayed" else task
        outcome, usage = meter.during(
            lambda: self._client.run(name, address=pool.address, name=f"file-{number}", **arguments)
        )
        series = getattr(self._samples, who)
        getattr(series, task).append(outcome["took"])
        self._samples.costs[who, task].add(usage, self._size)

    def _through_former(self, task: str, number: int, **arguments: object) -> None:
        if self._former is not None:
            self._through_pool(self._former, "before", task, number, **arguments)

    def _by_engine(self, task: str, number: int, **arguments: object) -> None:
        outcome = self._engine.run_in_pool(task, name=f"file-{number}", **arguments)
        getattr(self._samples.engine, task).append(outcome["took"])

    def _by_plain_sockets(self, task: str, action: Callable[[], float]) -> None:
        meter = Meter({"client": [self._plain.client_pid], "sinks": self._plain.sink_pids})
        seconds, usage = meter.during(action)
        getattr(self._samples.plain, task).append(seconds)
        self._samples.costs["plain", task].add(usage, self._size)

    def _degraded_get(self, number: int) -> None:
        outcome = self._client.run("get", address=self._degraded.address, name=f"file-{number}")
        self._samples.pool.degraded.append(outcome["took"])
        self._degraded.await_healed()  # healing uses the disk that the next measurements use

    def _small(self, number: int) -> None:
        count, samples = self._session.sizes.cluster_small_pushes, self._samples
        arguments = {"address": self._healthy.address, "series": f"file-{number}", "count": count, "size": SMALL_BYTES}
        settle()
        samples.pool.small.append(self._client.run("push_small", **arguments)["took"])
        settle()
        samples.plain.small.append(self._plain.write_small(count))
        settle()
        contents = [small_content(f"bare-{number}", index, SMALL_BYTES) for index in range(count)]
        samples.bare.small.append(seconds_of(lambda: self._put_each(contents)))
        settle()

    def _put_each(self, contents: Sequence[bytes]) -> None:
        for content in contents:
            self._bare.put(content)

    def _peer(self, number: int, peer: ClusterPeer) -> None:
        into = self._samples.peers[peer.name]
        into.push.append(peer.push(self._sources[number]))
        settle()
        into.get.append(peer.get())
        into.small.append(peer.push_small(f"peer-{number}", self._session.sizes.cluster_small_pushes, SMALL_BYTES))
        settle()

    def _many_clients(self, number: int, clients: Sequence[ClientProcess]) -> None:
        """Push and get the same number of bytes with one client process, then with all of them at the same time."""
        samples, address, share = self._samples, self._healthy.address, self._size // len(clients)
        first = clients[0]
        settle()
        alone = first.run("push_random", address=address, name=f"alone-{number}", size=share * len(clients))
        samples.alone["push"].append(alone["seconds"])
        settle()
        wanted: list[dict[str, object]] = [
            {"address": address, "name": f"together-{number}-{index}"} for index in range(len(clients))
        ]
        pushes = [each | {"size": share} for each in wanted]
        samples.together["push"].append(_seconds_of_all(clients, "push_random", pushes))
        settle()
        samples.alone["get"].append(first.run("get", address=address, name=f"alone-{number}")["seconds"])
        samples.together["get"].append(_seconds_of_all(clients, "get", wanted))

    # -- after the rounds --------------------------------------------------------------------------

    def _memory(self) -> None:
        """Measure peak memory with a large file. The pool's peak also includes the rounds before."""
        size, pool = self._session.sizes.cluster_memory_bytes, self._healthy
        self._session.progress.step(f"push and get of {human_size(size)} by a client in a process of its own")
        source = RandomContent("cluster-memory", size).write_to(self._root / "large")
        with ClientProcess() as client:
            floor = client.run("connect", address=pool.address)["peak_resident"] / MIB
            client.run("push", address=pool.address, name="large", source=source)
            outcome = client.run("get", address=pool.address, name="large")
        self._samples.peaks["client"].append((outcome["peak_resident"] / MIB, floor))
        self._samples.peaks["pool"].append((pool.pool_peak / MIB, pool.idle_peak / MIB))
        source.unlink()


def _seconds_of_all(clients: Sequence[ClientProcess], task: str, arguments: Sequence[dict[str, object]]) -> float:
    def action() -> None:
        pairs = zip(clients, arguments, strict=True)
        for outcome in [each.begin(task, **wanted) for each, wanted in pairs]:
            outcome()

    return seconds_of(action)
