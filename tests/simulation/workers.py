"""Simulated workers: each has a volume, a process that starts and stops, and heartbeats."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from storage.errors import StorageError
from taskworker.errors import WorkerRefused
from taskworker.pool.membership import Application, WorkerLoad
from taskworker.pool.node_pool import PoolCore
from taskworker.rpc.protocol import PROTOCOL
from tests.simulation.disk import MemoryVolume
from tests.simulation.liars import LyingVolume
from tests.simulation.network import Network
from tests.simulation.servers import Server

CAPACITY = 1 << 30
_HUGE = 1 << 40


@dataclass(slots=True, eq=False)
class Worker:
    """A machine with a disk and a worker's process.

    Attributes:
        name: its worker id in the pool.
        zone: its failure domain.
        volume: its disk.
        network: the network by which it is reached.
        up: whether its process runs.
        cut_off: whether the network between it and the pool is down.
        lost_beats: how many of its next heartbeats will be lost.
        liar: whether half of its answers are false.
        owner: owner of the machine.
        former: instances of its earlier processes.
    """

    name: str
    zone: str
    volume: MemoryVolume
    network: Network
    rng: Random
    up: bool = False
    cut_off: bool = False
    lost_beats: int = 0
    liar: bool = False
    owner: str = ""
    former: list[str] = field(default_factory=list)
    _instance: str = ""
    _server: Server | None = None
    _joined: bool = field(default=False)
    _rotten: int = 0

    @property
    def address(self) -> str:
        """Its address."""
        return f"sim:{self.name}"

    @property
    def instance(self) -> str:
        """Random name of its current process."""
        return self._instance

    @property
    def joined(self) -> bool:
        """Whether its process has joined the pool."""
        return self._joined

    @property
    def reachable(self) -> bool:
        """Whether calls reach it."""
        return self.up and not self.cut_off

    def start(self) -> None:
        """Start its process."""
        self.up = True
        if self._server is not None:
            self._server.stop()
        if self._instance:
            self.former.append(self._instance)
        self._instance = self.rng.randbytes(8).hex()
        self._server = Server(self.network, self.address, self._instance, self.volume)
        self._joined = False
        self.listen()

    def stop(self) -> None:
        """End its process abruptly."""
        self.up = False
        self.listen()

    def listen(self) -> None:
        """Answer calls from now on if it is reachable, otherwise not."""
        server = self._server
        if server is None:
            return
        if self.up:
            server.volume = LyingVolume(self.volume, self.rng) if self.liar else self.volume
            server.liar = self.liar
            self.network.servers[self.address] = server
            server.reach(reachable=self.reachable)
        else:
            self._server = None
            del self.network.servers[self.address]
            server.stop()

    def beat(self, pool: PoolCore) -> None:
        """Do what its heartbeat thread does periodically."""
        if not self.reachable:
            return
        if self.lost_beats:
            self.lost_beats -= 1
            self.network.injected["heartbeat lost"] += 1
            return
        if self._joined and not pool.heartbeat(self.name, self._instance, self._load()):
            self._joined = False
        if not self._joined:
            self._join(pool)

    def leave(self, pool: PoolCore) -> None:
        """Leave the pool in good order and stop."""
        if self.reachable and self._joined:
            pool.leave(self.name, self._instance)
        self.stop()

    def join_again(self, pool: PoolCore) -> None:
        """Send its request to join a second time."""
        if self._joined:
            self._join(pool)

    def beat_again(self, pool: PoolCore) -> None:
        """Send its heartbeat a second time."""
        pool.heartbeat(self.name, self._instance, WorkerLoad())

    def say_late_heartbeat(self, pool: PoolCore, instance: str) -> None:
        """Deliver a heartbeat of a former process, which must not have a lease once the current one has joined."""
        if pool.heartbeat(self.name, instance, WorkerLoad()) and self._joined:
            raise AssertionError(f"a former process of {self.name} holds a lease")

    def say_late_leave(self, pool: PoolCore, instance: str) -> None:
        """Deliver a former process's message that it leaves."""
        pool.leave(self.name, instance)

    def say_late_join(self, pool: PoolCore, instance: str) -> None:
        """Deliver a former process's request to join."""
        with suppress(WorkerRefused, StorageError):
            pool.join(self.application(pool, instance))

    def _load(self) -> WorkerLoad:
        """Return the load that it reports."""
        if not self.liar:
            return WorkerLoad(bytes_free=0 if self.volume.full else CAPACITY)
        self._rotten += self.rng.choice((0, 0, 1, _HUGE))
        huge = self.rng.choice((0, _HUGE))
        return WorkerLoad(float(huge), huge, huge, huge, huge, self._rotten, huge, huge, float(huge), huge, huge, huge)

    def _join(self, pool: PoolCore) -> None:
        instance = self._instance
        try:
            pool.join(self.application(pool, instance))
        except (WorkerRefused, StorageError):
            return
        self._joined = instance == self._instance  # unless it was restarted while it joined

    def application(self, pool: PoolCore, instance: str = "") -> Application:
        """Return its request to join."""
        return Application(
            worker=self.name,
            address=self.address,
            zone=self.zone,
            owner=self.owner,
            capacity=self.rng.choice((1, _HUGE)) if self.liar else CAPACITY,
            instance=instance or self._instance,
            volume_id=self.volume.volume_id,
            pool_id=pool.pool_id,
            protocol=PROTOCOL,
            version="simulated",
            shard_address=self.address,
        )
