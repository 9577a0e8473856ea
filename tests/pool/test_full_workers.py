"""A full worker costs no push; a full pool says so, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from storage import ErasureProfile
from storage.errors import StoreFull
from storage.keys import Kind
from storage.shards import VolumeUsage
from taskworker.errors import WorkerReadOnly
from tests.simulation.disk import MemoryVolume
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.mender.mend()


def states(cluster: Cluster) -> dict[str, str]:
    return {view.record.worker: view.state.value for view in cluster.pool.view().workers}


def test_pushes_go_on_around_a_full_worker_which_gets_its_part_once_it_has_room(cluster: Cluster) -> None:
    store, full = cluster.pool.store, cluster.workers[2]
    store.push(Random(0).randbytes(200_000), filename="before", user_id="u")
    settle(cluster)
    had = full.volume.records_by_key.keys() | set()
    full.volume.full = True
    cluster.pass_time(2.0)
    contents = {f"f{number}": Random(number).randbytes(1000 + 50_000 * number) for number in range(1, 20)}
    ids = {name: store.push(data, filename=name, user_id="u").file_id for name, data in contents.items()}
    assert states(cluster)["w2"] == "full"
    assert "no space on w2: delete files and collect, or add workers" in cluster.pool.view().health
    settle(cluster)
    assert full.volume.records_by_key.keys() == had  # given nothing, and nothing of it was moved away
    assert cluster.pool.view().health.startswith("all files survive the loss of any 1 worker;")
    assert store.scrub().missing == 0
    assert all(store.get(ids[name], user_id="u") == data for name, data in contents.items())
    full.volume.full = False
    settle(cluster)
    assert states(cluster)["w2"] == "alive"
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
    assert full.volume.records_by_key.keys() > had


def test_a_full_pool_names_its_full_workers(cluster: Cluster) -> None:
    store = cluster.pool.store
    version = store.push(b"content" * 10_000, filename="f", user_id="u")
    for worker in cluster.workers[1:]:
        worker.volume.full = True
    for number in range(3):  # the first push finds it out, the next ones know
        with pytest.raises(StoreFull, match=r"too few workers have space; none is left on w1, .*w5; delete files"):
            store.push(Random(number).randbytes(100_000), filename="g", user_id="u")
    assert store.get(version.file_id, user_id="u") == b"content" * 10_000
    cluster.pass_time(2.0)
    for worker in cluster.workers:
        worker.volume.full = False
    cluster.pass_time(2.0)
    store.push(b"again", filename="g", user_id="u")


@pytest.mark.parametrize(
    ("used", "live", "free", "compacted"), [(100, 50, 20, True), (100, 95, 20, False), (100, 50, 200, False)]
)
def test_dead_space_is_compacted_where_the_disk_is_nearly_full(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, used: int, live: int, free: int, compacted: bool
) -> None:
    asked: list[MemoryVolume] = []
    monkeypatch.setattr(MemoryVolume, "usage", lambda volume: VolumeUsage(1, used, live, free, 1))

    def compact(volume: MemoryVolume, _ratio: float) -> tuple[int, int]:
        asked.append(volume)
        return 1, used - live

    monkeypatch.setattr(MemoryVolume, "compact", compact)
    cluster.add_worker()
    settle(cluster)
    assert bool(asked) is compacted


class UnsyncableVolume(MemoryVolume):
    """Has no space left, not even to make durable what it took."""

    def sync(self) -> None:
        if self.full:
            raise StoreFull("no space for the index")
        super().sync()


def test_nothing_is_dropped_for_what_a_full_worker_cannot_make_durable(cluster: Cluster) -> None:
    former, worker = cluster.workers[0], cluster.add_worker()
    worker.volume = UnsyncableVolume(f"volume of {worker.name}", cluster.wounds)
    worker.listen()
    cluster.pool.store.push(Random(0).randbytes(200_000), filename="f", user_id="u")
    settle(cluster)
    keys = [key for key in former.volume.records_by_key if key[32] == Kind.CHUNK]
    worker.volume.append([former.volume.records_by_key[key].shard for key in keys])
    slots = {record.worker: record.slot for record in cluster.pool.membership.records}
    readback = cluster.pool.store.read_back()
    worker.volume.full = True
    assert readback.alike(keys, slots[former.name], slots[worker.name]) == []
    worker.volume.full = False
    assert readback.alike(keys, slots[former.name], slots[worker.name]) == keys != []


def test_a_pool_that_is_full_is_not_mended_without_a_pause(cluster: Cluster) -> None:
    cluster.pool.store.push(Random(0).randbytes(200_000), filename="f", user_id="u")
    for worker in cluster.workers:
        worker.volume.full = True
    fleet, key = cluster.pool.fleet, next(iter(cluster.workers[0].volume.records_by_key))
    shard = cluster.workers[0].volume.records_by_key[key].shard
    for _ in range(2):
        with pytest.raises(StoreFull):
            fleet.append_and_sync({slot: [shard] for slot, _ in fleet.online()})
    assert len(fleet.full()) == 6
    woken: list[bool] = []
    fleet.on_rot = lambda: woken.append(True)
    with pytest.raises(StoreFull):
        fleet.append_and_sync({0: [shard]})
    assert not woken


def test_a_disk_that_takes_no_writes_is_not_said_to_be_full(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = cluster.workers[2].volume

    def refuse(*_args: object, **_keywords: object) -> None:
        raise WorkerReadOnly("the volume can only be read")

    monkeypatch.setattr(refusing, "append", refuse)
    version = cluster.pool.store.push(b"content" * 10_000, filename="f", user_id="u")
    cluster.pass_time(1.0)
    assert states(cluster)["w2"] == "read-only"
    assert "no writes to w2: the disk is read-only, see that worker's log" in cluster.pool.view().health
    assert "no space" not in cluster.pool.view().health
    assert cluster.pool.store.get(version.file_id, user_id="u") == b"content" * 10_000
    monkeypatch.undo()
