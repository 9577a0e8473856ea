"""Layouts of a pool: rows are full and valid, shares fair, moves few, and tolerated losses reported correctly."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import FormatError, InvalidArgument
from storage.fleet.layout import MEMBERS_MAX, Layout, LayoutRecord
from storage.fleet.members import Member, by_owner, by_zone
from storage.fleet.placement import PARTITIONS, partition_of

TIB = 1 << 40
SOME = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Domain = Callable[[Member], str]
DOMAINS: tuple[Domain, ...] = (
    lambda member: str(member.slot),
    lambda member: member.worker,
    lambda member: f"{member.owner}/{member.zone}",
    lambda member: member.owner,
)


def equal_members(count: int, zones: int = 1) -> list[Member]:
    return [Member(slot, f"w{slot}", f"z{slot % zones}", TIB) for slot in range(count)]


capacities = st.one_of(st.just(TIB), st.integers(1, 4).map(lambda part: part * TIB), st.integers(1, 1 << 50))


@st.composite
def memberships(draw: st.DrawFn, count_max: int = 40, workers_share: bool = True) -> list[Member]:
    """Members in zones of owners. A worker may have several volumes; slot numbers are arbitrary but distinct."""
    count = draw(st.integers(1, count_max))
    zones = draw(st.integers(1, 6))
    owners = draw(st.integers(1, 3))
    workers = draw(st.integers(1, count)) if workers_share else count
    slots = sorted(draw(st.sets(st.integers(0, 200), min_size=count, max_size=count)))
    of = [draw(st.integers(0, workers - 1)) if workers_share else index for index in range(count)]
    return [
        Member(slot, f"w{worker}", f"z{worker % zones}", draw(capacities), f"o{worker % owners}")
        for slot, worker in zip(slots, of, strict=True)
    ]


def least_limits(members: list[Member], width: int) -> list[int]:
    """Return the smallest limits per row for each level of domains, each within the limits of the levels before."""
    limits = [-(-width // len(members))]
    for level, domain in enumerate(DOMAINS[1:], 1):
        inside: dict[str, set[str]] = {}
        for member in members:
            inside.setdefault(domain(member), set()).add(DOMAINS[level - 1](member))
        limit = 1
        while _fits(members, [*limits, limit]) < width:
            limit += 1
        limits.append(limit)
    return limits


def _fits(members: list[Member], limits: list[int]) -> int:
    """Return how many slots of a row the members can take under these limits."""
    takes = {str(member.slot): limits[0] for member in members}
    for level, limit in enumerate(limits[1:], 1):
        sums: Counter[str] = Counter()
        for inside, outside in {DOMAINS[level - 1](member): DOMAINS[level](member) for member in members}.items():
            sums[outside] += takes[inside]
        takes = {name: min(limit, total) for name, total in sums.items()}
    return sum(takes.values())


def check_legal(layout: Layout, members: list[Member]) -> None:
    """Check that every row is full and no domain holds more of it than the smallest limit."""
    assert len(layout.rows) == PARTITIONS
    by_slot = {member.slot: member for member in members}
    limits = least_limits(members, layout.width)
    for row in set(layout.rows):
        assert len(row) == layout.width
        for domain, limit in zip(DOMAINS, limits, strict=True):
            assert max(Counter(domain(by_slot[slot]) for slot in row).values()) <= limit


def due_to(members: list[Member], width: int) -> dict[int, float]:
    """Return the slots due to each member in proportion to capacity, if only volumes have a limit per row."""
    limit = PARTITIONS * -(-width // len(members))
    due: dict[int, float] = {}
    rest, left = float(PARTITIONS * width), list(members)
    while left:
        capacity = sum(member.capacity for member in left)
        full = [member for member in left if rest * member.capacity / capacity >= limit]
        if not full:
            return due | {member.slot: rest * member.capacity / capacity for member in left}
        due |= {member.slot: float(limit) for member in full}
        rest -= limit * len(full)
        left = [member for member in left if member.slot not in due]
    return due


def loads(layout: Layout) -> Counter[int]:
    return Counter(slot for row in layout.rows for slot in row)


# -- rows and shares -------------------------------------------------------------------------------


@given(members=memberships(), width=st.integers(1, 12))
@SOME
def test_every_row_is_full_and_spread_as_far_as_can_be(members: list[Member], width: int) -> None:
    layout = Layout.first(members, width)
    check_legal(layout, members)
    assert layout.version == 1
    assert sum(layout.shares().values()) == pytest.approx(1)


@given(data=st.data(), width=st.integers(1, 9))
@SOME
def test_rows_stay_full_and_spread_through_any_change(data: st.DataObject, width: int) -> None:
    layout = Layout.first(data.draw(memberships(count_max=12)), width)
    for _ in range(3):
        members = data.draw(memberships(count_max=12))
        layout = layout.after(members)
        check_legal(layout, members)
    assert layout.version == 4


@pytest.mark.parametrize(
    ("zones", "width", "limit"),
    [((3, 3), 6, 3), ((2, 2, 2), 6, 2), ((1, 5), 6, 5), ((2, 4), 3, 2), ((1, 1, 10), 4, 2)],
)
def test_zones_share_a_row_as_evenly_as_they_can(zones: tuple[int, ...], width: int, limit: int) -> None:
    names = [f"z{zone}" for zone, size in enumerate(zones) for _ in range(size)]
    members = [Member(slot, f"w{slot}", name, TIB) for slot, name in enumerate(names)]
    for row in Layout.first(members, width).rows:
        assert len({*row}) == width
        assert max(Counter(names[slot] for slot in row).values()) <= limit


def test_owners_come_first() -> None:
    """An owner with many ids in many zones gets no more of a stripe than each other owner."""
    members = [Member(slot, f"w{slot}", f"z{slot}", TIB, "many") for slot in range(12)]
    members += [Member(slot, f"w{slot}", "", TIB, f"o{slot}") for slot in range(12, 17)]
    for layout in (Layout.first(members, 6), Layout.first(members[:12], 6).after(members)):
        for row in layout.rows:
            assert max(Counter(members[slot].owner for slot in row).values()) == 1
    assert layout.losses_survivable(4, by_owner) == 2


def test_zones_of_two_owners_are_different_ones() -> None:
    members = [Member(slot, f"w{slot}", "rack", TIB, "a" if slot < 3 else "b") for slot in range(6)]
    layout = Layout.first(members, 6)
    assert layout.losses_survivable(3, by_zone) == layout.losses_survivable(3, by_owner) == 1
    alone = Layout.first([msgspec.structs.replace(member, owner="") for member in members], 6)
    assert alone.losses_survivable(3, by_zone) == 0


def test_a_worker_has_one_owner() -> None:
    with pytest.raises(InvalidArgument, match="worker a has two owners"):
        Layout.first([Member(1, "a", "", 1, "x"), Member(2, "a", "", 1, "y")], 2)


def test_a_layout_kept_before_there_were_owners_is_read() -> None:
    record = Layout.first(equal_members(3), 2).record()
    old = [
        {name: getattr(member, name) for name in ("slot", "worker", "zone", "capacity")} for member in record.members
    ]
    raw = msgspec.msgpack.encode({"version": 1, "width": 2, "members": old, "table": record.table})
    layout = Layout.from_record(msgspec.msgpack.decode(raw, type=LayoutRecord))
    assert layout.members == record.members
    assert {member.owner for member in layout.members} == {""}


def test_workers_come_before_zones_where_both_cannot_be_had() -> None:
    """A worker with three volumes is the only one in its zone, so a second volume of it in a row would not help."""
    members = [Member(slot, "big", "a", TIB) for slot in range(3)]
    members += [Member(slot, f"w{slot}", "b", TIB) for slot in range(3, 6)]
    for row in Layout.first(members, 4).rows:
        assert len({members[slot].worker for slot in row}) == 4


@given(members=memberships(workers_share=False), width=st.integers(1, 12))
@SOME
def test_shares_are_in_proportion_to_capacity_within_two_slots(members: list[Member], width: int) -> None:
    """If a member's share exceeds its limit per row, the others get the rest."""
    members = [msgspec.structs.replace(member, zone="", owner="") for member in members]
    held, due = loads(Layout.first(members, width)), due_to(members, width)
    assert all(abs(held[slot] - due[slot]) < 2 for slot in due)


