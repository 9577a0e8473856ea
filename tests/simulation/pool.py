"""A pool on simulated machines. Its process is started, driven step by step, crashed and started again."""

from __future__ import annotations

from pathlib import Path
from random import Random

from storage import ErasureProfile
from storage.catalog.table_catalog import TableCatalog
from storage.keys import ShardKey
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.sealing.user_keys import UserKey
from storage.system.locking import StoreLock
from taskworker.pool.node_pool import PLAIN_DOCUMENTS, PoolCore
from taskworker.pool.options import PoolOptions
from tests.simulation.catalog import Database, ReachedTables
from tests.simulation.clock import Clock
from tests.simulation.disk import MemoryVolume
from tests.simulation.network import Network, Process, is_usable
from tests.simulation.runtime import SimulatedRuntime
from tests.simulation.workers import Worker

LEASE_S = 3.0
GRACE_S = 30.0
CROWD = "owner of many"
CHUNK_BYTES = 64 * 1024
_BEAT_S = 1.0
_ENCRYPTED = 0.4  # share of the seeds


class _NoLock(StoreLock):
    """A lock that does nothing, as there is only one process."""

    def __init__(self) -> None:
        self._fd = -1


def simulated_keys(seed: int) -> MasterKeys | None:
    """Return the master keys of a seed, which encrypts, or None. It is chosen apart from everything else."""
    rng = Random(f"encryption {seed}")
    return MasterKeys(MasterKey(rng.randbytes(32))) if rng.random() < _ENCRYPTED else None


def simulated_hot_bytes(seed: int) -> int:
    """Return the pool's memory for small objects of a seed. Without any, each read asks the workers."""
    return Random(f"memory {seed}").choice((0, PoolOptions().hot_bytes))


class Cluster:
    """A pool and its workers.

    Args:
        rng: source of all randomness.
        profile: erasure profile of the pool.
        worker_count: number of workers at first.
        zones: number of zones over which they are spread.
        crowd: number of further workers that all have the same owner, while each other worker has its own owner; 0: no
            worker has an owner.
        small_copies_bytes: files up to this size are kept as copies, from the next start of the pool on if it is
            changed.
        keys: master keys with which the pool encrypts; None: it does not encrypt.
        hot_bytes: memory for small objects; 0: each read asks the workers.
    """

    def __init__(
        self,
        rng: Random,
        profile: ErasureProfile,
        worker_count: int,
        zones: int,
        crowd: int = 0,
        small_copies_bytes: int = 0,
        keys: MasterKeys | None = None,
        hot_bytes: int = 0,
    ) -> None:
        self.rng = rng
        self._keys = keys
        self._hot_bytes = hot_bytes
        self.profile = profile
        self.small_copies_bytes = small_copies_bytes
        self.clock = Clock()
        self.network = Network(rng, self.clock)
        self.database = Database()
        self.wounds: set[ShardKey] = set()
        self.dropped: dict[ShardKey, str] = {}  # last good copies that the pool had honest workers drop
        self.workers: list[Worker] = []
        self._zones = zones
        self._named = 0
        self._owned = crowd > 0
        for _ in range(worker_count):
            self.add_worker()
        for _ in range(crowd):
            self.add_worker(CROWD)
        self.start_pool()
        self.pass_time(2.0)

    # -- workers ---------------------------------------------------------------------------------

    def add_worker(self, owner: str = "") -> Worker:
        """Add a machine with an empty disk, and start its worker."""
        worker = Worker(f"w{self._named}", f"z{self._named % self._zones}", self.new_volume(), self.network, self.rng)
        worker.owner = owner or (f"owner of {worker.name}" if self._owned else "")
        self._named += 1
        self.workers.append(worker)
        worker.start()
        return worker

    def new_volume(self) -> MemoryVolume:
        """Make an empty disk."""
        return MemoryVolume(self.rng.randbytes(8).hex(), self.wounds, self._note_removed)

    def _note_removed(self, volume: MemoryVolume, key: ShardKey) -> None:
        if any(worker.volume is volume for worker in self.honest()) and not any(
            worker.volume is not volume and self._gives(worker, key, volume) for worker in self.workers
        ):
            self.dropped[key] = volume.volume_id

    def _gives(self, worker: Worker, key: ShardKey, volume: MemoryVolume) -> bool:
        """Whether a worker has a shard of another volume, or returned its bytes without having it.

        A liar may guess a shard of a few bytes, or of zeros. As the bytes were right, the pool cannot tell.
        """
        digest = volume.records_by_key[key].shard.digest
        return worker.volume.is_good(key) or (worker.liar and (key, digest) in worker.volume.made_up)

    # -- the pool's process ----------------------------------------------------------------------

    def start_pool(self, rebuild: str = "") -> None:
        """Start the pool's process with its catalog, or to rebuild the pool ``rebuild``, whose catalog is lost."""
        self.process = Process(self.network)
        self.runtime = SimulatedRuntime(self.clock, self.rng, self.process)
        self.tables = ReachedTables(self.database, self.process.reach)
        self.pool = PoolCore(
            Path("/nonexistent/pool"),
            TableCatalog(self.tables, PLAIN_DOCUMENTS),
            _NoLock(),
            profile=self.profile,
            chunk_size=CHUNK_BYTES,
            options=PoolOptions(
                LEASE_S,
                GRACE_S,
                tranquility=0.0,
                rebuild=rebuild,
                hot_bytes=self._hot_bytes,
                small_copies_bytes=self.small_copies_bytes,
                keys=None if self._keys is None else lambda make: self._keys,
                encrypts=True if self._keys is not None else None,
            ),
            connect=self.process.connect,
            identify=self.process.identify,
            runtime=self.runtime,
        )

    def key_of(self, user: str) -> UserKey | None:
        """Return the key with which a user's data is sealed; None: it is not."""
        return self.pool.store.upkeep.keys.keys_of(user).current

    def crash_pool(self) -> None:
        """End the pool's process in the middle of what it is doing."""
        self.process.die()

    # -- time ------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let time pass, while workers send heartbeats and the pool's clock ticks."""
        while seconds > 0:
            step_s = min(seconds, _BEAT_S)
            seconds -= step_s
            self.clock.advance(step_s)
            self.network.flow()
            for worker in self.workers:
                worker.beat(self.pool)
            self.pool.tick()

    def calm(self) -> None:
        """End all faults, and wait until all workers have joined. Liars go on lying."""
        self.network.forget_due()
        self.process.dies_at = ""
        for worker in self.workers:
            worker.cut_off, worker.volume.full, worker.lost_beats = False, False, 0
            worker.listen()
        self.pass_time(10.0)
        for worker in self.workers:
            if not worker.up:
                worker.start()
        self.pass_time(2.0)  # they join

    def honest(self) -> list[Worker]:
        """Return the workers that do not lie. What the others hold counts as lost."""
        return [worker for worker in self.workers if not worker.liar]

    def usable_volumes(self) -> list[MemoryVolume]:
        """Return the volumes of honest workers that the pool can use now."""
        fleet = self.pool.fleet
        by_name = {worker.name: worker for worker in self.honest()}
        found = []
        for record in self.pool.membership.records:
            worker, connection = by_name.get(record.worker), fleet.volume(record.slot)
            if worker is not None and worker.reachable and is_usable(connection):
                found.append(worker.volume)
        return found
