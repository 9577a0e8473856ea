"""Members and layout agree, whenever the pool is killed; who is drained or forgotten is so for people, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from storage import ErasureProfile
from storage.catalog import LmdbCatalog
from storage.errors import FormatError, InvalidArgument
from storage.fleet.layout import Layout
from taskworker.errors import WorkerRefused
from taskworker.pool.membership import Application, MemberRecord, Standing
from taskworker.pool.roster import Roster, RosterKeeper
from taskworker.rpc.protocol import PROTOCOL
from tests.simulation.pool import GRACE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated_surroundings():
        yield


def cluster_of(count: int) -> Cluster:
    return Cluster(Random(1), ErasureProfile(4, 6), count, zones=1)


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def states(cluster: Cluster) -> dict[str, str]:
    return {view.record.worker: view.state.value for view in cluster.pool.view().workers}


def check_agreement(cluster: Cluster) -> None:
    """Exactly those members take part in the layout whose standing says so."""
    taking_part = {record.worker for record in cluster.pool.membership.records if record.standing is Standing.IN}
    assert {member.worker for member in cluster.pool.fleet.placement.members} == taking_part


class Killed(Exception):
    """The process is no more."""


def killed_at_commit(cluster: Cluster, number: int, work: Callable[[], object]) -> bool:
    """Do something, and kill the pool at its ``number``-th step to or from a commit; whether it got that far."""
    reach, steps = cluster.tables._reach, [0]

    def reach_until(where: str) -> None:
        reach(where)
        steps[0] += where.startswith("catalog:")
        if steps[0] == number:
            cluster.crash_pool()
            raise Killed

    cluster.tables._reach = reach_until
    try:
        work()
    except Killed:
        return True
    finally:
        cluster.tables._reach = reach
    return False


def test_a_pool_killed_before_its_first_layout_makes_it_when_started_again() -> None:
    cluster = cluster_of(0)
    for _ in range(6):
        cluster.add_worker().beat(cluster.pool)
    assert not cluster.pool.layouts
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(2.0)
    assert len(cluster.pool.fleet.placement.members) == 6
    cluster.pool.store.push(b"content", filename="f", user_id="u")


def drain(cluster: Cluster) -> None:
    cluster.pool.drain("w2")


def add(cluster: Cluster) -> None:
    cluster.add_worker()
    cluster.pass_time(2.0)


def lose(cluster: Cluster) -> None:
    cluster.workers[3].stop()
    cluster.pass_time(2 * GRACE_S)


def forget(cluster: Cluster) -> None:
    cluster.workers[4].stop()
    cluster.pass_time(5.0)
    cluster.pool.forget("w4")


def finish_drain(cluster: Cluster) -> None:
    cluster.pool.drain("w2")
    settle(cluster)


@pytest.mark.parametrize("change", [drain, add, lose, forget, finish_drain])
def test_members_and_layout_agree_wherever_the_pool_is_killed(change: Callable[[Cluster], None]) -> None:
    for number in range(1, 30):
        cluster = cluster_of(7)
        version = cluster.pool.store.push(b"content" * 1000, filename="f", user_id="u")
        if not killed_at_commit(cluster, number, lambda: change(cluster)):  # noqa: B023 - called at once
            assert number > 2
            return
        cluster.start_pool()
        cluster.pass_time(4.0)
        check_agreement(cluster)
        settle(cluster)
        assert cluster.pool.store.get(version.file_id, user_id="u") == b"content" * 1000
        assert len(cluster.pool.layouts) == 1


def test_a_drained_worker_is_drained_for_people_and_not_missed() -> None:
    cluster = cluster_of(7)
    cluster.pool.store.push(b"content" * 1000, filename="f", user_id="u")
    assert states(cluster)["w3"] == "alive"
    cluster.pool.drain("w3")
    assert states(cluster)["w3"] == "draining"
    settle(cluster)
    assert states(cluster)["w3"] == "drained"
    cluster.workers[3].stop()
    cluster.pass_time(2 * GRACE_S)
    assert states(cluster)["w3"] == "drained"
    assert "away" not in cluster.pool.view().health
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(5.0)
    settle(cluster)
    assert "away" not in cluster.pool.view().health
    with pytest.raises(InvalidArgument, match="drained already; stop it for good, then run `taskworker forget w3`"):
        cluster.pool.drain("w3")
    cluster.workers[3].start()
    cluster.pass_time(2.0)
    assert states(cluster)["w3"] == "drained"  # and takes no shards until told
    check_agreement(cluster)
    cluster.pool.drain("w3", cancel=True)
    assert states(cluster)["w3"] == "alive"
    check_agreement(cluster)


def test_what_cancelling_a_drain_says_is_true() -> None:
    cluster = cluster_of(7)
    with pytest.raises(InvalidArgument, match="worker w3 is not being drained"):
        cluster.pool.drain("w3", cancel=True)
    cluster.pool.drain("w3")
    cluster.workers[3].stop()
    cluster.pass_time(5.0)
    with pytest.raises(InvalidArgument, match=r"worker w3 does not answer.*start it and cancel the drain then"):
        cluster.pool.drain("w3", cancel=True)
    with pytest.raises(InvalidArgument, match="no worker 'w9'"):
        cluster.pool.drain("w9", cancel=True)


def test_a_worker_that_never_comes_back_is_forgotten() -> None:
    cluster = cluster_of(5)  # too few to do without one by themselves
    version = cluster.pool.store.push(b"content" * 1000, filename="f", user_id="u")
    with pytest.raises(InvalidArgument, match="w3 is running, and would join again; drain it and stop it first"):
        cluster.pool.forget("w3")
    gone = cluster.workers.pop(3)
    gone.stop()
    cluster.pass_time(2 * GRACE_S)
    cluster.pool.forget("w3")
    settle(cluster)
    assert "w3" not in states(cluster)
    health = cluster.pool.view().health
    assert "away" not in health
    assert len(cluster.pool.layouts) == 1
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(5.0)
    assert sorted(states(cluster)) == ["w0", "w1", "w2", "w4"]
    assert cluster.add_worker().name == "w5"
    cluster.pass_time(2.0)
    assert {record.worker: record.slot for record in cluster.pool.membership.records}["w5"] == 5  # never slot 3 again
    cluster.workers.append(gone)
    gone.start()
    cluster.pass_time(2.0)
    assert {record.worker: record.slot for record in cluster.pool.membership.records}["w3"] == 6
    settle(cluster)
    assert cluster.pool.store.get(version.file_id, user_id="u") == b"content" * 1000


def test_the_last_worker_is_not_forgotten() -> None:
    cluster = cluster_of(2)
    for worker in cluster.workers:
        worker.stop()
    cluster.pass_time(5.0)
    cluster.pool.forget("w0")
    with pytest.raises(InvalidArgument, match="w1 is the only one with a part in the layout"):
        cluster.pool.forget("w1")
    with pytest.raises(InvalidArgument, match="no worker 'w0'"):
        cluster.pool.forget("w0")


def test_a_worker_that_cannot_be_reached_is_no_member() -> None:
    """It was not let in: nobody waits for it, and no layout counts on it."""
    cluster = cluster_of(6)
    stranger = Application("w6", "sim:nowhere", "", 1 << 30, "instance", "volume", "", PROTOCOL, "1.0")
    with pytest.raises(WorkerRefused, match="the pool cannot reach worker w6"):
        cluster.pool.join(stranger)
    cluster.pass_time(5.0)
    assert "w6" not in states(cluster)
    assert "away" not in cluster.pool.view().health
    cluster.pool.drain("w1")
    assert len(cluster.pool.fleet.placement.members) == 5


# -- keeping ---------------------------------------------------------------------------------------


def record_of(slot: int, standing: Standing = Standing.IN) -> MemberRecord:
    return MemberRecord(slot, f"w{slot}", "", 1 << 30, f"w{slot}:1", "volume", standing)


def roster_of(*slots: int) -> Roster:
    records = tuple(record_of(slot) for slot in slots)
    layout = Layout.first([record.member for record in records], 3)
    return Roster(records, max(slots) + 1, (layout,), ())


def plain(roster: Roster) -> tuple[object, ...]:
    layouts = [[layout.record() for layout in group] for group in (roster.layouts, roster.retired)]
    return (list(roster.members), roster.slots_given, *layouts)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[LmdbCatalog]:
    catalog = LmdbCatalog(tmp_path / "catalog")
    yield catalog
    catalog.close()


def test_a_roster_is_kept(catalog: LmdbCatalog) -> None:
    keeper = RosterKeeper(catalog)
    assert keeper.roster == Roster()
    for roster in (roster_of(0, 1), roster_of(1, 5), Roster()):
        keeper.keep(roster)
        assert plain(RosterKeeper(catalog).roster) == plain(keeper.roster) == plain(roster)


def test_a_roster_of_an_older_pool_is_read(catalog: LmdbCatalog) -> None:
    """It was kept without a count of the slots given, and its members knew no more than this."""
    expected = roster_of(0, 3)
    fields = ("slot", "worker", "zone", "capacity", "address", "volume_id", "standing")
    members = [{name: msgspec.structs.asdict(record)[name] for name in fields} for record in expected.members]
    catalog.save_document("pool-members", msgspec.msgpack.encode(members))
    layouts = [
        {
            "version": layout.version,
            "width": layout.width,
            "members": [
                {name: getattr(member, name) for name in ("slot", "worker", "zone", "capacity")}
                for member in layout.members
            ],
            "table": layout.record().table,
        }
        for layout in expected.layouts
    ]
    catalog.save_document("pool-layouts", msgspec.msgpack.encode(layouts))
    assert plain(RosterKeeper(catalog).roster) == plain(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pool-members", "list of members is damaged"),
        ("pool-layouts", "layouts are damaged"),
        ("pool-retired-layouts", "layouts are damaged"),
        ("pool-slots-given", "count of members is damaged"),
    ],
)
def test_a_damaged_roster(catalog: LmdbCatalog, name: str, text: str) -> None:
    catalog.save_document(name, b"\xff\xff")
    with pytest.raises(FormatError, match=text):
        RosterKeeper(catalog)
