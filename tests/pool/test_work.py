"""Background work: its schedule outlasts restarts, its failures are kept, and people can see what it is at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

import msgspec
import pytest

from storage import ErasureProfile, FileStorage
from storage.catalog import LmdbCatalog, ProfileCount
from storage.errors import InsufficientWorkers, StoreFull
from storage.keys import ID_BYTES, Kind
from storage.runtime import Runtime
from storage.write import quotas
from taskworker.pool.background.collecting import COLLECT_EVERY_S, Collector
from taskworker.pool.background.repair_scheduling import Endangered
from taskworker.pool.background.scrubbing import scrub_view
from taskworker.pool.background.work import Tranquility, WorkJournal
from taskworker.pool.health import Risk, Safety, health_line
from taskworker.pool.membership import WorkerLoad
from taskworker.reports import WorkStatus
from tests.simulation.pool import GRACE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.storage.test_clocks import Clocks

DAY_MS = 86_400_000


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[LmdbCatalog]:
    catalog = LmdbCatalog(tmp_path / "catalog")
    yield catalog
    catalog.close()


def now_ms(cluster: Cluster) -> int:
    return cluster.clock.wall_ns() // 1_000_000


def work(cluster: Cluster, name: str) -> WorkStatus:
    return next(view for view in cluster.pool.view().work if view.name == name)


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


# -- collect ---------------------------------------------------------------------------------------


def test_collect_is_run_once_a_day(cluster: Cluster) -> None:
    first = work(cluster, "collect")
    assert (first.state, first.ended_ms, first.errors) == ("idle", 0, 0)
    assert 0 < first.next_ms - now_ms(cluster) <= DAY_MS
    assert not cluster.pool.collector.collect_if_due()
    version = cluster.pool.store.push(b"dropped" * 100_000, filename="f", user_id="u")
    cluster.pool.store.delete(version.file_id, user_id="u")
    cluster.clock.advance(2 * COLLECT_EVERY_S)
    cluster.pass_time(5.0)
    assert cluster.pool.collector.collect_if_due()
    ended = work(cluster, "collect")
    assert ended.ended_ms == now_ms(cluster)
    assert ended.next_ms == now_ms(cluster) + DAY_MS
    assert ended.note.startswith("removed 9 objects")
    assert not cluster.pool.collector.collect_if_due()


def test_a_pool_that_was_started_again_goes_on_with_its_schedule(cluster: Cluster) -> None:
    cluster.clock.advance(COLLECT_EVERY_S)
    cluster.pool.collector.collect_if_due()
    settle(cluster)
    before = {view.name: view for view in cluster.pool.view().work}
    cluster.crash_pool()
    cluster.start_pool()
    after = {view.name: view for view in cluster.pool.view().work}
    for name in ("repair", "rebalance", "collect"):
        assert (after[name].ended_ms, after[name].next_ms) == (before[name].ended_ms, before[name].next_ms)
        assert after[name].note == before[name].note
    assert after["collect"].ended_ms > 0
    assert after["repair"].ended_ms > 0


def test_a_collect_that_was_due_while_the_pool_was_away_is_made_up_for_once_all_workers_are_there(
    cluster: Cluster,
) -> None:
    """Before, it could free nothing, and would make the pool store the same content a second time."""
    version = cluster.pool.store.push(b"dropped" * 100_000, filename="f", user_id="u")
    cluster.pool.store.delete(version.file_id, user_id="u")
    cluster.crash_pool()
    cluster.clock.advance(3 * COLLECT_EVERY_S)
    late = cluster.workers[2]
    late.stop()
    cluster.start_pool()
    assert not cluster.pool.collector.collect_if_due()
    assert (work(cluster, "collect").state, work(cluster, "collect").note) == ("waiting", "no worker is connected yet")
    cluster.pass_time(2.0)
    assert not cluster.pool.collector.collect_if_due()
    assert work(cluster, "collect").note == "worker w2 is away"
    late.start()
    cluster.pass_time(2.0)
    assert cluster.pool.collector.collect_if_due()
    assert work(cluster, "collect").note.startswith("removed 9 objects")


def _keys(cluster: Cluster) -> list[int]:
    """How many shards each worker has; a volume's own mark belongs to no file."""
    return [sum(key[ID_BYTES] != Kind.MARK for key in worker.volume.records_by_key) for worker in cluster.workers]


