"""Leases, grace times and identities of workers, over a clock that tests turn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from storage.errors import InvalidArgument
from taskworker.errors import WorkerRefused
from taskworker.pool.membership import (
    Admission,
    Application,
    Expiry,
    MemberRecord,
    Membership,
    Standing,
    WorkerLoad,
    WorkerState,
)
from taskworker.rpc.protocol import PROTOCOL

POOL = "00" * 16
LEASE_S = 10.0
GRACE_S = 30.0
LOAD = WorkerLoad(cpu=0.5, bytes_used=7, bytes_live=6, bytes_free=5, shards=4)


@dataclass(slots=True)
class Clock:
    """Stands still unless told."""

    now_s: float = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def membership(clock: Clock) -> Membership:
    return membership_of(clock)


def membership_of(clock: Clock, records: Iterable[MemberRecord] = ()) -> Membership:
    return Membership(
        POOL, list(records), lease_s=LEASE_S, grace_s=GRACE_S, clock_s=clock.monotonic_s, now_ms=clock.wall_ms
    )


def application(worker: str = "w1", instance: str = "i1", **changes: Any) -> Application:
    plain = Application(worker, f"{worker}:1", "", 100, instance, f"volume of {worker}", POOL, PROTOCOL, "1.0")
    return replace(plain, **changes)


def workers(records: Iterable[MemberRecord]) -> list[str]:
    return [record.worker for record in records]


def expired(membership: Membership) -> tuple[list[str], list[str]]:
    """Who is told to be suspect, and who lost."""
    expiry: Expiry = membership.expire()
    return workers(expiry.suspect), workers(expiry.lost)


def state_of(membership: Membership, worker: str = "w1") -> WorkerState:
    return next(view.state for view in membership.views() if view.record.worker == worker)


# -- joining ---------------------------------------------------------------------------------------


def test_a_worker_joins(membership: Membership, clock: Clock) -> None:
    admission = membership.join(application(zone="rack 1", capacity=5))
    record = MemberRecord(0, "w1", "rack 1", 5, "w1:1", "volume of w1", Standing.IN)
    assert admission == Admission(record, emptied=False, layout_changes=True)
    assert membership.records == [record]
    assert membership.members() == [record.member]
    (view,) = membership.views()
    assert (view.record, view.state, view.load, view.seen_ms) == (
        record,
        WorkerState.ALIVE,
        WorkerLoad(),
        clock.wall_ms(),
    )


def test_slots_are_given_in_the_order_of_joining(membership: Membership) -> None:
    assert [membership.join(application(worker)).record.slot for worker in ("c", "a", "b")] == [0, 1, 2]
    assert workers(membership.records) == ["c", "a", "b"]


def test_a_pool_that_was_started_again_goes_on_with_its_slots(clock: Clock, membership: Membership) -> None:
    membership.join(application("a"))
    membership.join(application("b"))
    again = membership_of(clock, membership.records)
    assert again.join(application("b", "other")).record.slot == 1
    assert again.join(application("c")).record.slot == 2


def test_a_slot_is_never_given_twice(membership: Membership) -> None:
    for worker in ("a", "b"):
        membership.join(application(worker))
    membership.forget("b")
    assert membership.join(application("c")).record.slot == 2
    membership.forget("c")
    assert membership.join(application("b")).record.slot == 3


def test_the_same_process_joins_again_as_itself(membership: Membership) -> None:
    first = membership.join(application())
    again = membership.join(application())
    assert again == Admission(first.record, emptied=False, layout_changes=False)


@pytest.mark.parametrize("change", [{"zone": "z"}, {"capacity": 7}, {"owner": "o"}])
def test_another_zone_owner_or_capacity_changes_the_layout(membership: Membership, change: dict[str, Any]) -> None:
    membership.join(application())
    assert membership.join(application(**change)).layout_changes


def test_another_address_does_not_change_the_layout(membership: Membership) -> None:
    membership.join(application())
    admission = membership.join(application(address="elsewhere:2"))
    assert not admission.layout_changes
    assert membership.records[0].address == "elsewhere:2"


def test_another_volume_is_an_empty_one(membership: Membership) -> None:
    membership.join(application())
    admission = membership.join(application(volume_id="another"))
    assert admission.emptied
    assert admission.record.slot == 0
    assert not membership.join(application(volume_id="another")).emptied


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            {"protocol": PROTOCOL + 1, "version": "9.9"},
            WorkerRefused,
            rf"w1 speaks protocol {PROTOCOL + 1} \(version 9.9\), this pool {PROTOCOL}; install the worker's release",
        ),
        (
            {"protocol": PROTOCOL - 1, "version": "0.0"},
            WorkerRefused,
            rf"w1 speaks protocol {PROTOCOL - 1} \(version 0.0\), this pool {PROTOCOL}; install the pool's release",
        ),
        (
            {"pool_id": "11" * 16},
            WorkerRefused,
            f"belongs to pool {'11' * 16}, this is pool {POOL}; give the worker an empty directory",
        ),
        ({"capacity": 0}, InvalidArgument, "w1: its capacity must be at least 1 byte"),
        ({"capacity": -5}, InvalidArgument, "w1: its capacity must be at least 1 byte"),
    ],
)
def test_who_is_not_let_in(membership: Membership, change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        membership.join(application(**change))
    assert membership.records == []
    assert membership.views() == []


def test_a_worker_without_a_pool_yet_is_let_in(membership: Membership) -> None:
    assert membership.join(application(pool_id="")).record.slot == 0


def test_another_process_with_the_id_of_a_living_worker_is_refused(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    clock.now_s += LEASE_S - 1
    with pytest.raises(WorkerRefused, match=r"a living worker has the id w1 \(at w1:1\); choose another id, or stop"):
        membership.join(application(instance="i2", address="thief:1", volume_id="another"))
    assert membership.records[0].address == "w1:1"
    assert membership.heartbeat("w1", "i1", LOAD)


def test_after_the_lease_another_process_takes_the_id_and_the_slot(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    clock.now_s += LEASE_S
    assert membership.join(application(instance="i2")).record.slot == 0
    assert not membership.heartbeat("w1", "i1", LOAD)
    assert membership.heartbeat("w1", "i2", LOAD)
    with pytest.raises(WorkerRefused, match="living"):
        membership.join(application(instance="i1"))


def test_after_it_left_another_process_takes_the_id_at_once(membership: Membership) -> None:
    membership.join(application())
    membership.leave("w1", "i1")
    assert membership.join(application(instance="i2")).record.slot == 0
    assert state_of(membership) is WorkerState.ALIVE


# -- leases ----------------------------------------------------------------------------------------


def test_heartbeats_keep_a_worker_alive(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    for _ in range(10):
        clock.now_s += LEASE_S - 1
        assert membership.heartbeat("w1", "i1", LOAD)
        assert expired(membership) == ([], [])
    (view,) = membership.views()
    assert (view.state, view.load, view.seen_ms) == (WorkerState.ALIVE, LOAD, clock.wall_ms())


def test_no_lease_to_renew(membership: Membership, clock: Clock) -> None:
    assert not membership.heartbeat("w1", "i1", LOAD)
    membership.join(application())
    assert not membership.heartbeat("w1", "i2", LOAD)
    clock.now_s += LEASE_S
    assert not membership.heartbeat("w1", "i1", LOAD)
    membership.join(application())
    membership.leave("w1", "i1")
    assert not membership.heartbeat("w1", "i1", LOAD)


def test_a_silent_worker_is_suspect_once_and_lost_once(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    membership.join(application("w2"))
    clock.now_s += LEASE_S - 1
    assert membership.heartbeat("w2", "i1", LOAD)
    assert expired(membership) == ([], [])
    clock.now_s += 1
    assert expired(membership) == (["w1"], [])
    assert expired(membership) == ([], [])
    assert state_of(membership) is WorkerState.SUSPECT
    assert state_of(membership, "w2") is WorkerState.ALIVE
    for _ in range(int(GRACE_S) - 1):
        clock.now_s += 1
        assert membership.heartbeat("w2", "i1", LOAD)
        assert expired(membership) == ([], [])
    clock.now_s += 1
    assert membership.heartbeat("w2", "i1", LOAD)
    assert expired(membership) == ([], ["w1"])
    assert state_of(membership) is WorkerState.LOST
    clock.now_s += 10 * GRACE_S
    membership.join(application("w2"))
    assert expired(membership) == ([], [])


def test_grace_counts_from_when_silence_was_noticed(membership: Membership, clock: Clock) -> None:
    """A pool that was asleep itself loses nobody at once."""
    membership.join(application())
    clock.now_s += 100 * GRACE_S
    assert expired(membership) == (["w1"], [])
    clock.now_s += GRACE_S
    assert expired(membership) == ([], ["w1"])


@pytest.mark.parametrize("silent_s", [LEASE_S, LEASE_S + GRACE_S], ids=["suspect", "lost"])
def test_a_worker_comes_back_as_itself(membership: Membership, clock: Clock, silent_s: float) -> None:
    membership.join(application("w0"))
    record = membership.join(application()).record
    for _ in range(2):
        clock.now_s += silent_s
        membership.expire()
        clock.now_s += GRACE_S if silent_s > LEASE_S else 0
        membership.expire()
        assert state_of(membership) is not WorkerState.ALIVE
        admission = membership.join(application(instance="restarted"))
        assert admission == Admission(record, emptied=False, layout_changes=False)
        assert state_of(membership) is WorkerState.ALIVE
        assert expired(membership)[0] == []


def test_after_a_restart_of_the_pool_everybody_has_time_to_come_back(membership: Membership, clock: Clock) -> None:
    membership.join(application("a"))
    membership.join(application("b"))
    again = membership_of(clock, membership.records)
    assert [view.state for view in again.views()] == [WorkerState.SUSPECT] * 2
    assert expired(again) == (["a", "b"], [])
    assert not again.heartbeat("a", "i1", LOAD)
    again.join(application("a"))
    clock.now_s += LEASE_S - 1
    assert again.heartbeat("a", "i1", LOAD)
    clock.now_s += GRACE_S - LEASE_S + 1
    again.join(application("a"))
    assert expired(again) == ([], ["b"])


# -- leaving ---------------------------------------------------------------------------------------


def test_a_worker_leaves_and_is_lost_after_the_grace_time(membership: Membership, clock: Clock) -> None:
    record = membership.join(application()).record
    assert membership.leave("w1", "i1") == record
    assert state_of(membership) is WorkerState.LEFT
    assert expired(membership) == ([], [])
    clock.now_s += GRACE_S - 1
    membership.leave("w1", "i1")  # once more does not give it more time
    assert expired(membership) == ([], [])
    clock.now_s += 1
    assert expired(membership) == ([], ["w1"])
    assert expired(membership) == ([], [])
    assert membership.members() == [record.member]  # what that means for the layout, the pool decides


def test_only_the_one_that_is_here_can_leave(membership: Membership) -> None:
    membership.join(application())
    assert membership.leave("w1", "i2") is None
    assert membership.leave("w2", "i1") is None
    assert state_of(membership) is WorkerState.ALIVE


def test_a_suspect_that_leaves_has_left(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    clock.now_s += LEASE_S
    membership.expire()
    assert membership.leave("w1", "i1") is not None
    assert state_of(membership) is WorkerState.LEFT


def test_a_lost_worker_that_leaves_is_not_lost_again(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    clock.now_s += LEASE_S
    membership.expire()
    clock.now_s += GRACE_S
    assert expired(membership) == ([], ["w1"])
    membership.leave("w1", "i1")
    clock.now_s += GRACE_S
    assert expired(membership) == ([], [])


# -- standings -------------------------------------------------------------------------------------


def test_only_members_in_good_standing_take_part_in_the_layout(membership: Membership) -> None:
    for worker in ("a", "b", "c"):
        membership.join(application(worker))
    membership.set_standing("a", Standing.DRAINING)
    membership.set_standing("b", Standing.OUT)
    assert [member.worker for member in membership.members()] == ["c"]
    assert [state_of(membership, worker) for worker in ("a", "b", "c")] == [
        WorkerState.DRAINING,
        WorkerState.DRAINED,
        WorkerState.ALIVE,
    ]


def test_draining_outlasts_a_restart_of_the_worker(membership: Membership) -> None:
    membership.join(application())
    membership.set_standing("w1", Standing.DRAINING)
    admission = membership.join(application())
    assert admission.record.standing is Standing.DRAINING
    assert not admission.layout_changes


def test_who_was_out_takes_part_again_after_joining(membership: Membership) -> None:
    record = membership.join(application()).record
    membership.set_standing("w1", Standing.OUT)
    assert membership.join(application()) == Admission(record, emptied=False, layout_changes=True)
    assert membership.members() == [record.member]


def test_a_standing_of_nobody(membership: Membership) -> None:
    with pytest.raises(InvalidArgument, match="no worker 'w9' in this pool; see `taskworker status`"):
        membership.set_standing("w9", Standing.OUT)


def test_who_is_forgotten_is_a_stranger(membership: Membership, clock: Clock) -> None:
    membership.join(application())
    membership.forget("w1")
    membership.forget("w1")
    assert (membership.records, membership.views(), membership.members()) == ([], [], [])
    assert not membership.heartbeat("w1", "i1", LOAD)
    clock.now_s += LEASE_S + GRACE_S
    assert expired(membership) == ([], [])
    assert membership.join(application()).layout_changes


# -- whatever happens ------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c"])
INSTANCES = st.sampled_from(["i1", "i2"])


@dataclass(slots=True)
class Told:
    """What a worker is, as the model has it."""

    slot: int
    volume: str
    standing: Standing = Standing.IN
    instance: str = ""
    lease_until_s: float = 0.0
    left_s: float | None = None  # since it left
    noticed_s: float | None = None  # since its silence was noticed
    lost: bool = False

    def alive(self, now_s: float) -> bool:
        return self.left_s is None and now_s < self.lease_until_s

    def state(self, now_s: float) -> WorkerState:
        if self.alive(now_s):
            return {
                Standing.IN: WorkerState.ALIVE,
                Standing.DRAINING: WorkerState.DRAINING,
                Standing.DRAINED: WorkerState.DRAINED,
                Standing.OUT: WorkerState.DRAINED,
            }[self.standing]
        if self.standing is Standing.DRAINED:
            return WorkerState.DRAINED
        if self.lost:
            return WorkerState.LOST
        return WorkerState.SUSPECT if self.left_s is None else WorkerState.LEFT


class MembershipMachine(RuleBasedStateMachine):
    """Everything that workers, operators and time can do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.membership = membership_of(self.clock)
        self.told: dict[str, Told] = {}
        self.slots_given = 0

    @property
    def now_s(self) -> float:
        return self.clock.now_s

    @rule(seconds=st.sampled_from([1.0, 4.0, LEASE_S, GRACE_S]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(worker=NAMES, instance=INSTANCES, volume=st.sampled_from(["v1", "v2"]))
    def join(self, worker: str, instance: str, volume: str) -> None:
        known = self.told.get(worker)
        request = application(worker, instance, volume_id=volume)
        if known is not None and known.alive(self.now_s) and known.instance != instance:
            with pytest.raises(WorkerRefused):
                self.membership.join(request)
            return
        admission = self.membership.join(request)
        if known is None:
            known = self.told[worker] = Told(self.slots_given, volume)
            self.slots_given += 1
            assert admission.layout_changes
        else:
            assert admission.layout_changes == (known.standing is Standing.OUT)
        assert admission.emptied == (known.volume != volume)
        assert admission.record.slot == known.slot
        standing = Standing.IN if known.standing is Standing.OUT else known.standing
        self.told[worker] = Told(known.slot, volume, standing, instance, self.now_s + LEASE_S)

    @rule(worker=NAMES, instance=INSTANCES)
    def heartbeat(self, worker: str, instance: str) -> None:
        known = self.told.get(worker)
        expected = known is not None and known.instance == instance and known.alive(self.now_s)
        assert self.membership.heartbeat(worker, instance, LOAD) == expected
        if expected:
            assert known is not None
            known.lease_until_s = self.now_s + LEASE_S

    @rule(worker=NAMES, instance=INSTANCES)
    def leave(self, worker: str, instance: str) -> None:
        known = self.told.get(worker)
        expected = known is not None and known.instance == instance
        assert (self.membership.leave(worker, instance) is not None) == expected
        if known is not None and expected and known.left_s is None and not known.lost:
            known.left_s = self.now_s

    @rule(worker=NAMES, standing=st.sampled_from(Standing))
    def set_standing(self, worker: str, standing: Standing) -> None:
        if worker in self.told:
            self.membership.set_standing(worker, standing)
            self.told[worker].standing = standing
        else:
            with pytest.raises(InvalidArgument):
                self.membership.set_standing(worker, standing)

    @rule(worker=NAMES)
    def forget(self, worker: str) -> None:
        self.membership.forget(worker)
        self.told.pop(worker, None)

    @rule()
    def expire(self) -> None:
        suspect, lost = expired(self.membership)
        expected_suspect, expected_lost = set(), set()
        for worker, known in self.told.items():
            if known.alive(self.now_s) or known.standing is Standing.DRAINED:
                continue
            if known.left_s is None and known.noticed_s is None:
                known.noticed_s = self.now_s
                expected_suspect.add(worker)
            since = known.noticed_s if known.left_s is None else known.left_s
            assert since is not None
            if not known.lost and self.now_s - since >= GRACE_S:
                known.lost = True
                expected_lost.add(worker)
        assert (sorted(suspect), sorted(lost)) == (sorted(expected_suspect), sorted(expected_lost))

    @rule()
    def restart(self) -> None:
        """Of the pool: it keeps records, and knows no process."""
        if any(known.slot == self.slots_given - 1 for known in self.told.values()):
            self.membership = membership_of(self.clock, self.membership.records)
            for worker, known in self.told.items():
                self.told[worker] = Told(known.slot, known.volume, known.standing)

    @invariant()
    def everybody_is_seen_as_the_model_has_it(self) -> None:
        views = self.membership.views()
        assert [view.record for view in views] == self.membership.records
        seen = {view.record.worker: (view.record.slot, view.record.standing, view.state) for view in views}
        assert seen == {
            worker: (known.slot, known.standing, known.state(self.now_s)) for worker, known in self.told.items()
        }
        taking_part = {known.slot for known in self.told.values() if known.standing is Standing.IN}
        assert {member.slot for member in self.membership.members()} == taking_part


TestWhateverHappens = MembershipMachine.TestCase
TestWhateverHappens.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
