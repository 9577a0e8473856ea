"""A short absence costs nothing: what a worker holds is made again only once the grace is over, or in danger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, NoReturn

import pytest

from storage import ErasureProfile
from storage.errors import ShardsUnavailable
from storage.keys import ID_BYTES, Kind, ShardKey, StripeKey
from storage.reports import RepairReport
from storage.shards import ShardStore, VolumeUnavailable
from taskworker.reports import WorkStatus
from taskworker.transport.absences import Absences
from taskworker.transport.remote_volume import RemoteVolume
from tests.simulation.disk import Record
from tests.simulation.model import chunks_of
from tests.simulation.pool import GRACE_S, LEASE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

CONTENT = Random(7).randbytes(300_000)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# -- how long a member is waited for ---------------------------------------------------------------


def test_a_member_is_waited_for_until_the_grace_is_over() -> None:
    clock = Clock()
    absences = Absences(30.0, clock)
    assert absences.left_s(1) == 0  # nobody knows of it
    absences.note(1, away=True)
    clock.now_s += 10
    absences.note(1, away=True)
    assert absences.awaited([1, 2]) == {1: 20.0}
    clock.now_s += 20
    assert absences.awaited([1, 2]) == {}
    absences.note(1, away=False)
    assert absences.left_s(1) == 0


@pytest.mark.parametrize(
    ("away_s", "there_s", "rounds_until_it_is_not_waited_for"), [(5.0, 6.0, None), (20.0, 1.0, 2), (10.0, 5.0, 5)]
)
def test_short_absences_are_forgiven_but_not_one_after_another(
    away_s: float, there_s: float, rounds_until_it_is_not_waited_for: int | None
) -> None:
    clock = Clock()
    absences = Absences(30.0, clock)
    for number in range(1, 20):
        absences.note(1, away=True)
        clock.now_s += away_s
        if absences.left_s(1) == 0:
            assert number == rounds_until_it_is_not_waited_for
            return
        absences.note(1, away=False)
        clock.now_s += there_s
    assert rounds_until_it_is_not_waited_for is None


def test_a_forgotten_member_is_not_waited_for() -> None:
    absences = Absences(30.0, Clock())
    absences.note(1, away=True)
    absences.forget(1)
    assert absences.left_s(1) == 0


# -- what that means for repair --------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated_surroundings():
        yield


def stored(count: int, k: int = 4, n: int = 6) -> Cluster:
    """A pool with a file, and everything in its place."""
    cluster = Cluster(Random(1), ErasureProfile(k, n), count, zones=1)
    cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    return cluster


def settle(cluster: Cluster) -> None:
    for _ in range(3):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def go(cluster: Cluster, worker: Worker) -> None:
    worker.stop()
    cluster.pass_time(LEASE_S + 1)


def held(cluster: Cluster) -> int:
    return sum(len(worker.volume.records_by_key) for worker in cluster.workers)


def repair_of(cluster: Cluster) -> WorkStatus:
    return next(work for work in cluster.pool.view().work if work.name == "repair")


def copies(cluster: Cluster, stripe: StripeKey, *, among: list[Worker]) -> int:
    keys = {key for worker in among for key in worker.volume.records_by_key if key[:35] == stripe}
    return len(keys)


def test_short_absences_write_nothing() -> None:
    cluster = stored(6)
    before = held(cluster)
    for _ in range(6):
        go(cluster, cluster.workers[0])
        assert cluster.pool.repair_scheduler.mend()
        view = repair_of(cluster)
        assert (view.state, view.errors) == ("waiting", 0)
        assert view.note.startswith("waits for worker w0, ")
        assert f"repair {view.note}" in cluster.pool.view().health
        assert view.queue > 0
        cluster.workers[0].start()
        settle(cluster)
        assert repair_of(cluster).state == "idle"
        assert cluster.pool.view().health == "all files survive the loss of any 2 workers"
    assert held(cluster) == before


def test_after_the_grace_what_is_missing_is_made_again() -> None:
    cluster = stored(6)
    go(cluster, cluster.workers[0])
    cluster.pool.repair_scheduler.mend()
    (stripe, *_) = chunks_of(CONTENT, cluster.profile)
    assert copies(cluster, stripe, among=cluster.workers[1:]) == 5
    cluster.pass_time(GRACE_S)
    settle(cluster)
    assert copies(cluster, stripe, among=cluster.workers[1:]) == 6
    assert repair_of(cluster).state == "idle"


def test_repair_that_is_about_to_begin_is_not_said_to_be_done() -> None:
    """The grace is over, and the next pass has not begun."""
    cluster = stored(6)
    go(cluster, cluster.workers[0])
    cluster.pool.repair_scheduler.mend()
    assert cluster.workers[0].name in repair_of(cluster).note
    cluster.pass_time(GRACE_S)
    waiting = repair_of(cluster)
    assert (waiting.state, waiting.note) == ("waiting", "is about to begin")
    assert waiting.queue > 0
    settle(cluster)
    assert repair_of(cluster).state == "idle"
    assert repair_of(cluster).queue == 0


def test_repair_is_not_said_to_be_done_before_the_pass_that_a_loss_calls_for() -> None:
    cluster = stored(6)
    assert repair_of(cluster).state == "idle"
    go(cluster, cluster.workers[0])
    assert (repair_of(cluster).state, repair_of(cluster).note) == ("waiting", "is about to begin")


def test_repair_is_not_said_to_be_done_if_a_worker_went_during_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = stored(6)
    repair = cluster.pool.store.repair

    def disturbed(**arguments: Any) -> RepairReport:
        report = repair(**arguments)
        go(cluster, cluster.workers[0])
        return report

    monkeypatch.setattr(cluster.pool.store, "repair", disturbed)
    cluster.pool.fleet.note_unknown()
    assert cluster.pool.repair_scheduler.mend()
    assert repair_of(cluster).state == "waiting"
    monkeypatch.undo()
    cluster.workers[0].start()
    settle(cluster)
    assert repair_of(cluster).state == "idle"


def test_what_is_in_danger_does_not_wait() -> None:
    """Four of six are left, no more than are needed. Copies of metadata, of which one would do, wait."""
    cluster = stored(6)
    for worker in cluster.workers[:2]:
        worker.stop()
    cluster.pass_time(LEASE_S + 1)
    cluster.pool.repair_scheduler.mend()
    for stripe in chunks_of(CONTENT, cluster.profile):
        assert copies(cluster, stripe, among=cluster.workers[2:]) == 6
    assert repair_of(cluster).state == "waiting"


def test_a_profile_without_a_margin_never_waits() -> None:
    cluster = stored(5, 2, 3)
    go(cluster, cluster.workers[0])
    cluster.pool.repair_scheduler.mend()
    for stripe in chunks_of(CONTENT, cluster.profile):
        assert copies(cluster, stripe, among=cluster.workers[1:]) == 3


def test_what_cannot_be_made_is_not_lost_while_workers_may_come_back() -> None:
    cluster = stored(6)
    for worker in cluster.workers[:3]:
        worker.stop()
    cluster.pass_time(LEASE_S + 1)
    assert cluster.pool.repair_scheduler.mend()
    assert (repair_of(cluster).state, repair_of(cluster).errors) == ("waiting", 0)
    cluster.pass_time(GRACE_S)
    assert not cluster.pool.repair_scheduler.mend()
    assert "too few shards left" in repair_of(cluster).error


def test_only_what_was_written_meanwhile_is_given_to_a_worker_that_comes_back() -> None:
    cluster = stored(6)
    worker = cluster.workers[0]
    # Its mark is written anew whenever it joins.
    kept = {key: record for key, record in worker.volume.records_by_key.items() if key[ID_BYTES] != Kind.MARK}
    go(cluster, worker)
    cluster.pool.repair_scheduler.mend()
    other = Random(8).randbytes(200_000)
    cluster.pool.store.push(other, filename="g", user_id="u")
    stripes = chunks_of(other, cluster.profile)
    assert all(copies(cluster, stripe, among=cluster.workers[1:]) == 6 for stripe in stripes)  # others stand in
    worker.start()
    settle(cluster)
    given = worker.volume.records_by_key.keys() - kept.keys()
    assert {key[:35] for key in given} >= set(stripes)
    assert all(worker.volume.records_by_key[key] is record for key, record in kept.items())
    total = sum(len(one.volume.records_by_key) for one in cluster.workers)
    assert total == len({key for one in cluster.workers for key in one.volume.records_by_key})  # no copy is left over


def test_rot_is_mended_while_others_are_waited_for() -> None:
    cluster = stored(7, 4, 7)
    (stripe, *_) = chunks_of(CONTENT, cluster.profile)
    go(cluster, cluster.workers[0])
    victim = cluster.workers[1]
    lost = [key for key in victim.volume.records_by_key if key[:35] == stripe]
    victim.volume.remove(lost)
    cluster.pool.fleet.note_rot(1, 1)
    cluster.pool.repair_scheduler.mend()
    assert all(key in victim.volume.records_by_key for key in lost)
    assert copies(cluster, stripe, among=cluster.workers[1:]) == 6


def test_a_pool_that_was_started_again_waits_for_its_workers() -> None:
    cluster = stored(6)
    before = held(cluster)
    away = cluster.workers[0]
    away.stop()
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(LEASE_S + 2)
    cluster.pool.repair_scheduler.mend()
    assert repair_of(cluster).note.startswith("waits for worker w0, ")
    away.start()
    settle(cluster)
    assert held(cluster) == before


def test_reading_makes_nothing_again_either() -> None:
    cluster = stored(6)
    before = held(cluster)
    go(cluster, cluster.workers[0])
    file = cluster.pool.store.find("f", user_id="u")
    assert file is not None
    assert cluster.pool.store.get(file.file_id, user_id="u") == CONTENT
    cluster.runtime.background.run()
    assert held(cluster) == before


def test_what_a_reader_had_made_while_a_repair_went_on_is_not_made_again() -> None:
    cluster = stored(6)
    stripes = list(chunks_of(CONTENT, cluster.profile))
    (worker, *_) = cluster.workers
    worker.volume.remove([key for key in worker.volume.records_by_key if key[:35] in stripes])
    store = cluster.pool.store._parts.stripes
    found = store.shard_maps(stripes)  # by the repair
    assert [made for made in store.heal_all(stripes) if isinstance(made, tuple) and made[0] == 1]
    store.volumes.sync_each()
    assert store.heal_all(stripes, found) == [(0, 0)] * len(stripes)


def records_of(worker: Worker) -> dict[ShardKey, Record]:
    # Its mark is written anew whenever it joins.
    return {key: record for key, record in worker.volume.records_by_key.items() if key[ID_BYTES] != Kind.MARK}


@pytest.mark.parametrize("question", ["missing", "locate"])
def test_a_worker_whose_connection_breaks_while_it_is_asked_is_given_nothing_again(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there again before what was found is acted on."""
    cluster = stored(6)
    fleet, worker = cluster.pool.fleet, cluster.workers[0]
    kept = records_of(worker)
    go_offline = fleet.set_offline

    def return_at_once(slot: int, reason: str, failed: ShardStore | None = None) -> None:
        go_offline(slot, reason, failed)
        fleet.attach(slot, cluster.process.connect(worker.address, worker.name, worker.instance))

    monkeypatch.setattr(fleet, "set_offline", return_at_once)
    stripes = list(chunks_of(CONTENT, cluster.profile))
    cluster.network.lost_requests[worker.address] = 1
    if question == "missing":
        assert cluster.pool.store._parts.stripes.heal_all(stripes) == [(0, 0)] * len(stripes)
    else:
        assert cluster.pool.store._parts.stripes.absent_slots(stripes[0]) == []
    assert cluster.network.injected["request lost"] == 1
    settle(cluster)
    assert all(worker.volume.records_by_key[key] is record for key, record in kept.items())


def test_what_a_worker_that_does_not_answer_may_have_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few shards are where they belong, and the seventh worker may have any."""
    cluster = stored(7)
    (stripe, *_) = chunks_of(CONTENT, cluster.profile)
    for worker in cluster.workers[:6]:
        worker.volume.remove([key for key in worker.volume.records_by_key if key[:35] == stripe])

    def refuse(volume: RemoteVolume, keys: Sequence[ShardKey]) -> NoReturn:
        raise VolumeUnavailable("too many open files")

    monkeypatch.setattr(RemoteVolume, "locate_all", refuse)
    with pytest.raises(ShardsUnavailable, match="too many open files"):
        cluster.pool.store._parts.stripes.read(stripe)
