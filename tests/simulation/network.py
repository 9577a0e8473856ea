"""The network between the pool and its workers. Whoever waits lets it act, one step after another."""

from __future__ import annotations

import heapq
import math
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Protocol

from storage.runtime import Runtime
from storage.shards import VolumeFailed
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shard_calls import Lane
from taskworker.transport.shard_service import Dialling
from taskworker.transport.wire.connection import Connection
from tests.simulation.clock import Clock
from tests.simulation.links import ClientStream, Link
from tests.simulation.servers import Server

TIMEOUT_S = 1.0  # shorter than a lease
_TICK_S = 0.25
_LOOK_S = 10.0
_WAIT_S_MAX = 3000.0  # nobody waits longer than for a walk over a worker's volume


class PoolCrashed(BaseException):
    """The pool's process has crashed. Everything that it still tries to do raises this."""


class Actor(Protocol):
    """Something that may happen."""

    queued: bool
    lane: int

    def act(self) -> bool:
        """Let it happen; return False if there is nothing."""


class Network:
    """Processes of workers by address, the connections to them, and events scheduled for later calls.

    Args:
        rng: decides what happens next.
        clock: advances when nothing else can happen.

    Attributes:
        servers: the worker's process at each address.
        calls: number of calls that have arrived so far.
        calls_of_pool: how many of them were the pool's; others are those of workers.
        lost_requests: by address, how many of the next calls fail without effect.
        lost_replies: by address, how many of the next calls take effect but fail.
        now_s: monotonic seconds.
        random: a number from 0 up to 1.
        injected: faults that have happened, by kind; see :class:`tests.simulation.faults.Faults`.
        lazy: appends arrive only when nothing else can happen.
        punctual: no frame is late.
        bugs: what went wrong in a worker's process without being noticed.
    """

    def __init__(self, rng: Random, clock: Clock) -> None:
        self.servers: dict[str, Server] = {}
        self.calls = self.calls_of_pool = 0
        self.lost_requests: Counter[str] = Counter()
        self.lost_replies: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.rng = rng
        self.now_s = clock.monotonic_s
        self.lazy = False
        self.punctual = True
        self.bugs: list[Exception] = []
        self.random = rng.random
        self._clock = clock
        self._due: list[tuple[int, Callable[[], None]]] = []
        self._ready: list[Actor] = []
        self._later: list[tuple[float, int, Actor]] = []
        self._order = count()
        self._links: dict[int, Link] = {}
        self._look_s = 0.0

    # -- chance and time -------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """Whether something happens that is so likely."""
        return self.random() < probability

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1."""
        return int(self.random() * limit)

    def some_of(self, number: int) -> int:
        """How many of so many bytes arrive before something ends: often all or none."""
        if not number or self.chance(0.4):
            return 0
        return number if self.chance(0.6) else self.below(number)

    # -- events ----------------------------------------------------------------------------------

    def after_calls(self, count: int, what: Callable[[], None]) -> None:
        """Schedule ``what`` just before the arrival of the ``count``-th call from now."""
        self._due.append((self.calls + count, what))

    def happen(self) -> bool:
        """Count a call, and run all events that are due; return whether there were any."""
        self.calls += 1
        if not self._due:
            return False
        happened = False
        while self._due and (at := min(self._due, key=lambda due: due[0]))[0] <= self.calls:
            self._due.remove(at)
            at[1]()
            happened = True
        return happened

    def forget_due(self) -> None:
        """Drop all scheduled events."""
        self._due.clear()
        self.lost_requests.clear()
        self.lost_replies.clear()

    def loses_request(self, address: str) -> bool:
        """Whether the call that arrives at an address now is lost instead."""
        if not self.lost_requests.get(address):
            return False
        self.lost_requests[address] -= 1
        self.injected["request lost"] += 1
        return True

    def loses_reply(self, address: str) -> bool:
        """Whether the answer to the call that arrives at an address now will be lost."""
        if not self.lost_replies.get(address):
            return False
        self.lost_replies[address] -= 1
        return True

    # -- connections -----------------------------------------------------------------------------

    def dial(self, process: Process, address: str) -> ClientStream:
        """Connect to a worker's process.

        Raises:
            ConnectionRefusedError: it cannot be reached.
        """
        server = self.servers.get(address)
        if server is None or not server.reachable:
            raise ConnectionRefusedError
        link = Link(self, process, server, next(self._order))
        server.accept(link)
        self._links[link.number] = link
        return link.stream

    def dialling(self, process: WorkerProcess) -> Dialling:
        """How a worker's process reaches other workers."""
        return Dialling(process, process.dial, WorkerRuntime(process))

    def process_of_worker(self) -> WorkerProcess:
        """A process that calls other workers."""
        return WorkerProcess(self)

    def forget(self, link: Link) -> None:
        """Note that the pool has left a connection."""
        self._links.pop(link.number, None)

    # -- acting ----------------------------------------------------------------------------------

    def queue(self, actor: Actor) -> None:
        """Let something happen at the next opportunity, or at a later one."""
        if not actor.queued:
            actor.queued = True
            self._ready.append(actor)

    def queue_later(self, at_s: float, actor: Actor) -> None:
        """Let something happen from this time on."""
        heapq.heappush(self._later, (at_s, next(self._order), actor))

    def step(self) -> bool:
        """Let one thing happen; return False if nothing can."""
        if self.bugs:
            raise self.bugs.pop(0)
        ready, random = self._ready, self.random
        while ready:
            at = int(random() * len(ready)) if not self.lazy else self._laziest()
            actor = ready[at]
            if actor.act():
                return True
            actor.queued = False
            ready[at] = ready[-1]
            ready.pop()
        return False

    def _laziest(self) -> int:
        return next((at for at, actor in enumerate(self._ready) if actor.lane != Lane.APPENDS), 0)

    def flow(self) -> None:
        """Let everything happen that can."""
        self._wake()
        while self.step():
            pass
        if self.now_s() >= self._look_s:
            self._tick()

    def idle(self, until_s: float) -> None:
        """Let time pass, as nothing can happen now, until something can, or somebody has to look at the clock."""
        now_s = self.now_s()
        at_s = min(until_s, now_s + _TICK_S)
        if self._later:
            at_s = min(at_s, self._later[0][0])
        self._clock.advance(max(0.0, at_s - now_s))
        self.pass_a_moment()
        if not self._wake():
            self._tick()

    def pass_a_moment(self) -> None:
        """Let a microsecond pass."""
        self._clock.advance(1e-6)

    def _wake(self) -> bool:
        woken = False
        while self._later and self._later[0][0] <= self.now_s():
            self.queue(heapq.heappop(self._later)[2])
            woken = True
        return woken

    def _tick(self) -> None:
        """Let everybody look at the clock."""
        for link in list(self._links.values()):
            if link.connection is not None:
                link.connection.tick()
        if self.now_s() >= self._look_s:
            self._look_s = self.now_s() + _LOOK_S
            for server in self.servers.values():
                server.look(self._look_s - _LOOK_S)


