"""Where shards go while workers come and go: every acknowledged one is on a worker that lives."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.erasure import ErasureProfile
from storage.errors import InsufficientWorkers, StorageError, StoreClosed, StoreFull
from storage.fleet.layout import Layout
from storage.fleet.members import Member, by_owner
from storage.fleet.placement import PARTITIONS, partition_of
from storage.keys import Kind, ShardKey, StripeKey, shard_key, stripe_key
from storage.shards import LocalVolume, Shard, VolumeFailed, VolumeUnavailable
from taskworker.transport.append_sender import SyncTicket
from taskworker.transport.lateness import Lateness
from taskworker.transport.port import Ticket
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.shard_service import shard_server
from taskworker.transport.slowness import Slowness
from taskworker.transport.wire.poller import SHARED
from taskworker.transport.wire.server import WireServer
from taskworker.transport.worker_fleet import WorkerFleet
from tests.pool.helpers import open_volume
from tests.storage.helpers import content, digest

PROFILE = ErasureProfile(4, 6)


def members_of(count: int) -> list[Member]:
    return [Member(slot, f"w{slot}", "", 1 << 40) for slot in range(count)]


@cache
def layout_of(count: int, width: int) -> Layout:
    return Layout.first(members_of(count), width)


def stripe_of(seed: int, k: int = 4, n: int = 6) -> StripeKey:
    return stripe_key(Kind.CHUNK, digest(b"object %d" % seed), k, n)


def shards_of(stripe: StripeKey) -> list[Shard]:
    """All n shards of a stripe."""
    shards = []
    for slot in range(stripe[34] + 1):
        payload = content(slot, 200) + stripe[:8]
        shards.append(Shard(shard_key(stripe, slot), 800, digest(payload), payload))
    return shards


def batches_of(fleet: WorkerFleet, stripes: Sequence[StripeKey]) -> dict[int, list[Shard]]:
    """All shards of stripes by where they go now."""
    batches: dict[int, list[Shard]] = {}
    for stripe in stripes:
        for shard, target in zip(shards_of(stripe), fleet.targets(stripe), strict=True):
            batches.setdefault(target, []).append(shard)
    return batches


class MemoryVolume:
    """A worker's volume in memory, that fails when told to. What was not synced before is lost then."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.misbehaved = ""
        self.took_s = 0.0  # if it is to have taken so long
        self.size = 0  # of its syncs
        self.queued: dict[ShardKey, Shard] = {}
        self.durable: dict[ShardKey, Shard] = {}
        self.fails_at: str | None = None
        self.full = False
        self.cannot_sync = False
        self.failure: VolumeFailed | None = None
        self.on_sync: Callable[[], None] = lambda: None
        self.is_late = False  # its syncs end once the test settles them
        self.late: list[SyncTicket] = []
        self.synced = 0
        self.received = 0
        self.heartbeats = 0

    def note_alive(self) -> None:
        self.heartbeats += 1

    @property
    def needs_sync(self) -> bool:
        return not self.queued.keys() <= self.durable.keys()

    def append(self, shards: Sequence[Shard], *, urgent: bool = False) -> None:
        self.offer(shards, 0.0, urgent=urgent)

    def offer(self, shards: Sequence[Shard], within_s: float, *, urgent: bool = False) -> Sequence[Shard]:
        self._maybe_fail("append")
        self.queued |= {shard.key: shard for shard in shards}
        return ()

    def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
        self.on_sync()
        self.synced += 1
        self._maybe_fail("start_sync")
        ticket = SyncTicket(SHARED.signal())
        ticket.size = self.size
        error: StorageError | None = None
        if self.is_late:
            self.queued |= {shard.key: shard for shard in shards}
            self.late.append(ticket)
            return ticket
        if self.fails_at == "sync":
            error = self.failure = VolumeFailed(f"{self.name} failed")
        elif self.full and shards:
            error = StoreFull("no space")
        elif self.cannot_sync:
            error = StoreFull("no space for the index")
        else:
            self.queued |= {shard.key: shard for shard in shards}
            self.durable |= self.queued
        ticket.settle(error)
        ticket.took_s = self.took_s or ticket.took_s
        return ticket

    def _maybe_fail(self, moment: str) -> None:
        if self.fails_at == moment:
            self.failure = self.failure or VolumeFailed(f"{self.name} failed")
        if self.failure is not None:
            raise self.failure

    def abandon(self, reason: str) -> None:
        self.failure = self.failure or VolumeFailed(reason)

    def close(self) -> None:
        self.abandon("closed")


def attach(fleet: WorkerFleet, slot: int, volume: MemoryVolume | None = None) -> MemoryVolume:
    volume = volume or MemoryVolume(f"w{slot}")
    fleet.attach(slot, cast(RemoteVolume, volume))
    return volume


def manned(count: int, *, width: int = 6, away: Sequence[int] = (), **options: Any) -> WorkerFleet:
    """A fleet of so many members, all but some of them there; with options of :class:`WorkerFleet`."""
    fleet = WorkerFleet(**options)
    fleet.use_layouts(layout_of(count, width))
    for slot in range(count):
        if slot not in away:
            attach(fleet, slot)
    return fleet


def volumes_of(fleet: WorkerFleet) -> dict[int, MemoryVolume]:
    return {slot: cast(MemoryVolume, volume) for slot, volume in fleet.online()}


def durable_in(fleet: WorkerFleet, stripe: StripeKey) -> Counter[int]:
    """How many distinct shards of a stripe are durable on workers that live, by index in the stripe."""
    found = {key for volume in volumes_of(fleet).values() for key in volume.durable if key[:35] == stripe}
    return Counter(key[35] for key in found)


# -- where shards go -------------------------------------------------------------------------------


def test_with_everybody_there_shards_go_where_they_belong() -> None:
    fleet = manned(9)
    for seed in range(50):
        stripe = stripe_of(seed)
        assert fleet.targets(stripe) == fleet.holders(stripe) == fleet.placement.volumes(stripe, 6)