def test_a_member_is_relieved_by_others_that_want_nothing() -> None:
    """The member with too many slots is in none of the rows that the members with too few could take."""
    tib = [1, 4, 1, 1 / 1024, 0, 4, 0, 0, 1, 3, 2, 1, 4, 1, 0.1697, 1, 2, 1, 0, 0, 4]
    slots = [0, 1, 17, 21, 64, 68, 81, 86, 96, 115, 117, 118, 120, 121, 149, 152, 159, 171, 180, 190, 196]
    members = [
        Member(slot, f"w{index}", "", max(1, int(part * TIB)))
        for index, (slot, part) in enumerate(zip(slots, tib, strict=True))
    ]
    held, due = loads(Layout.first(members, 11)), due_to(members, 11)
    assert max(abs(held[slot] - due[slot]) for slot in due) < 1.5


@given(zones=st.integers(1, 6), each=st.integers(1, 6), width=st.integers(1, 9))
@SOME
def test_equal_zones_of_equal_members_get_equal_shares(zones: int, each: int, width: int) -> None:
    members = equal_members(zones * each, zones)
    held, fair = loads(Layout.first(members, width)), PARTITIONS * width / len(members)
    assert all(abs(held[member.slot] - fair) <= max(4.0, 0.02 * fair) for member in members)


