"""Up to n - k workers that answer anything to everything: no file is lost, and none is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ErasureProfile
from storage.errors import StorageError
from storage.keys import ShardKey
from storage.shards import CorruptShard, Location, Shard, VolumeFailed, VolumeUsage
from storage.shards.port import Verdict
from tests.simulation.disk import MemoryVolume
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

K, N = 4, 6


class ArbitraryVolume(MemoryVolume):
    """Answers each call as it should, or with whatever the port lets through."""

    def __init__(self, volume_id: str, wounds: set[ShardKey], rng: Random) -> None:
        super().__init__(volume_id, wounds)
        self._rng = rng

    def _lies(self) -> bool:
        return self._rng.random() < 0.6

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        for shard in shards:
            if self._lies():
                payload = self._rng.randbytes(len(shard.payload))
                shard = shard._replace(digest=blake3(payload).digest(), payload=payload)
                if self._rng.random() < 0.5:
                    continue
            super().append([shard], urgent=urgent)

    def missing(self, keys: Sequence[ShardKey]) -> list[int]:
        if self._lies():
            return [at for at in range(len(keys)) if self._rng.random() < 0.5]
        return super().missing(keys)

    def locate_all(self, keys: Sequence[ShardKey]) -> list[Location | None]:
        if self._lies():
            return [
                None if self._rng.random() < 0.3 else Location(0, 0, self._size(), self._size())
                for _ in range(len(keys))
            ]
        return super().locate_all(keys)

    def _size(self) -> int:
        return self._rng.choice((0, 1, 16_384, 65_536, 1 << 24))

    def fetch(self, key: ShardKey, length: int) -> memoryview | None:
        if self._lies():
            return None if self._rng.random() < 0.5 else memoryview(self._rng.randbytes(length))
        return super().fetch(key, length)

    def read(self, key: ShardKey) -> Shard | None:
        what = self._rng.random()
        if what < 0.2:
            return None
        if what < 0.4:
            raise CorruptShard(key.hex())
        if what < 0.6:
            payload = self._rng.randbytes(self._rng.choice((1, 100, 16_384)))
            return Shard(key, self._size(), blake3(payload).digest(), payload)
        return super().read(key)

    def keys(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[ShardKey]:
        honest = list(super().keys(start, stop))
        return iter([key for key in honest if not self._lies()])

    def check(self, keys: Sequence[ShardKey]) -> list[Verdict]:
        return [self._rng.choice(list(Verdict)) for _ in keys]

    def remove(self, keys: Iterable[ShardKey]) -> int:
        return 0 if self._lies() else super().remove(keys)

    def discard(self, key: ShardKey, location: Location, *, wrong: bool = False) -> bool:
        return self._rng.random() < 0.5

    def compact(self, live_ratio_max: float) -> tuple[int, int]:
        return self._rng.randrange(9), self._rng.randrange(1 << 40)

    def usage(self) -> VolumeUsage:
        if self._rng.random() < 0.2:
            raise VolumeFailed("for no reason")
        return VolumeUsage(*(self._rng.randrange(1 << 40) for _ in range(5)))


def turn(worker: Worker, rng: Random) -> None:
    """Make a liar of a worker; it keeps what it has, for the time being."""
    volume = ArbitraryVolume(worker.volume.volume_id, set(), rng)
    volume.records_by_key = worker.volume.records_by_key
    worker.volume = volume
    worker.listen()


@given(st.integers(0, 1 << 32))
@settings(max_examples=12, deadline=None)
def test_n_minus_k_workers_that_answer_anything_lose_and_change_nothing(seed: int) -> None:
    rng = Random(seed)
    with simulated_surroundings():
        cluster = Cluster(rng, ErasureProfile(K, N), 8, zones=1)
        files: dict[str, bytes] = {}
        for liar in rng.sample(cluster.workers, N - K):
            turn(liar, rng)
        for number in range(14):
            _one_step(cluster, rng, files, number)
            cluster.pass_time(rng.choice((0.5, 2.0)))
            if rng.random() < 0.6:
                cluster.pool.repair_scheduler.mend()
        for file_id, data in files.items():
            assert cluster.pool.store.get(file_id, user_id="u") == data


def _one_step(cluster: Cluster, rng: Random, files: dict[str, bytes], number: int) -> None:
    what = rng.randrange(6)
    try:
        if what <= 2:
            data = rng.randbytes(rng.choice((10, 5_000, 150_000)))
            files[cluster.pool.store.push(data, filename=f"f{number}", user_id="u").file_id] = data
        elif what == 3:
            cluster.add_worker()
        elif what == 4:
            cluster.pool.auditor.audit()
        else:
            cluster.pool.store.scrub()
            cluster.pool.store.collect()
    except StorageError:
        return  # refused, or not now: nothing was promised
