"""Workers: a volume each, a process that comes and goes, and heartbeats."""

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

CAPACITY = 1 << 30
_HUGE = 1 << 40


@dataclass(slots=True, eq=False)
class Worker:
    """A machine with a disk.

    Attributes:
        name: its id in the pool.
        zone: its failure domain.
        volume: its disk.
        network: where it is reached.
        up: whether its process runs.
        cut_off: whether the network between it and the pool is down.
        lost_beats: how many heartbeats to come do not get through.
        liar: whether its answers are false half of the time.
        owner: whose machine it is.
        former: instances of its processes before the latest one.
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
    _joined: bool = field(default=False)
    _rotten: int = 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"sim:{self.name}"

    @property
    def instance(self) -> str:
        """Random name of its latest process."""
        return self._instance

    @property
    def joined(self) -> bool:
        """Whether its process was let in."""
        return self._joined

    @property
    def reachable(self) -> bool:
        """Whether calls to it get through."""
        return self.up and not self.cut_off

    def start(self) -> None:
        """Start its process."""
        self.up = True
        self.volume.boots += 1
        if self._instance:
            self.former.append(self._instance)
        self._instance = self.rng.randbytes(8).hex()
        self._joined = False
        self.listen()

    def stop(self) -> None:
        """Its process ends, whatever it was at."""
        self.up = False
        self.listen()

    def listen(self) -> None:
        """Answer calls, or not."""
        if self.reachable:
            answering = LyingVolume(self.volume, self.rng) if self.liar else self.volume
            self.network.answering[self.address] = answering
            self.network.instances[self.address] = self._instance
        else:
            self.network.answering.pop(self.address, None)

    def beat(self, pool: PoolCore) -> None:
        """What its heartbeat thread does every so often."""
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
        """Stop in good order."""
        if self.reachable and self._joined:
            pool.leave(self.name, self._instance)
        self.stop()

    def join_again(self, pool: PoolCore) -> None:
        """Its request to join arrives once more."""
        if self._joined:
            self._join(pool)

    def beat_again(self, pool: PoolCore) -> None:
        """Its heartbeat arrives once more."""
        pool.heartbeat(self.name, self._instance, WorkerLoad())

    def say_late_heartbeat(self, pool: PoolCore, instance: str) -> None:
        """A heartbeat of a former process, which holds no lease any more once the present one has joined."""
        if pool.heartbeat(self.name, instance, WorkerLoad()) and self._joined:
            raise AssertionError(f"a former process of {self.name} holds a lease")

    def say_late_leave(self, pool: PoolCore, instance: str) -> None:
        """A former process that stopped in good order."""
        pool.leave(self.name, instance)

    def say_late_join(self, pool: PoolCore, instance: str) -> None:
        """A former process that wants to join."""
        with suppress(WorkerRefused, StorageError):
            pool.join(self.application(pool, instance))

    def _load(self) -> WorkerLoad:
        """What it says of itself."""
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
        self._joined = instance == self._instance  # unless it was started anew while it joined

    def application(self, pool: PoolCore, instance: str = "") -> Application:
        """Its request to join."""
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
        )
