"""The layout of a pool: a versioned table partition → ordered slots → member.

Quotas say how many slots a member gets (in proportion to its capacity); weighted rendezvous hashing
(Resch, "New hashing algorithms for data storage", SNIA 2015) says which. A layout is made from the one
before it: what need not move keeps its place and its slot, so that adding one of N equal members moves
1/N of the shards and removing one moves only its own. Failure domains come first, quotas second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import msgspec

from storage.errors import FormatError, InvalidArgument
from storage.fleet.assignment import (
    Assignment,
    _score,
)
from storage.fleet.members import Member, by_owner, by_zone
from storage.fleet.placement import PARTITIONS, partition_of

MEMBERS_MAX = 1024
_SLOT_BYTES = 2
_ANSWERS_KEPT = 64


class LayoutRecord(msgspec.Struct, frozen=True):
    """A layout as it is kept: ``table`` is 1024 x width slot numbers, 2 bytes each, big-endian."""

    version: int
    width: int
    members: tuple[Member, ...]
    table: bytes


class Moves(msgspec.Struct, frozen=True):
    """What changes from one layout to the next, in shares (0…1) of all shards of default-width stripes.

    Attributes:
        moved: share of shards whose member changes.
        into, out_of: the same by member slot.
    """

    moved: float
    into: dict[int, float]
    out_of: dict[int, float]


class Layout:
    """Immutable. Slot i of a stripe lives on the i-th member of its partition's row.

    Args:
        version: 1 for the first layout of a pool.
        width: slots in a row: n of the pool's default profile.
        members: all that take part, by rising slot.
        rows: for each partition, the member slot numbers in stripe-slot order.

    Raises:
        InvalidArgument: no members, too many, or two with one slot.
    """

    def __init__(self, version: int, width: int, members: Sequence[Member], rows: Sequence[tuple[int, ...]]) -> None:
        self.version = version
        self.width = width
        self.members = tuple(sorted(members, key=lambda member: member.slot))
        self.rows = list(rows)
        self._placed: dict[int, dict[int, tuple[int, ...]]] = {}
        self._orders: dict[int, tuple[int, ...]] = {}
        self._different: dict[int, frozenset[tuple[int, ...]]] = {}

    @classmethod
    def first(cls, members: Iterable[Member], width: int) -> Layout:
        """The first layout of a pool."""
        empty = cls(0, width, (), [(-1,) * width] * PARTITIONS)
        return empty.after(members)

    def after(self, members: Iterable[Member]) -> Layout:
        """The next version, over these members, with the fewest moves from this one; none for the same members."""
        chosen = _checked(members)
        if self.members == tuple(sorted(chosen, key=lambda member: member.slot)):
            return Layout(self.version + 1, self.width, chosen, self.rows)
        return Layout(
            self.version + 1, self.width, chosen, Assignment(self.width, self.rows, self.by_slot, chosen).rows()
        )

    # -- where things are --------------------------------------------------------------------------

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The member slot that holds each stripe slot 0…n-1 of the object."""
        return self.row(partition_of(object_id), n)

    def row(self, partition: int, n: int) -> tuple[int, ...]:
        """The same of every object in a partition."""
        placed = self._placed.setdefault(n, {})
        found = placed.get(partition)
        if found is None:
            found = placed[partition] = self._spread(partition, n)
        return found

    def different_rows(self, n: int) -> frozenset[tuple[int, ...]]:
        """All rows for stripes of n shards, each once."""
        found = self._different.get(n)
        if found is None:
            rows = frozenset(self.row(partition, n) for partition in range(len(self.rows)))
            found = self._different[n] = rows
        return found

    def _spread(self, partition: int, n: int) -> tuple[int, ...]:
        """The row, cut or made longer to n slots such that no member holds more of them than it must."""
        limit = -(-n // len(self.members))
        held: Counter[int] = Counter()
        spread: list[int] = []
        for slot in (self.rows[partition] + (-1,) * n)[:n]:
            kept = slot if held[slot] < limit else -1
            held[kept] += kept >= 0
            spread.append(kept)
        for index, slot in enumerate(spread):
            if slot < 0:
                spread[index] = min(self.order(partition), key=held.__getitem__)  # of equals the first in order
                held[spread[index]] += 1
        return tuple(spread)

    def order(self, partition: int) -> tuple[int, ...]:
        """All members: those of the partition's row first, then the others in the order they take handoffs."""
        order = self._orders.get(partition)
        if order is None:
            ranked = sorted(self.members, key=lambda member: _score(partition, member), reverse=True)
            seen = dict.fromkeys(self.rows[partition])
            seen.update(dict.fromkeys(member.slot for member in ranked))
            order = self._orders[partition] = tuple(seen)
        return order

    @cached_property
    def by_slot(self) -> dict[int, Member]:
        """Members by their slot."""
        return {member.slot: member for member in self.members}

    @cached_property
    def domains(self) -> dict[int, tuple[int | str, ...]]:
        """The failure domains of each member, in the order in which they should not hold two shards of a stripe."""
        return {member.slot: (member.slot, by_owner(member), by_zone(member)) for member in self.members}

    def shares(self) -> dict[int, float]:
        """Share (0…1) of the shards that each member holds."""
        return {slot: count / (PARTITIONS * self.width) for slot, count in self._held.items()}

    @cached_property
    def _held(self) -> dict[int, int]:
        """How many slots of all rows each member has."""
        counts = Counter(slot for row in self.rows for slot in row)
        return {member.slot: counts[member.slot] for member in self.members}

    def losses_survivable(
        self, k: int, domain: Callable[[Member], str], absent: Iterable[int] = (), n: int | None = None
    ) -> int:
        """How many whole domains may be lost at once, whichever, with stripes of k-of-``n`` readable.

        Args:
            k: shards needed.
            n: of so many; default the width.
            domain: what fails together, such as ``lambda member: member.worker``.
            absent: member slots that are gone already. -1 is answered if that is too much by itself.
        """
        rows = self.different_rows(self.width if n is None else n)
        return rows_survive(rows, k, {member.slot: domain(member) for member in self.members}, absent)

    def moves_to(self, later: Layout) -> Moves:
        """What has to move from here to a later layout."""
        into: Counter[int] = Counter()
        out_of: Counter[int] = Counter()
        for before, after in zip(self.rows, later.rows, strict=True):
            for old, new in zip(before, after, strict=True):
                if old != new:
                    into[new] += 1
                    out_of[old] += 1
        total = PARTITIONS * self.width
        share = {slot: count / total for slot, count in into.items()}
        return Moves(into.total() / total, share, {slot: count / total for slot, count in out_of.items()})

    # -- keeping -----------------------------------------------------------------------------------

    def record(self) -> LayoutRecord:
        """For keeping; see :meth:`from_record`."""
        table = b"".join(slot.to_bytes(_SLOT_BYTES, "big") for row in self.rows for slot in row)
        return LayoutRecord(self.version, self.width, self.members, table)

    @classmethod
    def from_record(cls, record: LayoutRecord) -> Layout:
        """The layout that was kept.

        Raises:
            FormatError: the table does not fit the members, or they are not such as a layout can have.
        """
        width, table = record.width, record.table
        if width < 1 or len(table) != PARTITIONS * width * _SLOT_BYTES:
            raise FormatError(f"the table of layout {record.version} has {len(table)} bytes; restore the catalog")
        slots = [int.from_bytes(table[at : at + _SLOT_BYTES], "big") for at in range(0, len(table), _SLOT_BYTES)]
        try:
            known = {member.slot for member in _checked(record.members)}
        except InvalidArgument as error:
            raise FormatError(f"layout {record.version} is damaged ({error}); restore the catalog") from error
        if not set(slots) <= known:
            raise FormatError(f"layout {record.version} names a member it has not got; restore the catalog")
        rows = [tuple(slots[at : at + width]) for at in range(0, len(slots), width)]
        return cls(record.version, width, record.members, rows)


def rows_survive(rows: frozenset[tuple[int, ...]], k: int, of: Mapping[int, str], gone: Iterable[int]) -> int:
    """How many whole domains may be lost at once, whichever, with k shards of each of these rows left; -1: none may.

    What was answered lately is remembered: whoever looks at a pool asks the same again and again.

    Args:
        rows: the member slot of each shard.
        k: shards needed.
        of: the domain of each member.
        gone: members whose shards are gone already.
    """
    return _rows_survive(rows, k, tuple(sorted(of.items())), frozenset(gone))


@lru_cache(_ANSWERS_KEPT)
def _rows_survive(
    rows: frozenset[tuple[int, ...]], k: int, domains: tuple[tuple[int, str], ...], gone: frozenset[int]
) -> int:
    of = dict(domains)
    least = len({*of.values()})
    for row in rows:
        there = [of[slot] for slot in row if slot not in gone]
        spare = len(there) - k
        if spare < 0:
            return -1
        losses = 0
        for count in sorted(Counter(there).values(), reverse=True):
            spare -= count
            if spare < 0:
                break
            losses += 1
        least = min(least, losses)
    return least


def _checked(members: Iterable[Member]) -> list[Member]:
    chosen = sorted(members, key=lambda member: member.slot)
    if not chosen:
        raise InvalidArgument("a layout needs at least one member")
    if len(chosen) > MEMBERS_MAX:
        raise InvalidArgument(f"a layout has at most {MEMBERS_MAX} members, {len(chosen)} were given")
    if len({member.slot for member in chosen}) < len(chosen):
        raise InvalidArgument("two members have the same slot")
    for member in chosen:
        if member.capacity < 1:
            raise InvalidArgument(f"worker {member.worker}: a capacity is at least 1 byte, not {member.capacity}")
    first: dict[str, Member] = {}
    for member in chosen:
        other = first.setdefault(member.worker, member)
        if other.zone != member.zone:
            raise InvalidArgument(f"worker {member.worker} is in two zones, {other.zone} and {member.zone}")
        if other.owner != member.owner:
            raise InvalidArgument(f"worker {member.worker} has two owners, {other.owner} and {member.owner}")
    return chosen