class Process:
    """The pool's process, which may be dead or alive.

    Also the poller of its connections, see :class:`taskworker.transport.wire.connection.Poller`.

    Args:
        network: network of the simulation.

    Attributes:
        dead: whether it has ended.
        failures: number of connections that could not be made or have ended.
        dies_at: the moment at which it will die.
    """

    is_pool = True

    def __init__(self, network: Network) -> None:
        self.network = network
        self.dead = False
        self.failures = 0
        self.dies_at = ""
        self._links: dict[int, Link] = {}

    def reach(self, moment: str) -> None:
        """Raise `PoolCrashed` if the process is dead. Called before every effect outside of the process."""
        if moment and moment == self.dies_at:
            self.die()
        if self.dead:
            raise PoolCrashed(moment)

    def die(self) -> None:
        """End the process. What it has sent may still arrive."""
        if self.dead:
            return
        self.dead = True
        links, self._links = self._links, {}
        for link in links.values():
            self.network.forget(link)
            link.hang_up()

    # -- connecting ------------------------------------------------------------------------------

    def connect(self, address: str, name: str, instance: str) -> RemoteVolume:
        """See :data:`taskworker.transport.port.Connect`."""
        clock_s = self.network.now_s
        return RemoteVolume(address, name, instance, timeout_s=TIMEOUT_S, poller=self, dial=self._dial, clock_s=clock_s)

    def identify(self, address: str, name: str) -> str:
        """See :data:`taskworker.transport.port.Identify`."""
        probe = self.connect(address, name, "")
        try:
            return probe.instance(patient=False)
        finally:
            probe.abandon("the connection only identified the process")

    def _dial(self, address: str, within_s: float) -> ClientStream:
        self.reach("")
        try:
            return self.network.dial(self, address)
        except OSError:
            self.failures += 1
            raise

    # -- as a poller -----------------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """See :class:`Poller`."""
        link = _link_of(connection)
        self._links[link.number] = link
        link.greeted(connection)

    def watch_writes(self, connection: Connection, *, watch: bool) -> None:
        """See :class:`Poller`."""
        link = _link_of(connection)
        link.client_waits = watch
        if watch:
            self.network.queue(link)

    def remove(self, connection: Connection) -> None:
        """See :class:`Poller`."""
        link = _link_of(connection)
        if self._links.pop(link.number, None) is not None:
            self.failures += 1
            self.network.forget(link)

    def room(self, lock: threading.Lock) -> _Room:
        """See :class:`Poller`."""
        return _Room(self, lock)

    def signal(self) -> _Signal:
        """See :class:`Poller`."""
        return _Signal(self)

    def wait(self, happened: Callable[[], bool], within_s: float) -> bool:
        """Let the network act until something has happened; return False if the time ran out first."""
        network, step = self.network, self.network.step
        began_s = network.now_s()
        until_s = math.inf if within_s < 0 else began_s + within_s
        while True:
            if self.dead:
                self.reach("")
            if happened():
                return True
            if step():
                continue
            now_s = network.now_s()
            if now_s >= until_s:
                network.pass_a_moment()  # for those who look at the clock until it is late enough
                return False
            assert now_s < began_s + _WAIT_S_MAX, "somebody waits for ever"
            network.idle(until_s)


