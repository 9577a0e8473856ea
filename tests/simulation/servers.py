"""The worker's end of simulated connections: the real service, without threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar, cast

from storage.limits import MIB
from storage.shards import ShardStore
from taskworker.rpc import status
from taskworker.transport.frames import Call
from taskworker.transport.shard_service import ShardService, describe
from taskworker.transport.wire.answering import AnsweringConnection
from taskworker.transport.wire.body_memory import BodyMemory
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.serving import Resources
from tests.simulation.disk import MemoryVolume
from tests.simulation.links import Link, ServerStream

if TYPE_CHECKING:
    from tests.simulation.network import Network

T = TypeVar("T")

_MEMORY_BYTES = 64 * MIB
_FORMER_VERSION = 0.1
_FORMER_CALLS = Call.REST  # the last one that workers of the former version know


class Task:
    """Work of another thread of a worker's process, which happens some time later."""

    __slots__ = ("_server", "_work", "lane", "queued")

    def __init__(self, server: Server, work: Callable[[], object]) -> None:
        self._server = server
        self._work: Callable[[], object] | None = work
        self.queued = False
        self.lane = 0

    def act(self) -> bool:
        """Do the work, once, if the process still runs; return whether it was done."""
        work, self._work = self._work, None
        if work is None or not self._server.runs:
            return False
        work()
        return True


_UNFINISHED: Future[Any] = Future()
"""What nobody waits for, as connections only have work done."""


class _LaterExecutor(Executor):
    """Lets the network choose when work is done."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def submit(self, work: Callable[..., T], /, *arguments: Any, **keywords: Any) -> Future[T]:
        self._server.network.queue(Task(self._server, lambda: work(*arguments, **keywords)))
        return _UNFINISHED


class Server:
    """A worker's process, as far as it serves its volume.

    Also what its connections need, see :class:`taskworker.transport.wire.answering.Surroundings`.

    Args:
        network: the network of the simulation.
        address: its address.
        instance: random name of the process.
        volume: the volume to serve, which may change. It has what the service uses of a shard store.

    Attributes:
        liar: whether some of its frames are none that a sound worker sends.
        runs: whether the process has not ended.
        reachable: whether the network between it and the pool works.
    """

    is_crowded = False

    def __init__(self, network: Network, address: str, instance: str, volume: MemoryVolume) -> None:
        self.network = network
        self.address = address
        self.volume = volume
        self.liar = False
        self.runs = self.reachable = True
        self._links: dict[int, Link] = {}
        self._calling = network.process_of_worker()
        service = ShardService(
            None, "", lambda: (cast(ShardStore, self.volume), instance), network.now_s, network.dialling(self._calling)
        )
        former = network.chance(_FORMER_VERSION)
        self._methods = {
            number: method for number, method in service.methods().items() if not former or number <= _FORMER_CALLS
        }
        later = _LaterExecutor(self)
        self._resources = Resources(BodyMemory(_MEMORY_BYTES), Budget(_MEMORY_BYTES), later, later, network.now_s)

    @property
    def connected(self) -> int:
        """How many connections it serves."""
        return len(self._links)

    def accept(self, link: Link) -> None:
        """Begin to serve a connection."""
        stream = ServerStream(link)
        link.answering = AnsweringConnection(stream, self._methods, self._describe, self, self._resources)
        self._links[link.number] = link

    def _describe(self, error: Exception) -> bytes:
        if not status.is_foreseen(error):
            self.network.bugs.append(error)
        return describe(error)

    def stop(self) -> None:
        """End the process. It may have done some of what it was sent."""
        self._calling.die()
        for link in list(self._links.values()):
            link.stop()
        self._links.clear()
        self.runs = False

    def reach(self, *, reachable: bool) -> None:
        """Let the network between the pool and the process work, or not."""
        if reachable == self.reachable:
            return
        self.reachable = reachable
        for link in list(self._links.values()):
            if reachable:
                link.release()
            else:
                link.hold()

    def look(self, now_s: float) -> None:
        """Do what the thread that waits for all connections does from time to time."""
        for link in list(self._links.values()):
            link.look(now_s)

    # -- what connections call -------------------------------------------------------------------

    def watch(self, connection: AnsweringConnection, *, writes: bool) -> None:
        """See :class:`Surroundings`. What arrives is noticed anyway."""
        if writes:
            self.call_soon(connection)

    def call_soon(self, connection: AnsweringConnection) -> None:
        """See :class:`Surroundings`."""
        link = self._links.get(connection.descriptor)
        if link is not None:
            link.server_waits = True
            self.network.queue(link)

    def forget(self, connection: AnsweringConnection) -> None:
        """See :class:`Surroundings`."""
        link = self._links.pop(connection.descriptor, None)
        if link is not None:
            link.answering = None
            connection.close()