@given(count=st.integers(1, 12), data=st.data(), profile=st.sampled_from([(4, 6), (1, 3), (2, 3), (8, 11)]))
@settings(max_examples=40, deadline=None)
def test_others_stand_in_for_those_away(count: int, data: st.DataObject, profile: tuple[int, int]) -> None:
    away = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    fleet = manned(count, away=sorted(away))
    online = count - len(away)
    for seed in range(15):
        stripe = stripe_of(seed, *profile)
        holders, targets = fleet.holders(stripe), fleet.targets(stripe)
        assert not away & {*targets}
        assert all(target == holder for holder, target in zip(holders, targets, strict=True) if holder not in away)
        assert max(Counter(targets).values()) == -(-profile[1] // online)


def test_the_first_in_handoff_order_stands_in() -> None:
    fleet = manned(9)
    stripe = stripe_of(1)
    holders, order = fleet.holders(stripe), fleet.placement.order(partition_of(stripe))
    fleet.set_offline(holders[2], "gone")
    assert fleet.targets(stripe) == (*holders[:2], order[6], *holders[3:])
    fleet.set_offline(order[6], "gone, too")
    assert fleet.targets(stripe) == (*holders[:2], order[7], *holders[3:])
    attach(fleet, holders[2])
    assert fleet.targets(stripe) == holders


def test_others_of_other_owners_stand_in_first() -> None:
    owners = "aabbccddee"
    members = [Member(slot, f"w{slot}", "", 1 << 40, owner) for slot, owner in enumerate(owners)]
    fleet = WorkerFleet()
    fleet.use_layouts(Layout.first(members, 4))
    for slot in range(10):
        attach(fleet, slot)
    for seed in range(40):
        stripe = stripe_of(seed, 2, 4)
        lost = fleet.holders(stripe)[1]
        fleet.set_offline(lost, "gone")
        assert len({owners[target] for target in fleet.targets(stripe)}) == 4
        attach(fleet, lost)


def owned_fleet(owners: str, width: int, away: Sequence[int] = ()) -> WorkerFleet:
    """Workers of these owners, one letter each, but for those that are away."""
    fleet = WorkerFleet()
    members = [Member(slot, f"w{slot}", "", 1 << 40, owner) for slot, owner in enumerate(owners)]
    fleet.use_layouts(Layout.first(members, width))
    for slot in range(len(owners)):
        if slot not in away:
            attach(fleet, slot)
    return fleet


def test_stand_ins_give_no_owner_more_than_may_be_lost() -> None:
    """Though the other owners' workers hold a shard each already, and all of this one's none."""
    owners = "aaaaaabcdefg"
    fleet = owned_fleet(owners, 6, away=[8, 9, 10, 11])
    for seed in range(60):
        stripe = stripe_of(seed)
        assert Counter(owners[target] for target in fleet.targets(stripe)) == {"a": 2, "b": 2, "c": 2}
    fleet.note_mended(fleet.mark())
    assert fleet.domain_losses_survivable(PROFILE, by_owner) == 1


def test_with_too_few_owners_the_one_that_holds_the_least_stands_in() -> None:
    owners = "aaaaabbccc"
    fleet = owned_fleet(owners, 6, away=[7, 8, 9])
    for seed in range(60):
        targets = fleet.targets(stripe_of(seed))
        assert Counter(owners[target] for target in targets) == {"a": 3, "b": 3}
        assert max(Counter(targets).values()) <= 2  # the loss of one worker is survived all the same
    fleet.note_mended(fleet.mark())
    assert fleet.domain_losses_survivable(PROFILE, by_owner) == 0
    assert fleet.losses_survivable(PROFILE) == 1


@given(
    owners=st.text("abcd", min_size=4, max_size=12), data=st.data(), profile=st.sampled_from([(4, 6), (2, 4), (1, 3)])
)
@settings(max_examples=12, deadline=None)
def test_limits_of_workers_and_owners_hold_wherever_they_can(
    owners: str, data: st.DataObject, profile: tuple[int, int]
) -> None:
    away = data.draw(st.sets(st.integers(0, len(owners) - 1), max_size=len(owners) - 1))
    fleet, (k, n) = owned_fleet(owners, profile[1], sorted(away)), profile
    there = [slot for slot in range(len(owners)) if slot not in away]
    for seed in range(10):
        stripe = stripe_of(seed, k, n)
        kept = [slot for slot in fleet.holders(stripe) if slot not in away]
        targets = fleet.targets(stripe)
        assert set(targets) <= set(there)
        for domain in (str, owners.__getitem__):
            if (
                max(Counter(map(domain, kept)).values(), default=0)
                <= n - k
                <= n
                <= len({*map(domain, there)}) * (n - k)
            ):
                assert max(Counter(map(domain, targets)).values()) <= n - k


def test_with_nobody_there_shards_have_nowhere_to_go_but_home() -> None:
    fleet = manned(3, away=[0, 1, 2])
    assert fleet.targets(stripe_of(1)) == fleet.holders(stripe_of(1))


def test_shards_may_be_where_former_layouts_had_them() -> None:
    former = [Layout.first(members_of(6), 6)]
    former.insert(0, former[0].after(members_of(8)))
    current = former[0].after(members_of(12))
    fleet = WorkerFleet()
    fleet.use_layouts(current, former)
    for slot in range(12):
        attach(fleet, slot)
    for seed in range(30):
        stripe = stripe_of(seed)
        places = fleet.elsewhere(stripe)
        expected = [*former[0].volumes(stripe, 6), *former[1].volumes(stripe, 6)]
        expected += current.order(partition_of(stripe))
        assert places == tuple(dict.fromkeys(expected))
        assert sorted(places) == list(range(12))
        fleet.set_offline(places[0], "gone")
        assert fleet.elsewhere(stripe) == places[1:]
        attach(fleet, places[0])


def test_a_member_of_a_former_layout_is_still_called_by_its_name() -> None:
    fleet = WorkerFleet()
    former = Layout.first(members_of(3), 2)
    fleet.use_layouts(former.after(members_of(2)), [former])
    attach(fleet, 2)
    assert fleet.name(2) == fleet.place(2) == "w2"
    assert fleet.name(7) == "#7"
    fleet.remove(2)
    assert fleet.slots == [0, 1]
    fleet.remove(2)


# -- volumes that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["append", "start_sync", "sync"])
@given(count=st.integers(2, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_append_and_sync_leaves_all_shards_on_workers_that_live(moment: str, count: int, data: st.DataObject) -> None:
    fleet = manned(count)
    stripes = [stripe_of(seed) for seed in range(12)]
    batches = batches_of(fleet, stripes)
    failing = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    for slot in failing:
        volumes_of(fleet)[slot].fails_at = moment
    if moment == "append":
        fleet.append(batches)
        fleet.sync()
    else:
        fleet.append_and_sync(batches)
    assert all(durable_in(fleet, stripe) == Counter(range(6)) for stripe in stripes)
    noticed = failing if moment != "append" else failing & {*batches}
    assert {slot for slot in range(count) if fleet.state(slot) == "offline"} == noticed
    assert fleet.incomplete == noticed


def test_a_worker_that_stands_in_and_fails_as_well() -> None:
    fleet = manned(8)
    stripe = stripe_of(1)
    batches, order = batches_of(fleet, [stripe]), fleet.placement.order(partition_of(stripe))
    for slot in (order[0], order[6]):
        volumes_of(fleet)[slot].fails_at = "sync"
    # The second one holds nothing yet, so that it is met when it is to stand in.
    fleet.append_and_sync(batches)
    assert durable_in(fleet, stripe) == Counter(range(6))


def test_a_worker_that_goes_away_right_after_it_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the next one's turn, as if it had been away before."""
    fleet = manned(9)
    stripe = stripe_of(1)
    batches, order = batches_of(fleet, [stripe]), fleet.placement.order(partition_of(stripe))
    volumes_of(fleet)[order[0]].fails_at = "sync"
    choose = fleet.targets
    gone: list[int] = []

    def choose_and_lose(stripe: StripeKey) -> Sequence[int]:
        chosen = choose(stripe)
        if len(gone) < 2 and fleet.state(order[0]) == "offline":
            gone.append(chosen[0])
            fleet.set_offline(chosen[0], "gone")
        return chosen

    monkeypatch.setattr(fleet, "targets", choose_and_lose)
    fleet.append_and_sync(batches)
    assert len(set(gone)) == 2
    monkeypatch.undo()
    assert durable_in(fleet, stripe) == Counter(range(6))


def test_nobody_is_left_to_take_the_data() -> None:
    for moment in ("append", "sync"):
        fleet = manned(3)
        batches = batches_of(fleet, [stripe_of(1)])
        for volume in volumes_of(fleet).values():
            volume.fails_at = moment
        with pytest.raises(InsufficientWorkers, match="no worker is left to take the data; start some and try again"):
            fleet.append(batches) if moment == "append" else fleet.append_and_sync(batches)


@pytest.mark.parametrize("moment", ["gone", "full"])
def test_workers_that_go_or_become_full_this_very_moment_are_stood_in_for(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has noted it already, but not yet who stands in for the worker."""
    fleet = manned(7)
    stripe = stripe_of(1)
    batches = batches_of(fleet, [stripe])
    fleet.set_offline(fleet.targets(stripe)[0], "gone")
    stand_in = fleet.targets(stripe)[0]
    change, is_noted = fleet._changed, Event()

    def change_slowly(**options: bool) -> None:
        if threading.current_thread() is other:
            is_noted.set()
            time.sleep(0.5)
        change(**options)

    def note() -> None:
        if moment == "gone":
            fleet.set_offline(stand_in, "gone")
        else:
            fleet.note_write_refused(stand_in, StoreFull("full"))

    other = threading.Thread(target=note)
    monkeypatch.setattr(fleet, "_changed", change_slowly)
    other.start()
    assert is_noted.wait(60)
    fleet.append(batches)
    other.join()
    assert fleet.targets(stripe)[0] != stand_in
    fleet.sync_each()
    assert durable_in(fleet, stripe) == Counter(range(6))


def test_a_worker_that_comes_back_while_syncs_start_gets_or_is_spared_its_shards() -> None:
    """It was away when the batches were looked at; they are not to be lost for its return."""
    fleet = manned(6)
    stripes = [stripe_of(seed) for seed in range(12)]
    batches = batches_of(fleet, stripes)
    fleet.set_offline(3, "gone")
    volumes_of(fleet)[0].on_sync = lambda: None if fleet.volume(3) else (attach(fleet, 3), None)[1]
    fleet.append_and_sync(batches)
    assert fleet.state(3) != "offline"
    assert all(durable_in(fleet, stripe) == Counter(range(6)) for stripe in stripes)


@pytest.mark.parametrize("moment", ["append", "start_sync", "sync"])
def test_the_failure_of_a_connection_is_none_of_the_next_one(moment: str) -> None:
    """A worker connects again while the old connection is in use: the new one stays."""
    fleet = manned(6)
    stripes = [stripe_of(seed) for seed in range(12)]
    batches = batches_of(fleet, stripes)
    fresh = MemoryVolume("fresh")

    class Replaced(MemoryVolume):
        def offer(self, shards: Sequence[Shard], within_s: float, *, urgent: bool = False) -> Sequence[Shard]:
            self.replace("append")
            return super().offer(shards, within_s, urgent=urgent)

        def start_sync(self, shards: Sequence[Shard] = ()) -> SyncTicket:
            self.replace("start_sync")
            ticket = SyncTicket(SHARED.signal())
            if moment == "sync":
                attach(fleet, 2, fresh)
                ticket.settle(self.failure)
                return ticket
            return super().start_sync(shards)

        def replace(self, now: str) -> None:
            if now == moment and fleet.volume(2) is cast(RemoteVolume, self):
                attach(fleet, 2, fresh)

    attach(fleet, 2, Replaced("old"))
    if moment == "append":
        fleet.append(batches)
        fleet.sync()
    else:
        fleet.append_and_sync(batches)
    assert fleet.volume(2) is cast(RemoteVolume, fresh)
    assert fresh.failure is None
    assert all(durable_in(fleet, stripe) == Counter(range(6)) for stripe in stripes)


def test_a_stale_failure_met_while_reading_does_not_take_the_new_connection_away() -> None:
    fleet = manned(3)
    old = fleet.volume(1)
    assert old is not None
    attach(fleet, 1)
    fleet.failed(1, old, VolumeFailed("the connection was closed"))
    assert fleet.state(1) == "ok"


def test_others_take_what_is_new_for_a_full_worker_that_goes_on_serving() -> None:
    fleet = manned(7)
    stripe, before = stripe_of(1), stripe_of(2)
    fleet.append_and_sync(batches_of(fleet, [before]))
    full = fleet.holders(stripe)[0]
    volume = volumes_of(fleet)[full]
    waiting = shards_of(stripe_of(3))[0]
    volume.append([waiting])  # of another push, not durable yet
    volume.full = True
    since = fleet.epoch()
    fleet.append_and_sync(batches_of(fleet, [stripe]))
    assert durable_in(fleet, stripe) == Counter(range(6))
    assert len(fleet.online()) == 7
    assert fleet.full() == {full}
    assert fleet.epoch() != since  # whoever else appended to it looks what is missing
    assert waiting.key in volume.durable  # what it took before it was full
    assert full not in fleet.targets(stripe)
    assert fleet.places(before) == fleet.holders(before)  # what it has is in its place
    assert fleet.places(stripe)[0] == full
    fleet.require_writable(PROFILE)
    fleet.append_and_sync(batches_of(fleet, [stripe_of(4)]))
    fleet.note_space(full, 1 << 20, 1 << 30)
    assert fleet.full() == {full}
    fleet.note_space(full, 1 << 28, 1 << 30)
    assert not fleet.full()
    assert fleet.targets(stripe)[0] == full


def counted_on(fleet: WorkerFleet, stripe: StripeKey, liars: Sequence[int]) -> int:
    """Of how many shards of a stripe the word of some workers may count as that they are there."""
    both = zip(fleet.targets(stripe), fleet.places(stripe), strict=True)
    return sum(target in liars or place in liars for target, place in both)


def fill_up(fleet: WorkerFleet, slot: int) -> None:
    """Have a worker refuse what it is given."""
    volume = volumes_of(fleet)[slot]
    volume.full = True
    stripe = next(stripe for stripe in map(stripe_of, range(1000)) if slot in fleet.targets(stripe))
    fleet.append_and_sync(batches_of(fleet, [stripe]))
    assert slot in fleet.full()


def test_what_a_full_worker_says_to_hold_counts_for_its_owner() -> None:
    """Together with what others of the same owner are given, it is no more than may be lost."""
    owners = "abcdefmmm"
    for full in (6, 7, 8):
        fleet = owned_fleet(owners, 6, away=[0, 3, 4, 5])
        fill_up(fleet, full)
        for seed in range(100):
            assert counted_on(fleet, stripe_of(seed, 3, 5), [6, 7, 8]) <= 2


def test_what_a_full_worker_says_to_hold_counts_beside_what_another_is_given() -> None:
    """Any two may lie, where one is away and as many as a stripe has shards are there."""
    for away, full in ((0, 1), (1, 0), (3, 6), (6, 2)):
        fleet = manned(7, away=[away])
        fill_up(fleet, full)
        for seed in range(100):
            stripe = stripe_of(seed)
            assert max(counted_on(fleet, stripe, [full, other]) for other in range(7)) <= 2


def test_what_a_full_worker_says_to_hold_counts_no_more_once_it_is_distrusted() -> None:
    fleet = manned(7)
    stripe = stripe_of(1)
    full = fleet.holders(stripe)[0]
    fill_up(fleet, full)
    assert full in fleet.places(stripe)
    for _ in range(4):
        fleet.note_lie(full, b"", "lied")
    assert full in fleet.distrusted()
    assert full not in fleet.places(stripe)


def test_who_looks_while_a_worker_goes_or_comes_keeps_no_row_of_before() -> None:
    stripes, looks = [stripe_of(seed) for seed in range(20)], 0

    def look_and_tell_time() -> float:
        nonlocal looks
        looks += looking
        for stripe in stripes if looking else ():
            fleet.targets(stripe), fleet.places(stripe), fleet.elsewhere(stripe)
        return 1000.0

    looking = False
    fleet = manned(7, clock_s=look_and_tell_time)
    fill_up(fleet, 2)
    looking = True
    fleet.set_offline(0, "gone")
    looking = False
    assert looks
    for stripe in stripes:
        assert 0 not in fleet.targets(stripe) + fleet.places(stripe) + fleet.elsewhere(stripe)
    looking = True
    attach(fleet, 0)
    looking = False
    for stripe in stripes:
        assert 0 in fleet.targets(stripe) or 0 not in fleet.holders(stripe)
        assert 0 in fleet.elsewhere(stripe)


def test_what_was_mended_before_somebody_came_is_not_all() -> None:
    fleet = manned(7, away=[0])
    mark = fleet.mark()
    attach(fleet, 0)
    assert not fleet.note_mended(mark)
    assert not fleet.is_mended()
    assert fleet.note_mended(fleet.mark())
    assert fleet.is_mended()


def test_a_full_worker_is_tried_again_after_a_while() -> None:
    now = [1000.0]
    fleet = manned(7, clock_s=lambda: now[0])
    stripe = stripe_of(1)
    full = fleet.holders(stripe)[0]
    volumes_of(fleet)[full].full = True
    for wait_s in (30.0, 60.0, 120.0):  # longer and longer
        fleet.append_and_sync(batches_of(fleet, [stripe]))
        assert fleet.full() == {full}
        now[0] += wait_s - 1
        fleet.forgive()
        assert fleet.full() == {full}
        now[0] += 1
        fleet.forgive()
        assert not fleet.full()


def test_a_pool_is_full_when_too_few_workers_have_space() -> None:
    fleet = manned(6)
    stripes = [stripe_of(seed) for seed in range(20)]
    for slot in range(3):
        volumes_of(fleet)[slot].full = True
        fleet.append_and_sync(batches_of(fleet, stripes))
        fleet.require_writable(PROFILE)
    volumes_of(fleet)[3].full = True
    fleet.append_and_sync(batches_of(fleet, stripes))
    with pytest.raises(StoreFull, match=r"none is left on w0, w1, w2, w3; delete files and run `taskworker collect`"):
        fleet.require_writable(PROFILE)
    for slot in (4, 5):
        volumes_of(fleet)[slot].full = True
    with pytest.raises(StoreFull, match="w0, w1, w2, w3, w4, w5"):
        fleet.append_and_sync(batches_of(fleet, stripes))


def test_a_worker_that_cannot_even_make_durable_what_it_took_is_not_counted_on() -> None:
    fleet = manned(7)
    stripe, other = stripe_of(1), stripe_of(2)
    full = fleet.holders(stripe)[0]
    volume = volumes_of(fleet)[full]
    volume.full = volume.cannot_sync = True
    before = fleet.epoch()
    fleet.append_and_sync(batches_of(fleet, [stripe]))
    assert fleet.volume(full) is not None  # what it holds can be read
    assert fleet.epoch() != before
    assert durable_in(fleet, stripe) == Counter(range(6))
    fleet.is_pinned = lambda pinned: pinned == stripe
    assert full not in fleet.places(stripe)
    assert (full in fleet.places(other)) == (full in fleet.holders(other))  # has been there for long


def test_a_worker_that_cannot_make_anything_durable_is_asked_once_each_time_it_is_tried() -> None:
    now_s = 0.0
    fleet = manned(7, clock_s=lambda: now_s)
    fleet.is_pinned = lambda stripe: True
    full = fleet.holders(stripe_of(1))[0]
    volume = volumes_of(fleet)[full]
    asked: list[float] = []
    volume.on_sync = lambda: asked.append(now_s)
    volume.full = volume.cannot_sync = True
    for _ in range(20):
        fleet.append_and_sync(batches_of(fleet, [stripe_of(1)]))
    assert asked == [0.0, 0.0]
    now_s = 40.0
    fleet.forgive()
    for _ in range(20):
        fleet.append_and_sync(batches_of(fleet, [stripe_of(1)]))
    assert asked == [0.0, 0.0, 40.0, 40.0]
    volume.full = volume.cannot_sync = False
    now_s = 200.0
    fleet.forgive()
    fleet.append_and_sync(batches_of(fleet, [stripe_of(1)]))
    assert fleet.places(stripe_of(1)) == fleet.holders(stripe_of(1))


def test_what_a_forgotten_worker_held_is_not_counted_on() -> None:
    fleet = manned(7)
    fleet.note_mended(fleet.mark())
    fleet.set_offline(0, "gone")
    assert fleet.losses_survivable(PROFILE) == 1
    fleet.use_layouts(Layout.first(members_of(7)[1:], 6), [fleet.placement])
    fleet.remove(0)
    fleet.incomplete.update(range(1, 7))  # until all has been made in its new place
    assert fleet.losses_survivable(PROFILE) == 1


def test_what_was_put_before_many_comings_and_goings_is_not_counted_on() -> None:
    fleet = manned(9)
    fleet.note_mended(fleet.mark())
    for slot in range(4):  # what is pushed while they are away has two shards on some
        fleet.set_offline(slot, "gone")
    for slot in range(4):
        attach(fleet, slot)
    assert fleet.losses_survivable(PROFILE) == 1
    for pair in combinations(range(9), 2):  # nobody keeps in mind where shards were put each time
        for slot in pair:
            fleet.set_offline(slot, "comes and goes")
        for slot in pair:
            attach(fleet, slot)
    assert fleet.losses_survivable(PROFILE) <= 1
    fleet.incomplete.update(range(9))  # where they are by the layout does not tell any more
    assert fleet.losses_survivable(PROFILE) == 0


def be_slow(fleet: WorkerFleet, slot: int) -> None:
    while slot not in fleet.slow():
        fleet.note_unread(slot)


def test_what_others_took_for_a_slow_worker_counts_when_it_is_slow_no_longer() -> None:
    now_s = 0.0
    fleet = manned(6, clock_s=lambda: now_s)
    fleet.note_mended(fleet.mark())
    before = fleet.epoch()
    be_slow(fleet, 3)
    assert not fleet.lasts(before)
    since = fleet.epoch()
    now_s += 3600.0
    fleet.forgive()
    assert not fleet.slow()
    assert since != fleet.epoch()
    assert fleet.lasts(since)
    assert fleet.losses_survivable(PROFILE) == 1
    assert fleet.note_mended(fleet.mark())
    assert fleet.losses_survivable(PROFILE) == 2
    fleet.note_committed(since)  # after the others were mended
    assert not fleet.is_mended()
    assert fleet.losses_survivable(PROFILE) == 1
    fleet.set_offline(5, "gone")
    assert not fleet.lasts(since)
    assert fleet.losses_survivable(PROFILE) == 0


def test_a_push_during_many_changes_is_counted_on_as_little_as_if_it_met_them_all() -> None:
    now_s = 0.0
    fleet = manned(6, clock_s=lambda: now_s)
    be_slow(fleet, 0)
    since = fleet.epoch()
    for _ in range(100):
        now_s += 7200.0
        fleet.forgive()
        be_slow(fleet, 0)
    now_s += 7200.0
    fleet.forgive()
    assert not fleet.slow()
    fleet.note_mended(fleet.mark())
    assert fleet.losses_survivable(PROFILE) == 2
    fleet.note_committed(since)
    assert fleet.losses_survivable(PROFILE) <= 1


def test_a_write_concerns_those_that_have_something_to_make_durable() -> None:
    fleet = manned(12)
    volumes = volumes_of(fleet)
    stripe, other = stripe_of(1), stripe_of(2)
    fleet.append_and_sync(batches_of(fleet, [stripe]))
    assert {slot for slot, volume in volumes.items() if volume.synced} == {*fleet.targets(stripe)}
    fleet.append(batches_of(fleet, [other]))
    before = {slot: volume.synced for slot, volume in volumes.items()}
    fleet.append_and_sync(batches_of(fleet, [stripe]))  # another push may count on what was appended
    asked = {slot for slot, volume in volumes.items() if volume.synced > before[slot]}
    assert asked == {*fleet.targets(stripe), *fleet.targets(other)}
    assert durable_in(fleet, other) == Counter(range(6))


# -- late workers ----------------------------------------------------------------------------------


def test_a_write_does_not_wait_for_late_workers_as_others_take_their_shards() -> None:
    fleet = manned(9)
    stripes = [stripe_of(seed) for seed in range(40)]
    for slot in (3, 5):
        volumes_of(fleet)[slot].is_late = True
    epoch = fleet.epoch()
    fleet.append_and_sync(batches_of(fleet, stripes))
    assert fleet.epoch() != epoch  # pushes under way check what they have written before
    assert fleet.slow() == {3, 5}
    for stripe in stripes:
        assert durable_in(fleet, stripe) == Counter(range(6))
        assert not {3, 5} & {*fleet.targets(stripe)}
    asked = len(volumes_of(fleet)[3].late)
    fleet.append_and_sync(batches_of(fleet, stripes))
    assert len(volumes_of(fleet)[3].late) == asked == 1  # nobody waits for it again meanwhile


@pytest.mark.parametrize("error", [StoreFull("no space"), VolumeUnavailable("no descriptors"), VolumeFailed("gone")])
def test_what_a_late_worker_did_not_take_is_known_once_it_answers(error: StorageError) -> None:
    fleet = manned(9)
    volume = volumes_of(fleet)[3]
    volume.is_late = True
    fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(40)]))
    volume.is_late = False
    (late,) = volume.late
    late.settle(error)
    epoch = fleet.epoch()
    fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(40, 80)]))
    assert fleet.epoch() != epoch
    assert (3 in fleet.full(), fleet.volume(3) is None) == (
        not isinstance(error, VolumeFailed),
        isinstance(error, VolumeFailed),
    )


def test_a_late_worker_that_is_needed_after_all_is_synced() -> None:
    fleet = manned(6)
    volume = volumes_of(fleet)[0]
    stripes = [stripe_of(seed) for seed in range(20)]
    volume.is_late = True
    fleet.append_and_sync(batches_of(fleet, stripes))
    assert fleet.slow() == {0}
    for slot in (1, 2, 3):
        fleet.set_offline(slot, "gone")
    volume.is_late = False
    volume.late[0].settle(None)
    assert any(0 in fleet.targets(stripe) for stripe in stripes)
    fleet.sync_most()
    assert volume.durable == volume.queued != {}


@pytest.mark.parametrize(
    ("count", "late", "everywhere"), [(9, 1, True), (6, 3, False), (2, 1, False)], ids=["sync", "more than n-k", "few"]
)
def test_a_write_waits_for_late_workers_that_it_cannot_do_without(count: int, late: int, *, everywhere: bool) -> None:
    fleet = manned(count, allow_fragile=True)
    volumes = volumes_of(fleet)
    stripes = [stripe_of(seed) for seed in range(20)]
    for slot in range(late):
        volumes[slot].is_late = True
    if everywhere:
        fleet.append(batches_of(fleet, stripes))
    wait = fleet.sync if everywhere else partial(fleet.append_and_sync, batches_of(fleet, stripes))
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(2.0)
    assert thread.is_alive()
    for slot in range(late):
        volumes[slot].durable |= volumes[slot].queued
        volumes[slot].late[0].settle(None)
    thread.join()
    assert not fleet.slow()
    assert all(durable_in(fleet, stripe) == Counter(range(6)) for stripe in stripes)


def test_a_worker_that_was_late_gets_shards_again_once_it_has_caught_up() -> None:
    fleet = manned(9)
    volume = volumes_of(fleet)[3]
    stripes = [stripe_of(seed) for seed in range(40)]
    volume.is_late = True
    fleet.append_and_sync(batches_of(fleet, stripes))
    assert fleet.slow() == {3}
    volume.is_late = False
    (late,) = volume.late
    late.settle(None)
    fleet.forgive()  # from time to time, also if nobody writes
    assert not fleet.slow()
    assert any(3 in fleet.targets(stripe) for stripe in stripes)


@pytest.mark.parametrize(("late_in", "left_out"), [(8, False), (3, True)])
def test_only_a_worker_that_is_late_often_is_left_out_for_long(late_in: int, *, left_out: bool) -> None:
    now_s = 0.0
    slowness = Slowness(lambda: now_s)
    most_s = 0.0
    for number in range(200):
        slow_since_s = now_s
        slowness.note_late([3] if number % late_in == 0 else [], [0, 1, 2] if number % late_in == 0 else [0, 1, 2, 3])
        now_s += 1
        slowness.note_caught_up(3)
        while 3 in slowness.slow:
            now_s += 1
            slowness.lapse()
        most_s = max(most_s, now_s - slow_since_s)
    assert (most_s > 15) == left_out
    assert (most_s > 300) == left_out  # longer each time


def test_a_worker_that_does_not_catch_up_is_left_out_for_longer_each_time() -> None:
    now_s = 0.0
    slowness = Slowness(lambda: now_s)
    lasted_s = []
    for _ in range(4):
        slowness.note_late([3], [0, 1, 2])
        began_s = now_s
        while 3 in slowness.slow:
            now_s += 1
            slowness.lapse()
        slowness.note_caught_up(3)
        lasted_s.append(now_s - began_s)
    assert lasted_s == [25, 45, 85, 160]


def test_a_worker_that_stands_in_for_another_has_longer() -> None:
    fleet = manned(9)
    volumes = volumes_of(fleet)
    for slot in range(9):
        volumes[slot].took_s = 0.05
    for _ in range(20):  # what a write usually takes
        fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(20)]))
    volume = volumes[3]
    volume.is_late, volume.size = True, 3 << 20
    began_s = time.monotonic()
    fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(20, 40)]))
    alone_s = time.monotonic() - began_s
    assert fleet.slow() == {3}
    assert alone_s >= 0.7  # three times the 0.25 s after which another one is late


def test_a_small_write_does_not_wait_as_long_as_large_ones_take() -> None:
    fleet = manned(9)
    volumes = volumes_of(fleet)

    def write(size: int, took_s: float) -> None:
        for slot in range(9):
            volumes[slot].size, volumes[slot].took_s = size, took_s
        fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(20)]))

    for _ in range(20):
        write(542, 0.05)
        write(2 << 20, 100.0)
    volumes[3].is_late = True
    write(542, 0.05)  # would last for 200 s
    assert fleet.slow() == {3}


def test_a_write_that_is_slow_everywhere_has_no_late_worker() -> None:
    lateness = Lateness()
    for _ in range(100):
        lateness.note([0.01] * 5 + [3.0])
    assert lateness.limit_s([0.01] * 5) < 1
    assert lateness.limit_s([2.0, 3.0, 4.0]) >= 6


def test_a_worker_that_comes_and_goes_all_the_time_changes_what_is_known_but_once() -> None:
    fleet = manned(9)
    fleet.note_mended(fleet.mark())
    for _ in range(100):
        fleet.set_offline(4, "comes and goes")
        attach(fleet, 4)
    fleet.incomplete.update(range(9))  # where they are by the layout does not tell any more
    assert fleet.losses_survivable(PROFILE) == 2


def _keep_waiting(fleet: WorkerFleet) -> None:
    volumes_of(fleet)[1].took_s = 100.0
    for _ in range(3):
        fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(20)]))


def _fill_up(fleet: WorkerFleet) -> None:
    volumes_of(fleet)[1].full = True
    fleet.append_and_sync(batches_of(fleet, [stripe_of(seed) for seed in range(20)]))


def _excuse(fleet: WorkerFleet) -> None:
    for _ in range(8):
        fleet.note_unread(1)


def _lie(fleet: WorkerFleet) -> None:
    for _ in range(3):
        fleet.note_lie(1, b"", "lies")


@pytest.mark.parametrize("change", [_keep_waiting, _fill_up, _excuse, _lie, lambda fleet: fleet.note_made(1, 1 << 40)])
def test_mending_is_woken_when_others_stand_in_for_a_worker_and_when_they_need_not(
    change: Callable[[WorkerFleet], None],
) -> None:
    now = [1000.0]
    fleet = manned(7, clock_s=lambda: now[0])
    woken = Event()
    fleet.on_rot = woken.set
    fleet.note_mended(fleet.mark())
    change(fleet)
    assert fleet.slow() | fleet.full() | fleet.distrusted() == {1}
    assert woken.is_set()

    woken.clear()
    fleet.note_mended(fleet.mark())
    fleet.forgive()
    assert fleet.is_mended()
    assert not woken.is_set()
    now[0] += 3600
    fleet.forgive()
    assert not fleet.slow() | fleet.full() | fleet.distrusted()
    assert woken.is_set()


@pytest.mark.parametrize("mended_meanwhile", [False, True])
@pytest.mark.parametrize("change", [_keep_waiting, _lie])
def test_fewer_losses_are_survivable_while_others_stand_in_for_a_worker_and_until_it_has_its_shards(
    change: Callable[[WorkerFleet], None], *, mended_meanwhile: bool
) -> None:
    now = [1000.0]
    fleet = manned(6, clock_s=lambda: now[0])
    fleet.note_mended(fleet.mark())
    assert fleet.losses_survivable(PROFILE) == 2
    change(fleet)
    assert fleet.losses_survivable(PROFILE) == 1, "one of five workers has two shards of each stripe"
    if mended_meanwhile:
        fleet.note_mended(fleet.mark())
        assert fleet.losses_survivable(PROFILE) == 1
    now[0] += 3600
    fleet.forgive()
    assert not fleet.slow() | fleet.distrusted()
    assert fleet.losses_survivable(PROFILE) == 1, "it lacks what was written meanwhile"
    fleet.note_mended(fleet.mark())
    assert fleet.losses_survivable(PROFILE) == 2


def test_epoch_tells_of_every_coming_and_going() -> None:
    fleet = manned(6)
    seen = {fleet.epoch()}
    for change in (
        lambda: fleet.set_offline(2, "gone"),
        lambda: attach(fleet, 2),
        lambda: attach(fleet, 2),
        lambda: fleet.remove(2),
        lambda: fleet.use_layouts(Layout.first(members_of(7), 6)),
    ):
        change()
        assert fleet.epoch() not in seen
        seen.add(fleet.epoch())
    fleet.set_offline(2, "was gone already")
    assert fleet.epoch() in seen


def test_a_volume_set_offline_or_replaced_is_let_go() -> None:
    fleet = manned(3)
    first, second = volumes_of(fleet)[0], volumes_of(fleet)[1]
    fleet.set_offline(0, "its heartbeats stopped")
    attach(fleet, 1)
    assert "its heartbeats stopped" in str(first.failure)
    assert "w1 connected again" in str(second.failure)
    assert fleet.recent_damage[-1].kind == "offline"


def test_wrong_shards_are_counted_by_worker() -> None:
    fleet = manned(3)
    for slot in (1, 1, 2):
        fleet.report("rotten", shard_key(stripe_of(1), 0), slot, "not what it should be")
    fleet.report("offline", b"", 0, "gone")
    assert fleet.lies() == {1: 2, 2: 1}


# -- whether pushes are taken ----------------------------------------------------------------------


def test_before_the_first_worker() -> None:
    fleet = WorkerFleet()
    for look in (lambda: fleet.placement, lambda: fleet.require_writable(PROFILE)):
        with pytest.raises(InsufficientWorkers, match="no worker has joined this pool yet; start some with"):
            look()
    assert fleet.losses_survivable(PROFILE) == 0


@pytest.mark.parametrize("allow_fragile", [False, True])
def test_none_answers(allow_fragile: bool) -> None:
    fleet = manned(3, away=[0, 1, 2], allow_fragile=allow_fragile)
    with pytest.raises(InsufficientWorkers, match="none of the 3 workers in the layout answers; start them again"):
        fleet.require_writable(PROFILE)


@pytest.mark.parametrize(("online", "verb"), [(1, "is"), (2, "are")])
def test_too_few_for_the_loss_of_one(online: int, verb: str) -> None:
    away = list(range(online, 6))
    text = (
        f"{online} of 6 workers {verb} online: a 4-of-6 file would not survive the loss of one of them; "
        "start more workers, or the pool with --allow-fragile"
    )
    with pytest.raises(InsufficientWorkers) as refusal:
        manned(6, away=away).require_writable(PROFILE)
    assert str(refusal.value) == text
    manned(6, away=away, allow_fragile=True).require_writable(PROFILE)


def test_three_workers_are_enough_for_four_of_six() -> None:
    manned(6, away=[0, 1, 2]).require_writable(PROFILE)


def test_a_profile_that_survives_nothing_is_refused_unless_the_operator_allows_it() -> None:
    with pytest.raises(InsufficientWorkers, match="4-of-4 file would not survive the loss of any worker"):
        manned(6).require_writable(ErasureProfile(4, 4))
    manned(6, allow_fragile=True).require_writable(ErasureProfile(4, 4))


def test_a_pool_being_shut_down_takes_nothing() -> None:
    fleet = manned(6)
    volumes = volumes_of(fleet)
    fleet.close()
    with pytest.raises(StoreClosed, match="shutting down"):
        fleet.require_writable(PROFILE)
    assert all(volume.failure for volume in volumes.values())


@given(count=st.integers(1, 9), width=st.integers(1, 8), k=st.integers(1, 5), extra=st.integers(1, 4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_push_that_is_taken_survives_the_loss_of_any_one_worker(
    count: int, width: int, k: int, extra: int, data: st.DataObject
) -> None:
    """Whatever the profile of the pool, the profile of the push, and who is away."""
    away = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    fleet = manned(count, width=width, away=sorted(away))

    def survives(seed: int) -> bool:
        held = Counter(fleet.targets(stripe_of(seed, k, k + extra)))
        return k + extra - max(held.values()) >= k

    try:
        fleet.require_writable(ErasureProfile(k, k + extra))
    except InsufficientWorkers:
        assert not all(survives(seed) for seed in range(40))
    else:
        assert all(survives(seed) for seed in range(40))


def test_losses_survivable_count_workers_that_are_away_or_lack_shards() -> None:
    fleet = manned(9)
    assert fleet.losses_survivable(PROFILE) == 2
    fleet.set_offline(0, "gone")
    assert fleet.losses_survivable(PROFILE) == 1
    attach(fleet, 0)  # it still lacks what was written meanwhile
    assert fleet.losses_survivable(PROFILE) == 1
    fleet.incomplete.discard(0)
    assert fleet.losses_survivable(PROFILE) == 2
    for slot in range(3):
        fleet.set_offline(slot, "gone")
    assert fleet.losses_survivable(PROFILE) == 0


# -- with workers behind a network -----------------------------------------------------------------


class Crew:
    """Members with volumes on the disk, served as workers serve them."""

    def __init__(self, directory: Path, count: int, exits: ExitStack) -> None:
        self.fleet = WorkerFleet()
        self.fleet.use_layouts(Layout.first(members_of(count), 6))
        self.volumes: dict[int, LocalVolume] = {}
        self.servers: dict[int, WireServer] = {}
        exits.callback(self.close)
        for slot in range(count):
            self.volumes[slot] = open_volume(directory / str(slot))
            self.start(slot)

    def start(self, slot: int) -> None:
        server = shard_server(self.volumes[slot])
        address = server.start("127.0.0.1:0")
        self.servers[slot] = server
        self.fleet.attach(slot, RemoteVolume(address, f"w{slot}"))

    def kill(self, slot: int) -> None:
        self.servers.pop(slot).stop(0.0)

    def close(self) -> None:
        self.fleet.close()
        for server in self.servers.values():
            server.stop(0.0)
        for volume in self.volumes.values():
            volume.close()

    def holds(self, stripe: StripeKey) -> Counter[int]:
        """Which shards of a stripe can be read from volumes whose worker lives, by their index."""
        return Counter(
            {
                index: 1
                for index in range(stripe[34] + 1)
                for slot in self.servers
                if self.volumes[slot].read(shard_key(stripe, index)) is not None
            }
        )


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    with ExitStack() as exits:
        yield Crew(tmp_path, 7, exits)


def test_workers_killed_before_and_during_a_push(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = [stripe_of(seed) for seed in range(40)], [stripe_of(seed) for seed in range(40, 80)]
    crew.kill(2)
    crew.fleet.append_and_sync(batches_of(crew.fleet, early))
    assert all(crew.holds(stripe) == Counter(range(6)) for stripe in early)
    assert crew.fleet.state(2) == "offline"
    batches = batches_of(crew.fleet, late)
    volume = dict(crew.fleet.online())[5]
    start_sync = volume.start_sync

    def start_and_kill(shards: Sequence[Shard]) -> Ticket:
        ticket = start_sync(shards)
        if 5 in crew.servers:
            crew.kill(5)
        return ticket

    monkeypatch.setattr(volume, "start_sync", start_and_kill)
    crew.fleet.append_and_sync(batches)
    crew.fleet.append_and_sync(batches)  # once more, whether it had answered or not
    assert all(crew.holds(stripe) == Counter(range(6)) for stripe in late)
    assert [crew.fleet.state(slot) for slot in (2, 5)] == ["offline"] * 2
    crew.fleet.require_writable(PROFILE)
    crew.start(5)
    assert crew.fleet.state(5) == "incomplete"


def test_everything_lands_on_its_holders(crew: Crew) -> None:
    stripes = [stripe_of(seed) for seed in range(60)]
    crew.fleet.append(batches_of(crew.fleet, stripes))
    crew.fleet.sync()
    for stripe in stripes:
        for shard, holder in zip(shards_of(stripe), crew.fleet.holders(stripe), strict=True):
            found = crew.volumes[holder].read(shard.key)
            assert found is not None
            assert bytes(found.payload) == shard.payload
    assert len({partition_of(stripe) for stripe in stripes}) > PARTITIONS // 32