class WorkerProcess(Process):
    """A worker's process, as far as it calls other workers. When it ends, what it waits for fails."""

    is_pool = False

    def reach(self, moment: str) -> None:
        """Raise an error if the process is dead."""
        if self.dead:
            raise VolumeFailed("the worker's process has ended")

    def dial(self, address: str, within_s: float) -> ClientStream:
        """See :data:`taskworker.transport.wire.streams.Dial`."""
        return self._dial(address, within_s)


class WorkerRuntime(Runtime):
    """What a worker's process waits with."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    def mailbox(self) -> Mailbox:
        """See :meth:`Runtime.mailbox`."""
        return Mailbox(self._process)

    def monotonic_s(self) -> float:
        """See :meth:`Runtime.monotonic_s`."""
        return self._process.network.now_s()


class _Signal:
    """See :class:`taskworker.transport.wire.connection.Signal`."""

    __slots__ = ("_happened", "_process")

    def __init__(self, process: Process) -> None:
        self._process = process
        self._happened = False

    def wait(self, within_s: float = -1) -> bool:
        return self._process.wait(lambda: self._happened, within_s)

    def set(self) -> None:
        self._happened = True


class _Room:
    """See :class:`taskworker.transport.wire.connection.Room`."""

    __slots__ = ("_lock", "_process", "_turn")

    def __init__(self, process: Process, lock: threading.Lock) -> None:
        self._process = process
        self._lock = lock
        self._turn = 0

    def wait(self, within_s: float) -> bool:
        turn = self._turn
        self._lock.release()
        try:
            return self._process.wait(lambda: self._turn != turn, max(0.0, within_s))
        finally:
            self._lock.acquire()

    def notify_all(self) -> None:
        self._turn += 1


class Mailbox:
    """See :class:`storage.runtime.Mailbox`."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._items: deque[object] = deque()

    def put(self, item: object, /) -> None:
        self._items.append(item)

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        if not self._process.wait(lambda: bool(self._items), -1 if timeout is None else timeout):
            raise queue.Empty
        return self._items.popleft()


def _link_of(connection: Connection) -> Link:
    assert isinstance(connection.stream, ClientStream)
    return connection.stream.link


def is_usable(volume: object) -> bool:
    """Whether no call of a volume has failed so far."""
    return isinstance(volume, RemoteVolume) and volume._calls.failure is None