def test_what_a_worker_keeps_that_missed_a_collect_is_freed_when_it_is_back(cluster: Cluster) -> None:
    """It is not waited for longer than an hour. What was stored again meanwhile is not there twice."""
    data = Random(1).randbytes(300_000)
    version = cluster.pool.store.push(data, filename="f", user_id="u")
    cluster.pool.store.delete(version.file_id, user_id="u")
    late = cluster.workers[2]
    late.stop()
    cluster.pass_time(1.0)
    cluster.pool.fleet.set_offline(2, "it was stopped")
    late_keys = _keys(cluster)[2]
    cluster.clock.advance(COLLECT_EVERY_S)
    assert not cluster.pool.collector.collect_if_due()
    cluster.clock.advance(3601.0)
    assert cluster.pool.collector.collect_if_due()
    assert "1 worker missed it" in work(cluster, "collect").note
    assert _keys(cluster)[2] == late_keys > 1 == _keys(cluster)[1]  # but for the tombstone
    cluster.crash_pool()
    cluster.start_pool()
    late.start()
    cluster.pass_time(5.0)
    again = cluster.pool.store.push(data, filename="again", user_id="u")
    cluster.pool.store.delete(again.file_id, user_id="u")
    assert cluster.pool.collector.collect_if_due()
    assert _keys(cluster) == [2] * 6
    assert not cluster.pool.collector.collect_if_due()


@pytest.mark.parametrize("every_s", [COLLECT_EVERY_S, 0.0])
def test_a_worker_that_missed_a_collect_is_swept_as_soon_as_it_is_back(cluster: Cluster, every_s: float) -> None:
    """Whatever the schedule: it may be full of what no file needs. Then it is given what it lacks."""
    store, late = cluster.pool.store, cluster.workers[2]
    collector = Collector(
        store, WorkJournal(cluster.pool.documents, lambda: now_ms(cluster)),
        every_s=every_s, tranquility=0.0, runtime=cluster.runtime,
    )  # fmt: skip
    kept = Random(1).randbytes(300_000)
    version = store.push(kept, filename="kept", user_id="u")
    dropped = store.push(Random(2).randbytes(300_000), filename="dropped", user_id="u")
    late.stop()
    cluster.pass_time(GRACE_S + 5.0)
    settle(cluster)
    store.delete(dropped.file_id, user_id="u")
    late_keys = _keys(cluster)[2]
    store.collect(grace_s=0)
    assert not collector.collect_if_due()
    late.start()
    cluster.pass_time(2.0)
    assert collector.collect_if_due()
    assert _keys(cluster)[2] < late_keys
    assert not collector.collect_if_due()
    assert (collector.view().next_ms > 0) is (every_s > 0)
    settle(cluster)
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
    assert store.get(version.file_id, user_id="u") == kept


def test_a_collect_that_makes_up_for_one_waits_a_moment_for_further_workers(cluster: Cluster) -> None:
    store, collector, (one, other, *_) = cluster.pool.store, cluster.pool.collector, cluster.workers
    for worker in (one, other):
        worker.stop()
    cluster.pass_time(5.0)
    assert store.collect(grace_s=0).stores_missed == 2
    one.start()
    cluster.pass_time(2.0)
    assert not collector.collect_if_due()
    assert work(cluster, "collect").note == "worker w1 is away"
    cluster.clock.advance(60.0)
    assert collector.collect_if_due()
    other.start()
    cluster.pass_time(2.0)
    assert not collector.collect_if_due()  # workers that come and go have a collect run every few minutes at most
    cluster.clock.advance(300.0)
    cluster.pass_time(2.0)
    assert collector.collect_if_due()
    assert not store.upkeep.is_collect_owed()


