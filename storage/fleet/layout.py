"""The layout of a pool: a versioned table partition → ordered slots → member.

Quotas, proportional to capacity, decide how many slots a member gets; weighted rendezvous hashing (Resch, "New hashing
algorithms for data storage", SNIA 2015) decides which. A layout is made from the previous one with the fewest moves:
adding one of N equal members moves 1/N of the shards, and removing one moves only its own. Failure domains take
precedence over quotas.
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
    """The stored form of a layout: ``table`` is 1024 x width slot numbers, 2 bytes each, big-endian."""

    version: int
    width: int
    members: tuple[Member, ...]
    table: bytes


class Moves(msgspec.Struct, frozen=True):
    """The changes from one layout to the next, as shares (0…1) of all shards of stripes with default width.

    Attributes:
        moved: share of shards whose member changes.
        into, out_of: the same, by the slot of the new and of the former member.
    """

    moved: float
    into: dict[int, float]
    out_of: dict[int, float]


class Layout:
    """A layout; immutable. Slot i of a stripe belongs on the i-th member of its partition's row.

    Args:
        version: 1 for the first layout of a pool.
        width: slots of a row: n of the pool's default profile.
        members: all members, by ascending slot.
        rows: for each partition, the slot numbers of members, in the order of stripe slots.

    Raises:
        InvalidArgument: there are no members, too many, or two with the same slot.
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
        """The next version, for these members, with the fewest moves; without moves if the members are the same."""
        chosen = _checked(members)
        if self.members == tuple(sorted(chosen, key=lambda member: member.slot)):
            return Layout(self.version + 1, self.width, chosen, self.rows)
        return Layout(
            self.version + 1, self.width, chosen, Assignment(self.width, self.rows, self.by_slot, chosen).rows()
        )

    # -- where things are --------------------------------------------------------------------------

    def volumes(self, object_id: bytes, n: int) -> tuple[int, ...]:
        """The slot of the member for each stripe slot 0…n-1 of the object."""
        return self.row(partition_of(object_id), n)

    def row(self, partition: int, n: int) -> tuple[int, ...]:
        """The slot of the member for each stripe slot 0…n-1 of the objects in a partition."""
        placed = self._placed.setdefault(n, {})
        found = placed.get(partition)
        if found is None:
            found = placed[partition] = self._spread(partition, n)
        return found

    def different_rows(self, n: int) -> frozenset[tuple[int, ...]]:
        """All distinct rows for stripes of n shards."""
        found = self._different.get(n)
        if found is None:
            rows = frozenset(self.row(partition, n) for partition in range(len(self.rows)))
            found = self._different[n] = rows
        return found

    def _spread(self, partition: int, n: int) -> tuple[int, ...]:
        """The row, cut or extended to n slots such that they are spread over members as evenly as possible."""
        limit = -(-n // len(self.members))
        held: Counter[int] = Counter()
        spread: list[int] = []
        for slot in (self.rows[partition] + (-1,) * n)[:n]:
            kept = slot if held[slot] < limit else -1
            held[kept] += kept >= 0
            spread.append(kept)
        for index, slot in enumerate(spread):
            if slot < 0:
                spread[index] = min(self.order(partition), key=held.__getitem__)  # the first one, if equal
                held[spread[index]] += 1
        return tuple(spread)

    def order(self, partition: int) -> tuple[int, ...]:
        """All members: those in the partition's row first, then the others in the order in which they stand in."""
        order = self._orders.get(partition)
        if order is None:
            ranked = sorted(self.members, key=lambda member: _score(partition, member), reverse=True)
            seen = dict.fromkeys(self.rows[partition])
            seen.update(dict.fromkeys(member.slot for member in ranked))
            order = self._orders[partition] = tuple(seen)
        return order

    @cached_property
    def by_slot(self) -> dict[int, Member]:
        """Members by slot."""
        return {member.slot: member for member in self.members}

    @cached_property
    def domains(self) -> dict[int, tuple[int | str, ...]]:
        """The failure domains of each member. The first is the one that should least hold two shards of a stripe."""
        return {member.slot: (member.slot, by_owner(member), by_zone(member)) for member in self.members}

    def shares(self) -> dict[int, float]:
        """Share (0…1) of all shards for each member."""
        return {slot: count / (PARTITIONS * self.width) for slot, count in self._held.items()}

    @cached_property
    def _held(self) -> dict[int, int]:
        """How many slots each member has in all rows."""
        counts = Counter(slot for row in self.rows for slot in row)
        return {member.slot: counts[member.slot] for member in self.members}

    def losses_survivable(
        self, k: int, domain: Callable[[Member], str], absent: Iterable[int] = (), n: int | None = None
    ) -> int:
        """How many domains, whichever, may be lost at once with k-of-``n`` stripes still readable.

        Args:
            k: shards needed.
            n: shards stored; default: the width.
            domain: the failure domain of a member, such as ``lambda member: member.worker``.
            absent: slots of members that are already gone. The result is -1 if their loss alone is too much.
        """
        rows = self.different_rows(self.width if n is None else n)
        return rows_survive(rows, k, {member.slot: domain(member) for member in self.members}, absent)

    def moves_to(self, later: Layout) -> Moves:
        """What must move from this layout to a later one."""
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
        """The form to store; see :meth:`from_record`."""
        table = b"".join(slot.to_bytes(_SLOT_BYTES, "big") for row in self.rows for slot in row)
        return LayoutRecord(self.version, self.width, self.members, table)

    @classmethod
    def from_record(cls, record: LayoutRecord) -> Layout:
        """Restore a stored layout.

        Raises:
            FormatError: the table does not fit the members, or the members are invalid.
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
            raise FormatError(f"layout {record.version} names a member that it does not have; restore the catalog")
        rows = [tuple(slots[at : at + width]) for at in range(0, len(slots), width)]
        return cls(record.version, width, record.members, rows)


def rows_survive(rows: frozenset[tuple[int, ...]], k: int, of: Mapping[int, str], gone: Iterable[int]) -> int:
    """How many domains, whichever, may be lost at once with k shards left in each row; -1: too many are lost already.

    Recent results are cached, since a pool's status asks the same repeatedly.

    Args:
        rows: the member slot of each shard.
        k: shards needed.
        of: the domain of each member.
        gone: members whose shards are already lost.
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