@pytest.mark.parametrize("count", [6, 13])
def test_data_and_parity_are_spread_alike(count: int) -> None:
    """A member that holds slot 0 of many stripes would get more than its share of reads."""
    layout = Layout.first(equal_members(count), 6)
    for index in range(6):
        held = Counter(row[index] for row in layout.rows)
        fair = PARTITIONS / count
        assert all(0.6 * fair < held[slot] < 1.5 * fair for slot in range(count))


# -- moves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "width"), [(6, 6), (12, 6), (99, 6), (1, 1), (2, 2), (3, 3), (9, 9), (3, 9), (20, 3)]
)
def test_adding_one_of_equal_members_moves_its_share_into_it(before: int, width: int) -> None:
    members = equal_members(before + 1)
    first = Layout.first(members[:-1], width)
    after = first.after(members)
    moves = first.moves_to(after)
    assert 0.98 <= moves.moved * (before + 1) <= 1.1
    assert set(moves.into) == {before}
    check_legal(after, members)


@given(count=st.integers(2, 40), width=st.integers(1, 12), data=st.data())
@SOME
def test_removing_one_of_equal_members_moves_only_its_own(count: int, width: int, data: st.DataObject) -> None:
    members = equal_members(count)
    before = Layout.first(members, width)
    gone = data.draw(st.integers(0, count - 1))
    after = before.after([member for member in members if member.slot != gone])
    moves = before.moves_to(after)
    assert set(moves.out_of) == {gone}
    assert moves.moved == pytest.approx(before.shares()[gone])


@given(members=memberships(count_max=20), width=st.integers(1, 9), data=st.data())
@SOME
def test_what_stays_on_a_member_keeps_its_place_in_the_stripe(
    members: list[Member], width: int, data: st.DataObject
) -> None:
    """A shard belongs to one slot of its stripe: a member that stays in a row must keep its slot."""
    before = Layout.first(members, width)
    later = data.draw(memberships(count_max=20))
    after = before.after(later)
    for old, new in zip(before.rows, after.rows, strict=True):
        if max(Counter(old).values()) > 1 or max(Counter(new).values()) > 1:
            continue  # a member with several slots of a row may give up one and take another
        for slot in {*old} & {*new}:
            assert old.index(slot) == new.index(slot)


