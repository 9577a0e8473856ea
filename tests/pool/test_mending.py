"""Mending: nothing counts as mended, and no drain ends, before every object has all its shards."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from storage import ErasureProfile, FileStorage
from storage.catalog import Counters
from storage.keys import ID_BYTES, Kind, ShardKey, shard_key
from storage.shards import Shard, VolumeUnavailable
from taskworker.pool.membership import MemberRecord, Membership, Standing, WorkerState
from taskworker.transport.worker_fleet import WorkerFleet
from tests.simulation.disk import MemoryVolume
from tests.simulation.model import chunks_of
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings

CONTENTS = {f"f{seed}": Random(seed).randbytes(150_000 + seed) for seed in range(6)}


class WaitingVolume(MemoryVolume):
    """Its machine cannot open the files now, such as for want of descriptors."""

    waits = False

    def fetch(self, key: ShardKey, length: int) -> memoryview | None:
        self._check()
        return super().fetch(key, length)

    def read(self, key: ShardKey) -> Shard | None:
        self._check()
        return super().read(key)

    @classmethod
    def _check(cls) -> None:
        if cls.waits:
            raise VolumeUnavailable("too many open files")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 0, zones=1)
        for _ in range(7):
            worker = cluster.add_worker()
            worker.volume = WaitingVolume(f"volume of {worker.name}", cluster.wounds)
            worker.listen()
        settle(cluster)
        yield cluster
        WaitingVolume.waits = False


def settle(cluster: Cluster) -> None:
    for _ in range(6):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def state_of(cluster: Cluster, worker: str) -> WorkerState:
    return next(view.state for view in cluster.pool.view().workers if view.record.worker == worker)


def test_a_drain_does_not_end_while_some_of_what_it_moves_cannot_be_read(cluster: Cluster) -> None:
    for name, data in CONTENTS.items():
        cluster.pool.store.push(data, filename=name, user_id="u")
    settle(cluster)
    assert cluster.pool.fleet.is_mended()
    drained = cluster.workers[0]
    WaitingVolume.waits = True
    cluster.pool.drain(drained.name)
    for _ in range(6):
        cluster.pass_time(2.0)
        assert not cluster.pool.repair_scheduler.mend(), "it is to be tried again"
    assert state_of(cluster, drained.name) is WorkerState.DRAINING
    assert not cluster.pool.fleet.is_mended()
    assert len(cluster.pool.layouts) == 2
    repair, _ = cluster.pool.repair_scheduler.views()
    assert "cannot be read now" in repair.error
    assert "repair waits" in cluster.pool.view().health

    WaitingVolume.waits = False
    settle(cluster)
    assert state_of(cluster, drained.name) is WorkerState.DRAINED
    others = [worker.volume for worker in cluster.workers[1:]]
    for data in CONTENTS.values():
        for stripe in chunks_of(data, cluster.profile):
            assert all(any(one.is_durable(shard_key(stripe, slot)) for one in others) for slot in range(6))


def test_what_is_lost_for_good_is_named_and_holds_up_nothing_else(cluster: Cluster) -> None:
    store = cluster.pool.store
    files = {name: store.push(data, filename=name, user_id="u").file_id for name, data in CONTENTS.items()}
    settle(cluster)
    lost = chunks_of(CONTENTS["f0"], cluster.profile)[0]
    for slot in range(3):
        for worker in cluster.workers:
            worker.volume.remove([shard_key(lost, slot)])
    cluster.pool.drain(cluster.workers[0].name)
    settle(cluster)
    assert state_of(cluster, cluster.workers[0].name) is WorkerState.DRAINED
    assert len(cluster.pool.layouts) == 1
    view = cluster.pool.view()
    assert "1 objects are lost" in view.health
    assert "some files cannot be read" in view.health or "cannot be read until" in view.health
    assert view.workers_survivable < 0
    for name in list(files)[1:]:
        assert store.get(files[name], user_id="u") == CONTENTS[name]


def test_once_the_file_of_what_is_lost_is_deleted_the_pool_is_well_again(cluster: Cluster) -> None:
    store = cluster.pool.store
    files = {name: store.push(data, filename=name, user_id="u").file_id for name, data in CONTENTS.items()}
    settle(cluster)
    lost = chunks_of(CONTENTS["f0"], cluster.profile)[0]
    for slot in range(3):
        for worker in cluster.workers:
            worker.volume.remove([shard_key(lost, slot)])
    cluster.pool.drain(cluster.workers[0].name)
    settle(cluster)
    scheduler = cluster.pool.repair_scheduler
    scheduler.step()
    assert scheduler.lost == 1
    assert scheduler.pause_s() is not None, "it is to look again by itself"
    store.delete(files["f0"], user_id="u")
    scheduler.signals.wanted.clear()  # nobody wakes it
    scheduler.step()
    assert scheduler.lost == 0
    assert scheduler.pause_s() is None
    assert scheduler.views()[0].state == "idle"
    assert "lost" not in cluster.pool.view().health
    assert cluster.pool.view().workers_survivable > 0


def test_while_a_worker_is_away_nothing_is_lost_for_good(cluster: Cluster) -> None:
    """It may come back with shards: what is left of the object on others is not let go of."""
    for name, data in CONTENTS.items():
        cluster.pool.store.push(data, filename=name, user_id="u")
    settle(cluster)
    drained, *others = cluster.workers
    for worker in others[:3]:
        worker.stop()
    cluster.pass_time(40.0)
    cluster.pool.drain(drained.name)
    for _ in range(4):
        cluster.pass_time(2.0)
        assert not cluster.pool.repair_scheduler.mend()
    assert state_of(cluster, drained.name) is WorkerState.DRAINING
    for worker in others[:3]:
        worker.start()
    settle(cluster)
    assert state_of(cluster, drained.name) is WorkerState.DRAINED
    assert cluster.pool.repair_scheduler.lost == 0


@pytest.mark.parametrize("moment", ["mended", "standing set"])
def test_a_drain_that_begins_as_mending_ends_does_not_end_with_it(
    cluster: Cluster, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, drained = cluster.pool, cluster.workers[0]
    cluster.add_worker()
    pool.store.push(Random(1).randbytes(200_000), filename="f", user_id="u")
    settle(cluster)
    note_mended, set_standing = WorkerFleet.note_mended, Membership.set_standing

    def drain_then(fleet: WorkerFleet, mark: tuple[int, ...]) -> bool:
        noted = note_mended(fleet, mark)
        monkeypatch.undo()
        pool.drain(drained.name)
        return noted

    def mend_then(membership: Membership, worker: str, standing: Standing) -> MemberRecord:
        record = set_standing(membership, worker, standing)
        monkeypatch.undo()
        pool.fleet.note_unknown()
        pool.repair_scheduler.mend()
        return record

    if moment == "mended":
        monkeypatch.setattr(WorkerFleet, "note_mended", drain_then)
        pool.fleet.note_unknown()
        pool.repair_scheduler.mend()
    else:
        monkeypatch.setattr(Membership, "set_standing", mend_then)
        pool.drain(drained.name)
    assert state_of(cluster, drained.name) is WorkerState.DRAINING
    settle(cluster)
    assert state_of(cluster, drained.name) is WorkerState.DRAINED
    assert not [key for key in drained.volume.records_by_key if key[ID_BYTES] != Kind.MARK]


def test_the_layout_may_change_while_it_is_asked_how_much_a_worker_may_lack(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = FileStorage.counts

    def join_first(store: FileStorage) -> Counters:
        monkeypatch.undo()
        cluster.add_worker()
        cluster.pass_time(5.0)
        return counts(store)

    before = cluster.pool.layouts
    monkeypatch.setattr(FileStorage, "counts", join_first)
    assert cluster.pool.fleet.repair_bytes_max(0) > 0
    assert cluster.pool.layouts != before