@pytest.mark.parametrize("every_s", [COLLECT_EVERY_S, 0.0])
def test_a_collect_begins_by_itself_once_much_could_be_freed(
    cluster: Cluster, every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "_LEFT_MIN", 500_000)
    store = cluster.pool.store
    collector = Collector(
        store, WorkJournal(cluster.pool.documents, lambda: now_ms(cluster)),
        every_s=every_s, tranquility=0.0, runtime=cluster.runtime,
    )  # fmt: skip

    def churn() -> None:
        for seed in range(3):
            version = store.push(Random(seed).randbytes(300_000), filename="a", user_id="u")
            store.delete(version.file_id, user_id="u")

    kept = store.push(Random(9).randbytes(300_000), filename="kept", user_id="u")
    whole = _keys(cluster)
    assert not collector.collect_if_due()
    churn()
    assert collector.collect_if_due() is (every_s > 0)
    if every_s:
        assert sum(_keys(cluster)) < sum(whole) + 3 * 6 + 1  # tombstones stay
        churn()
        assert not collector.collect_if_due()  # who goes on does not keep the pool collecting
        cluster.clock.advance(30.0)
        assert collector.collect_if_due()
        assert not collector.collect_if_due()
        assert collector.view().next_ms == now_ms(cluster) + DAY_MS
    assert len(store.get(kept.file_id, user_id="u")) == 300_000


def test_a_collect_without_any_worker_frees_nothing_and_says_so(cluster: Cluster) -> None:
    for worker in cluster.workers:
        worker.stop()
    cluster.pass_time(5.0)
    with pytest.raises(InsufficientWorkers, match="nothing can be freed"):
        cluster.pool.store.collect(grace_s=0)
    assert work(cluster, "collect").ended_ms == 0


