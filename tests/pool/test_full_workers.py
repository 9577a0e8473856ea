"""A full worker costs no push; a full pool says so, and says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from random import Random

import pytest

from storage import ErasureProfile
from storage.errors import InsufficientWorkers, StoreFull
from storage.keys import Kind
from storage.shards import Shard, VolumeUnavailable, VolumeUsage
from taskworker.errors import WorkerReadOnly
from tests.simulation.disk import MemoryVolume
from tests.simulation.model import chunks_of
from tests.simulation.pool import CHUNK_BYTES, GRACE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


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


def test_what_is_said_while_a_worker_is_full_is_true_at_every_moment(cluster: Cluster) -> None:
    """Others hold two shards of what was pushed since, until it has been moved."""
    store, full = cluster.pool.store, cluster.workers[2]
    store.push(Random(0).randbytes(200_000), filename="before", user_id="u")
    settle(cluster)
    full.volume.full = True
    for number in range(20):
        store.push(Random(number).randbytes(50_000), filename=f"f{number}", user_id="u")
    for _ in range(45):  # meanwhile it is tried again
        assert cluster.pool.view().health.startswith("all files survive the loss of any 1 worker")
        cluster.pass_time(1.0)
        assert cluster.pool.view().health.startswith("all files survive the loss of any 1 worker")
        cluster.pool.repair_scheduler.mend()
    full.volume.full = False
    cluster.pass_time(60.0)
    settle(cluster)
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"


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
    readback = cluster.pool.store.upkeep.read_back()
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


def test_a_full_pool_that_lost_a_worker_waits_for_space_and_distrusts_nobody(cluster: Cluster) -> None:
    """What full workers refused was not given to them, however often; and it is not even read for them."""
    store, fleet, data = cluster.pool.store, cluster.pool.fleet, Random(0).randbytes(400_000)
    version = store.push(data, filename="f", user_id="u")
    settle(cluster)
    fleet.repair_bytes_max = lambda slot: len(data)
    lost, *others = cluster.workers
    for worker in others:
        worker.volume.full = True
    lost.stop()
    cluster.pass_time(GRACE_S + 5.0)
    tries = waits = 0
    for _ in range(40):
        before = sum(volume.received for _, volume in fleet.online())
        waits += not cluster.pool.repair_scheduler.mend()
        tries += sum(volume.received for _, volume in fleet.online()) > before + len(data) // 2
        cluster.pass_time(5.0)
    assert waits >= 30
    assert 1 <= tries <= 10  # less and less often: only a write can show that there is space
    assert fleet.distrusted() == frozenset()
    health = cluster.pool.view().health
    assert "no space on w1, w2, w3, w4, w5: delete files and collect" in health
    assert "repair waits: too few workers have space for what is missing or misplaced" in health
    assert store.get(version.file_id, user_id="u") == data
    for worker in others:
        worker.volume.full = False
    cluster.pass_time(2.0)
    settle(cluster)
    assert cluster.pool.view().health == "all files survive the loss of any 1 worker"


def test_a_worker_that_asks_for_more_and_refuses_it_is_not_believed_at_once(cluster: Cluster) -> None:
    fleet, slot, disk = cluster.pool.fleet, 2, 1 << 40

    def refuses_what_it_asks_for() -> bool:
        fleet.note_space(slot, 0, disk)
        fleet.note_write_refused(slot, StoreFull("no space"))
        fleet.note_space(slot, disk, 0)
        return fleet.takes_new(slot)

    believed = 0
    for _ in range(600):
        believed += refuses_what_it_asks_for()
        cluster.clock.advance(1.0)
    assert 1 <= believed <= 600 / 30


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


def test_a_worker_that_cannot_write_for_a_moment_costs_no_push_and_joins_no_more_than_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, refusing = cluster.pool.store, cluster.workers[2].volume
    before = store.push(Random(0).randbytes(100_000), filename="before", user_id="u")
    joined = sum(event.kind == "joined" for event in cluster.pool.view().events)

    def refuse(*_args: object, **_keywords: object) -> None:
        raise VolumeUnavailable("too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(refusing, "append", refuse)
        contents = {f"f{number}": Random(number).randbytes(20_000 * number) for number in range(1, 6)}
        ids = {name: store.push(data, filename=name, user_id="u").file_id for name, data in contents.items()}
        cluster.pass_time(1.0)
        assert states(cluster)["w2"] == "refusing"
        health = cluster.pool.view().health
        assert "no writes to w2 for now, see that worker's log" in health
        assert "no space" not in health
        assert "read-only" not in health
        settle(cluster)
    assert sum(event.kind == "joined" for event in cluster.pool.view().events) == joined
    cluster.pass_time(60.0)
    settle(cluster)
    assert states(cluster)["w2"] == "alive"
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
    assert store.get(before.file_id, user_id="u") == Random(0).randbytes(100_000)
    assert all(store.get(ids[name], user_id="u") == data for name, data in contents.items())


def test_a_pool_none_of_whose_workers_can_write_for_a_moment_is_not_said_to_be_full(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_keywords: object) -> None:
        raise VolumeUnavailable("too many open files")

    monkeypatch.setattr(MemoryVolume, "append", refuse)
    for number in range(2):
        with pytest.raises(InsufficientWorkers, match="w0, w1, w2, w3, w4, w5 cannot write for now, see their logs"):
            cluster.pool.store.push(Random(number).randbytes(100_000), filename="f", user_id="u")


@pytest.mark.parametrize("question", ["missing", "locate_all", "keys"])
def test_a_worker_that_cannot_answer_for_long_holds_up_no_mending(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    store, refusing, data = cluster.pool.store, cluster.workers[2], Random(0).randbytes(100_000)
    cluster.add_worker()
    settle(cluster)
    before = store.push(data, filename="before", user_id="u")
    answer = getattr(MemoryVolume, question)

    def refuse(volume: MemoryVolume, *arguments: object) -> object:
        if volume is refusing.volume:
            raise VolumeUnavailable("too many open files")
        return answer(volume, *arguments)

    monkeypatch.setattr(MemoryVolume, question, refuse)
    cluster.pool.drain("w5")
    for _ in range(60):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()
    assert states(cluster)["w5"] == "drained"
    assert store.get(before.file_id, user_id="u") == data
    assert store.push(data + b"more", filename="more", user_id="u").size == len(data) + 4


def test_what_a_full_worker_refused_of_a_push_is_missed_whoever_hears_of_it(cluster: Cluster) -> None:
    store, full, data = cluster.pool.store, cluster.workers[2], Random(3).randbytes(10 * CHUNK_BYTES)
    slot = next(record.slot for record in cluster.pool.membership.records if record.worker == full.name)
    with store.upload(filename="f", user_id="u") as upload:
        full.volume.full = True
        upload.write(data)
        store.upkeep.mark(slot, anew=True)  # has it make durable what it was given, as a collect does
        upload.commit()
    for stripe in chunks_of(data, cluster.profile):
        assert {key[35] for worker in cluster.workers for key in worker.volume.durable if key[:35] == stripe} == {
            *range(6)
        }


class ReadOnlyVolume(MemoryVolume):
    """On a disk that turned read-only while some of what it was given had not reached it."""

    read_only = False

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        self._require_writable()
        super().append(shards, urgent=urgent)

    def sync(self) -> None:
        if self._unsynced:
            self._require_writable()
        super().sync()

    def _require_writable(self) -> None:
        if self.read_only:
            raise WorkerReadOnly("the volume can only be read")


@pytest.fixture
def stuck(cluster: Cluster) -> Worker:
    """A worker whose disk turns read-only before what it was given last was made durable."""
    worker = cluster.workers[2]
    worker.stop()
    worker.volume = ReadOnlyVolume(worker.volume.volume_id, cluster.wounds)
    worker.start()
    cluster.pass_time(2.0)
    cluster.pool.store.push(Random(0).randbytes(200_000), filename="before", user_id="u")
    settle(cluster)
    return worker


def turn_read_only(worker: Worker, last: Iterable[Shard]) -> None:
    assert isinstance(worker.volume, ReadOnlyVolume)
    worker.volume.append(list(last))
    worker.volume.read_only = True


def test_a_disk_that_turned_read_only_has_its_worker_join_no_more_than_once(cluster: Cluster, stuck: Worker) -> None:
    joined = sum(event.kind == "joined" for event in cluster.pool.view().events)
    some = next(record.shard for record in cluster.workers[0].volume.records_by_key.values())
    turn_read_only(stuck, [some])
    store = cluster.pool.store
    contents = {f"f{number}": Random(number).randbytes(50_000) for number in range(1, 40)}
    ids = {}
    for name, data in contents.items():
        ids[name] = store.push(data, filename=name, user_id="u").file_id
        cluster.pass_time(1.0)
        assert states(cluster)["w2"] in ("read-only", "alive")  # tried again from time to time
    assert sum(event.kind == "joined" for event in cluster.pool.view().events) <= joined + 1
    assert "no writes to w2: the disk is read-only" in cluster.pool.view().health
    assert all(store.get(ids[name], user_id="u") == data for name, data in contents.items())


def test_pushes_do_not_count_on_what_a_read_only_disk_may_lose(cluster: Cluster, stuck: Worker) -> None:
    """Such as what a push has put there that was cut off before it was durable."""
    store, data = cluster.pool.store, Random(1).randbytes(50_000)
    known = set(stuck.volume.records_by_key)
    store.push(data, filename="f", user_id="u")
    chunk = {key: record.shard for key, record in stuck.volume.records_by_key.items() if key not in known}
    chunk = {key: shard for key, shard in chunk.items() if key[32] == Kind.CHUNK}
    assert chunk
    stuck.volume.remove(chunk)
    stuck.volume.sync()
    turn_read_only(stuck, chunk.values())
    store.push(b"other content" * 5_000, filename="g", user_id="u")  # finds out that nothing is made durable
    cluster.pass_time(1.0)
    version = store.push(data, filename="again", user_id="u")
    others = [worker.volume for worker in cluster.workers if worker is not stuck]
    for stripe in {key[:35] for key in chunk}:
        durable = {key[35] for volume in others for key in volume.durable if key[:35] == stripe}
        assert durable == set(range(6))
    assert store.get(version.file_id, user_id="u") == data


def test_a_disk_that_takes_writes_again_makes_durable_what_it_held(cluster: Cluster, stuck: Worker) -> None:
    some = next(record.shard for record in cluster.workers[0].volume.records_by_key.values())
    turn_read_only(stuck, [some])
    cluster.pool.store.push(b"content" * 10_000, filename="f", user_id="u")
    settle(cluster)
    assert not stuck.volume.is_durable(some.key)
    assert isinstance(stuck.volume, ReadOnlyVolume)
    stuck.volume.read_only = False
    cluster.pass_time(60.0)
    cluster.pool.store.push(b"more" * 10_000, filename="g", user_id="u")
    settle(cluster)
    assert stuck.volume.is_durable(some.key)
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