@given(count=st.integers(2, 40), width=st.integers(1, 9), factor=st.sampled_from([0.5, 0.9, 1.1, 2.0]))
@SOME
def test_another_capacity_moves_little_more_than_the_difference(count: int, width: int, factor: float) -> None:
    members = equal_members(count)
    changed = [msgspec.structs.replace(members[0], capacity=int(TIB * factor)), *members[1:]]
    before = Layout.first(members, width)
    due, due_after = due_to(members, width), due_to(changed, width)
    least = sum(abs(due[slot] - due_after[slot]) for slot in due) / 2
    after = before.after(changed)
    assert before.moves_to(after).moved * PARTITIONS * width <= 1.05 * least + count
    assert all(abs(loads(after)[slot] - due_after[slot]) <= 2 + count / 2 for slot in due_after)


@given(members=memberships(), width=st.integers(1, 9))
@SOME
def test_the_same_members_again_move_nothing(members: list[Member], width: int) -> None:
    before = Layout.first(members, width)
    assert before.moves_to(before.after(members)).moved == 0


def test_moves_are_told_by_member() -> None:
    before = Layout(1, 2, equal_members(3), [(0, 1)] * PARTITIONS)
    after = Layout(2, 2, equal_members(3), [(0, 2)] * (PARTITIONS // 2) + [(0, 1)] * (PARTITIONS // 2))
    moves = before.moves_to(after)
    assert (moves.moved, moves.into, moves.out_of) == (0.25, {2: 0.25}, {1: 0.25})


# -- places ----------------------------------------------------------------------------------------


def object_in(partition: int) -> bytes:
    return (partition << 6).to_bytes(2, "big") + bytes(30)


@given(members=memberships(count_max=20), width=st.integers(1, 9), partition=st.integers(0, PARTITIONS - 1))
@SOME
def test_stripes_of_every_width_are_spread_over_all_members(members: list[Member], width: int, partition: int) -> None:
    layout = Layout.first(members, width)
    placed_before: tuple[int, ...] = ()
    for n in range(1, 2 * len(members) + 2):
        placed = layout.volumes(object_in(partition), n)
        assert len(placed) == n
        assert max(Counter(placed).values()) == -(-n // len(members))
        if width <= len(members):
            assert placed[: len(placed_before)] == placed_before
        placed_before = placed
    assert layout.volumes(object_in(partition), width) == layout.rows[partition]


@given(members=memberships(count_max=20), width=st.integers(1, 9), partition=st.integers(0, PARTITIONS - 1))
@SOME
def test_an_order_starts_with_the_row_and_names_everyone_once(
    members: list[Member], width: int, partition: int
) -> None:
    layout = Layout.first(members, width)
    assert partition_of(object_in(partition)) == partition
    order = layout.order(partition)
    row = tuple(dict.fromkeys(layout.rows[partition]))
    assert order[: len(row)] == row
    assert sorted(order) == sorted(member.slot for member in members)


def test_handoffs_are_spread_over_those_outside_of_the_row() -> None:
    layout = Layout.first(equal_members(12), 6)
    first = Counter(layout.order(partition)[6] for partition in range(PARTITIONS))
    assert all(0.5 * PARTITIONS / 12 < first[slot] < 1.7 * PARTITIONS / 12 for slot in range(12))


@given(members=memberships(count_max=20), width=st.integers(1, 9), seed=st.randoms())
@SOME
def test_a_layout_depends_on_nothing_but_its_members(members: list[Member], width: int, seed: object) -> None:
    first = Layout.first(members, width)
    again = Layout.first(iter(members[::-1]), width)
    assert first.record() == again.record()
    assert [first.order(partition) for partition in range(20)] == [again.order(partition) for partition in range(20)]


def table_digest() -> str:
    """Return the digest of a layout with former layouts, many domains and uneven capacities."""
    members = [Member(slot, f"w{slot}", f"zone {slot % 4}", (slot % 3 + 1) * TIB) for slot in range(17)]
    layout = Layout.first(members[:11], 6).after(members[2:])
    return hashlib.sha256(layout.record().table).hexdigest()


@pytest.mark.parametrize("seed", ["1", "2"])
def test_a_layout_is_the_same_in_every_process(seed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.storage.test_layout import table_digest; print(table_digest())"],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == table_digest()


# -- losses ----------------------------------------------------------------------------------------


@given(
    members=memberships(count_max=7),
    k=st.integers(1, 5),
    extra=st.integers(0, 3),
    domain=st.sampled_from(DOMAINS),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_losses_survivable(members: list[Member], k: int, extra: int, domain: Domain, data: st.DataObject) -> None:
    layout = Layout.first(members, k + extra)
    absent = data.draw(st.sets(st.sampled_from([member.slot for member in members])))
    of = {member.slot: domain(member) for member in members}
    names = sorted({*of.values()})

    def survives(lost: int) -> bool:
        return all(
            sum(slot not in absent and of[slot] not in gone for slot in row) >= k
            for gone in combinations(names, lost)
            for row in set(layout.rows)
        )

    told = layout.losses_survivable(k, domain, absent)
    expected = -1
    while expected < len(names) and survives(expected + 1):
        expected += 1
    assert told == expected


# -- keeping ---------------------------------------------------------------------------------------


@given(members=memberships(), width=st.integers(1, 9))
@SOME
def test_a_layout_that_was_kept_is_the_same(members: list[Member], width: int) -> None:
    layout = Layout.first(members, width)
    raw = msgspec.msgpack.encode(layout.record())
    kept = Layout.from_record(msgspec.msgpack.decode(raw, type=LayoutRecord))
    assert kept.record() == layout.record()
    assert kept.rows == layout.rows
    assert kept.members == layout.members
    assert (kept.version, kept.width) == (layout.version, layout.width)
    assert kept.order(77) == layout.order(77)
    assert kept.after(members).rows == layout.after(members).rows


RECORD = Layout.first(equal_members(4), 3).record()
DAMAGED = {
    "cut": {"table": RECORD.table[:-1]},
    "cut by a slot": {"table": RECORD.table[:-2]},
    "longer": {"table": RECORD.table + b"\0\0"},
    "empty": {"table": b""},
    "a stranger": {"table": b"\0\4" + RECORD.table[2:]},
    "a slot flipped": {"table": bytes([RECORD.table[0] ^ 0x80]) + RECORD.table[1:]},
    "another width": {"width": 4},
    "no width": {"width": 0, "table": b""},
    "a negative width": {"width": -1},
    "a member gone": {"members": RECORD.members[1:]},
    "no members": {"members": ()},
    "a member twice": {"members": (*RECORD.members, RECORD.members[0])},
    "no capacity": {"members": (msgspec.structs.replace(RECORD.members[0], capacity=0), *RECORD.members[1:])},
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="restore the catalog"):
        Layout.from_record(msgspec.structs.replace(RECORD, **damage))


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([], "at least one"),
        ([Member(slot, f"w{slot}", "", 1) for slot in range(MEMBERS_MAX + 1)], f"at most {MEMBERS_MAX}"),
        ([Member(1, "a", "", 1), Member(1, "b", "", 1)], "the same slot"),
        ([Member(1, "a", "", 0)], "at least 1 byte"),
        ([Member(1, "a", "x", 1), Member(2, "a", "y", 1)], "two zones"),
    ],
)
def test_members_that_make_no_layout(members: list[Member], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        Layout.first(members, 3)