@pytest.mark.parametrize("jump_s", [100 * 365.25 * 86_400, -100 * 365.25 * 86_400, 25 * 3600.0, -25 * 3600.0])
def test_the_schedule_goes_on_whatever_the_wall_clock_says(tmp_path: Path, catalog: LmdbCatalog, jump_s: float) -> None:
    clocks = Clocks()
    with FileStorage.open(tmp_path / "store", runtime=clocks) as store:
        journal = WorkJournal(catalog, lambda: clocks.wall_ns() // 1_000_000)
        collector = Collector(store, journal, every_s=COLLECT_EVERY_S, tranquility=0.0, runtime=clocks)
        clocks.elapsed_s += COLLECT_EVERY_S / 2
        clocks.wall_s += jump_s
        assert not collector.collect_if_due()
        assert abs(collector.view().next_ms - journal.now_ms() - DAY_MS / 2) < 60_000
        clocks.elapsed_s += COLLECT_EVERY_S / 2
        assert collector.collect_if_due()
        clocks.wall_s -= jump_s
        assert not collector.collect_if_due()
        assert abs(collector.view().next_ms - journal.now_ms() - DAY_MS) < 60_000


def test_a_collect_on_command_counts(cluster: Cluster) -> None:
    cluster.clock.advance(COLLECT_EVERY_S / 2)
    cluster.pool.store.collect(grace_s=0)
    assert work(cluster, "collect").ended_ms == now_ms(cluster)
    assert work(cluster, "collect").next_ms == now_ms(cluster) + DAY_MS


def collector_of(store: FileStorage, catalog: LmdbCatalog, every_s: float) -> tuple[Collector, WorkJournal]:
    journal = WorkJournal(catalog, lambda: Runtime().wall_ns() // 1_000_000)
    return Collector(store, journal, every_s=every_s, tranquility=0.0, runtime=Runtime()), journal


def _full(**_: object) -> None:
    raise StoreFull("no room")


def test_a_collect_that_fails_is_tried_again_soon(
    tmp_path: Path, catalog: LmdbCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks = Clocks()
    with FileStorage.open(tmp_path / "store", runtime=clocks) as store:
        journal = WorkJournal(catalog, lambda: clocks.wall_ns() // 1_000_000)
        collector = Collector(store, journal, every_s=COLLECT_EVERY_S, tranquility=0.0, runtime=clocks)
        monkeypatch.setattr(store, "collect", _full)
        for tries in (1, 2):
            clocks.elapsed_s += COLLECT_EVERY_S
            assert collector.collect_if_due()
            view = collector.view()
            assert (view.state, view.errors, view.ended_ms) == ("failed", tries, 0)
            assert "no room" in view.error
            assert 0 < view.next_ms - journal.now_ms() < DAY_MS / 2


def test_a_shorter_interval_takes_effect_at_the_next_start(tmp_path: Path, catalog: LmdbCatalog) -> None:
    with FileStorage.open(tmp_path / "store") as store:
        collector, journal = collector_of(store, catalog, COLLECT_EVERY_S)
        collector, journal = collector_of(store, catalog, 60.0)
        assert collector.view().next_ms <= journal.now_ms() + 60_000
        collector, journal = collector_of(store, catalog, 0.0)
        assert collector.view().next_ms == 0
        assert not collector.collect_if_due()


def test_records_that_are_damaged(catalog: LmdbCatalog) -> None:
    """They are a schedule: what cannot be read is due, and stops neither the pool nor other work."""
    journal = WorkJournal(catalog, lambda: 7)
    journal.ended("scrub", "fine", 99)
    kept = catalog.document("pool-work")
    assert kept is not None
    records = msgspec.msgpack.decode(kept)
    catalog.save_document("pool-work", msgspec.msgpack.encode(records | {"repair": {"next_ms": "soon"}}))
    journal = WorkJournal(catalog, lambda: 8)
    assert (journal.record("scrub").next_ms, journal.record("repair").next_ms) == (99, 0)
    catalog.save_document("pool-work", b"\xff")
    journal = WorkJournal(catalog, lambda: 9)
    assert journal.record("scrub").next_ms == 0
    journal.plan("scrub", 50)
    assert WorkJournal(catalog, lambda: 9).record("scrub").next_ms == 50


# -- repair and rebalance --------------------------------------------------------------------------


def test_repair_and_rebalance_are_told_apart(cluster: Cluster) -> None:
    cluster.add_worker()
    cluster.pass_time(2.0)
    cluster.pool.store.push(Random(1).randbytes(300_000), filename="f", user_id="u")
    settle(cluster)
    assert work(cluster, "rebalance").ended_ms == 0
    cluster.pool.drain("w2")
    cluster.pool.repair_scheduler.mend()
    assert work(cluster, "rebalance").note.startswith("moved ")
    assert not work(cluster, "repair").note.startswith("made ")
    gone = cluster.workers.pop(4)
    gone.stop()
    cluster.pass_time(GRACE_S + 5)
    cluster.pool.repair_scheduler.mend()
    assert work(cluster, "repair").note.startswith("made ")


def test_a_pass_that_left_all_in_its_place_is_not_followed_by_another(cluster: Cluster) -> None:
    cluster.pool.store.push(Random(1).randbytes(300_000), filename="f", user_id="u")
    settle(cluster)
    cluster.pool.drain("w2")
    assert len(cluster.pool.layouts) == 2
    cluster.pool.repair_scheduler.mend()
    assert len(cluster.pool.layouts) == 1
    assert cluster.pool.fleet.is_mended()
    calls = cluster.network.calls
    cluster.pool.repair_scheduler.mend()
    assert cluster.network.calls == calls


def test_objects_that_are_lost_are_an_error_until_they_are_back(cluster: Cluster) -> None:
    cluster.pool.store.push(Random(1).randbytes(300_000), filename="f", user_id="u")
    settle(cluster)
    away = cluster.workers[:3]
    for worker in away:
        worker.stop()
    cluster.pass_time(GRACE_S + 5)
    for tries in (1, 2):
        assert not cluster.pool.repair_scheduler.mend()
        view = work(cluster, "repair")
        assert (view.state, view.errors) == ("waiting", tries)
        assert "too few shards left" in view.error
        assert view.next_ms > now_ms(cluster)
    assert "repair waits: " in cluster.pool.view().health
    for worker in away:
        worker.start()
    settle(cluster)
    view = work(cluster, "repair")
    assert (view.state, view.errors, view.error) == ("idle", 0, "")


# -- scrub -----------------------------------------------------------------------------------------


def test_the_scrubs_of_all_workers_are_summed_up(cluster: Cluster) -> None:
    loads = {
        "w0": WorkerLoad(scrub_done=10, scrub_total=100, scrub_bytes_per_s=5.0, scrub_ended_ms=1000),
        "w1": WorkerLoad(scrub_done=30, scrub_total=60, scrub_bytes_per_s=1.0, scrub_ended_ms=900, scrub_errors=2),
    }
    for worker in cluster.workers:
        load = loads.get(worker.name, WorkerLoad(scrub_ended_ms=5000, scrub_next_ms=7000, rotten=1))
        assert cluster.pool.heartbeat(worker.name, worker.instance, load)
    view = work(cluster, "scrub")
    assert (view.state, view.done, view.total, view.unit, view.bytes_per_s) == ("running", 40, 160, "bytes", 6.0)
    assert (view.ended_ms, view.next_ms, view.errors, view.seconds_left) == (900, 7000, 2, 30.0)
    assert "2 of 6 workers" in view.note
    assert "4 rotten shards" in view.note


def test_nobody_scrubs() -> None:
    view = scrub_view([])
    assert (view.state, view.total, view.ended_ms) == ("idle", 0, 0)
    view = scrub_view([WorkerLoad(), WorkerLoad(scrub_ended_ms=5)])
    assert (view.state, view.ended_ms, view.note) == ("idle", 0, "1 of 2 have verified all they hold")


# -- health ----------------------------------------------------------------------------------------

IDLE = (WorkStatus("repair", "idle"), WorkStatus("rebalance", "idle"))
MENDING = (WorkStatus("repair", "running", 40, 100, seconds_left=120.0), WorkStatus("rebalance", "waiting"))


@pytest.mark.parametrize(
    ("files", "all_known", "line"),
    [
        ({1: 3}, True, "3 of 100 files survive one more loss; the others survive 2 more losses"),
        ({1: 1}, True, "1 of 100 files survives one more loss; the others survive 2 more losses"),
        ({0: 1, 1: 5}, True, "1 of 100 files can be read, but might not after one more loss, 5 of 100 files survive "
                             "one more loss; the others survive 2 more losses"),
        ({-1: 2}, True, "2 of 100 files cannot be read until a worker comes back; the others survive 2 more losses"),
        ({1: 3}, False, "all files survive the loss of any 1 worker"),
        ({1: 100}, True, "all files survive the loss of any 1 worker"),
        ({4: 3}, True, "all files survive the loss of any 1 worker"),
        ({}, True, "all files survive the loss of any 1 worker"),
    ],
)  # fmt: skip
def test_health_in_files(files: dict[int, int], all_known: bool, line: str) -> None:
    safety = Safety(1, 2, 100, Endangered(files, all_known))
    assert health_line(safety, 0, IDLE) == line
    assert health_line(safety, 1, MENDING) == f"{line}; 1 worker is away; repairing, 40 % done, 2 min left"


def test_health_by_how_files_are_coded() -> None:
    risks = [Risk("6-of-6", 1, 3, -1, 0), Risk("5-of-6", 0, 2, 0, 1), Risk("4-of-6", 9, 9, 2, 2)]
    safety = Safety(-1, 0, 10, Endangered({1: 3}, True), risks, ["zone"])
    assert health_line(safety, 0, IDLE) == (
        "1 file (6-of-6) cannot be read until a worker comes back, 2 earlier or deleted versions (5-of-6) can be read, "
        "but might not after one more loss; the others survive 2 more losses; the loss of one zone could make some "
        "files unreadable"
    )
    alike = [Risk("5-of-7", 1, 1, 2, 2), Risk("4-of-6", 9, 9, 2, 2)]
    assert health_line(Safety(2, 2, 10, None, alike), 0, IDLE) == "all files survive the loss of any 2 workers"


def test_health_knows_the_profiles_in_use(cluster: Cluster) -> None:
    store = cluster.pool.store
    store.push(b"usual", filename="usual", user_id="u")
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
    version = store.push(b"thrifty", filename="thrifty", user_id="u", profile=ErasureProfile(5, 6))
    settle(cluster)
    line = "1 file (5-of-6) survives one more loss; the others survive 2 more losses"
    assert cluster.pool.view().health == line
    assert cluster.pool.view().workers_survivable == 1
    cluster.workers[2].stop()
    cluster.pass_time(5.0)
    assert cluster.pool.view().health.startswith("1 file (5-of-6) can be read, but might not after one more loss; ")
    cluster.workers[2].start()
    settle(cluster)
    assert cluster.pool.view().health == line
    store.delete(version.file_id, user_id="u")
    assert "1 earlier or deleted version (5-of-6) survives one more loss" in cluster.pool.view().health
    store.collect(grace_s=0)
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"


def test_profiles_are_kept_in_step_and_counted_once_in_older_catalogs(cluster: Cluster) -> None:
    store = cluster.pool.store
    thrifty = ErasureProfile(5, 6)
    first = store.push(b"a", filename="a", user_id="u")
    store.push(b"b" * 100_000, filename="b", user_id="u", profile=thrifty)
    store.push(b"another", filename="a", user_id="u", profile=thrifty)
    expected = [ProfileCount(4, 6, 0, 1), ProfileCount(5, 6, 2, 2), ProfileCount(1, 6, 0, 0)]
    assert store.profiles() == expected
    cluster.database.change({("", b"profiles"): None})  # as older software left it
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(5.0)
    store = cluster.pool.store
    assert store.profiles() == expected
    store.delete(first.file_id, user_id="u")
    assert store.profiles() == [ProfileCount(4, 6, 0, 1), ProfileCount(5, 6, 1, 2), ProfileCount(1, 6, 0, 0)]
    store.collect(grace_s=0)
    assert store.profiles() == [ProfileCount(5, 6, 1, 1), ProfileCount(1, 6, 0, 0)]


def test_health_names_the_files_that_lack_shards(cluster: Cluster) -> None:
    """Sectors of two disks go bad under the only chunk of one file: all others keep what the layout promises."""
    for number in range(5):
        cluster.pool.store.push(Random(number).randbytes(1000), filename=f"f{number}", user_id="u")
    settle(cluster)
    file = cluster.pool.store.find("f1", user_id="u")
    assert file is not None
    (chunk,) = cluster.pool.store.chunk_ids(file.file_id, user_id="u")
    for worker in cluster.workers[:2]:
        worker.volume.remove([key for key in list(worker.volume.records_by_key) if key[:32] == chunk])
    cluster.pool.fleet.note_rot(0, 1)
    seen: list[str] = []
    for calls in range(1, 60):
        cluster.network.after_calls(calls, lambda: seen.append(cluster.pool.view().health))
    cluster.pool.repair_scheduler.mend()
    least = "1 of 5 files can be read, but might not after one more loss; the others survive 2 more losses"
    assert any(line.startswith(least) for line in seen), seen
    assert cluster.pool.view().health == "all files survive the loss of any 2 workers"


# -- making way ------------------------------------------------------------------------------------


def test_nobody_rests_while_no_user_is_at_work() -> None:
    closed = threading.Event()
    Tranquility(1e9, lambda: False, closed).rest(1e9)
    Tranquility(0.0, lambda: True, closed).rest(1e9)


def test_a_lull_is_over_when_users_pause_or_something_else_is_to_be_done() -> None:
    closed = threading.Event()
    busy = iter([True, True, False])
    Tranquility(1.0, lambda: next(busy), closed).lull(lambda: False)
    assert next(busy, None) is None
    Tranquility(1.0, lambda: True, closed).lull(lambda: True)
    Tranquility(0.0, lambda: True, closed).lull(lambda: False)
    seconds = count(0.0, 0.9)
    Tranquility(1.0, lambda: True, closed, lambda: next(seconds)).lull(lambda: False)
    assert next(seconds) > 2.0  # users who do not pause at all are waited for in vain
    closed.set()
    Tranquility(1.0, lambda: True, closed).lull(lambda: False)


def test_threads_rest_one_after_another_and_not_once_the_pool_is_closed() -> None:
    closed = threading.Event()
    looks: list[int] = []

    def is_busy() -> bool:
        looks.append(0)
        return True

    tranquility = Tranquility(1e9, is_busy, closed)
    threads = [threading.Thread(target=tranquility.rest, args=(1.0,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    while len(looks) < 4:  # each has looked, and the first of them once more, before it rests
        closed.wait(0.001)
    closed.wait(0.05)
    assert len(looks) == 4
    closed.set()
    for thread in threads:
        thread.join()
