"""The layout of a pool: a versioned table partition → ordered slots → member.

Quotas say how many slots a member gets (in proportion to its capacity); weighted rendezvous hashing
(Resch, "New hashing algorithms for data storage", SNIA 2015) says which. A layout is made from the one
before it: what need not move keeps its place and its slot, so that adding one of N equal members moves
1/N of the shards and removing one moves only its own. Failure domains come first, quotas second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache

import msgspec
from blake3 import blake3

from storage.errors import FormatError, InvalidArgument
from storage.fleet.placement import PARTITIONS, partition_of

MEMBERS_MAX = 1024
_SLOT_BYTES = 2
_SCORES_KEPT = 1 << 15  # logarithms: of a pool of 32 members
_ANSWERS_KEPT = 64
_ROUNDING = 1e-6
_SURPLUS_MAX = 1.5  # slots of the table that a member may be given beyond its quota, but for what no other may take


class Member(msgspec.Struct, frozen=True):
    """A volume that takes part in a layout.

    Attributes:
        slot: its number in the pool, given once and never to another.
        worker: id of the worker that offers it.
        zone: what fails together with it beyond the worker (a rack, a room); "" is a zone like any other. Zones are an
            owner's: those of two owners are different ones, whatever they are called.
        capacity: its weight, in bytes.
        owner: who runs the machine, and may take it away together with all others of theirs; "" for all whose owner
            is not named, as they may be the same.
    """

    slot: int
    worker: str
    zone: str
    capacity: int
    owner: str = ""


def by_worker(member: Member) -> str:
    """A worker's volumes fail together."""
    return member.worker


def by_zone(member: Member) -> str:
    """Workers of a zone fail together."""
    return f"{member.owner}\0{member.zone}"


def by_owner(member: Member) -> str:
    """Zones of an owner fail together."""
    return member.owner


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
        return Layout(self.version + 1, self.width, chosen, _Assignment(self, chosen).rows())

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


def _score(partition: int, member: Member) -> float:
    """Weighted rendezvous score: the highest wins with a probability in proportion to the capacity."""
    return -member.capacity / _log_uniform(partition, member.slot)


@lru_cache(maxsize=_SCORES_KEPT)
def _log_uniform(partition: int, slot: int) -> float:
    """Logarithm of a number in 0…1 that a partition and a slot always have in common."""
    digest = blake3(partition.to_bytes(2, "big") + slot.to_bytes(4, "big")).digest(8)
    return math.log((int.from_bytes(digest, "big") + 0.5) / 2.0**64)


class _Domain:
    """How the members of one level (volumes, workers, zones, owners) may share a row: at most ``limit`` slots each."""

    def __init__(self, of: dict[int, str], sizes: Counter[str], width: int) -> None:
        self.of = of
        self.limit = _least_limit(sizes, width)
        self._inside: dict[str, set[int]] = {}
        for slot, name in of.items():
            self._inside.setdefault(name, set()).add(slot)

    def rooms(self, due: dict[int, float]) -> list[tuple[float, set[int]]]:
        """For each domain how many more slots of the table it can take, and its members."""
        return [
            (PARTITIONS * self.limit - sum(due[slot] for slot in inside), inside) for inside in self._inside.values()
        ]


def _least_limit(sizes: Counter[str], width: int) -> int:
    """The smallest limit per domain that still lets a row of ``width`` slots be filled.

    ``sizes`` says how many slots of a row each domain can take at most.
    """
    limit = 1
    while sum(min(limit, size) for size in sizes.values()) < width:
        limit += 1
    return limit


class _Assignment:
    """One layout being made from the one before."""

    def __init__(self, before: Layout, members: list[Member]) -> None:
        self._width = before.width
        self._members = {member.slot: member for member in members}
        self._domains = _domains(members, before.width)
        self._quota = self._quotas()
        self._load: Counter[int] = Counter()
        self._old_rows = before.rows
        self._old_members = before.by_slot
        self._rows = [[slot if slot in self._members else -1 for slot in row] for row in before.rows]
        self._scores = [
            {member.slot: _score(partition, member) for member in members} for partition in range(PARTITIONS)
        ]

    def rows(self) -> list[tuple[int, ...]]:
        """The finished table."""
        for row in self._rows:
            self._vacate_crowded(row)
        self._load.update(slot for row in self._rows for slot in row if slot >= 0)
        for partition, row in enumerate(self._rows):
            self._fill(partition, row)
        self._level()
        for row, old in zip(self._rows, self._old_rows, strict=True):
            _put_back(row, old)
        return [tuple(row) for row in self._rows]

    def _quotas(self) -> dict[int, float]:
        """Slots due to each member: in proportion to capacity, no domain more than fits into its rows.

        Progressive filling: all grow at the rate of their capacity until a domain is full, then the rest.
        """
        due = dict.fromkeys(self._members, 0.0)
        growing = set(due)
        rest = float(PARTITIONS * self._width)
        while rest > _ROUNDING and growing:
            step = rest / sum(self._members[slot].capacity for slot in growing)
            rooms = [room for domain in self._domains for room in domain.rooms(due)]
            for room, inside in rooms:
                rate = sum(self._members[slot].capacity for slot in inside & growing)
                if rate:
                    step = min(step, room / rate)
            for slot in growing:
                due[slot] += step * self._members[slot].capacity
            rest = PARTITIONS * self._width - sum(due.values())
            for room, inside in [room for domain in self._domains for room in domain.rooms(due)]:
                if room < _ROUNDING:
                    growing -= inside
        return due

    def _vacate_crowded(self, row: list[int]) -> None:
        """Take the last slots from domains that hold more of a row than they may."""
        for domain in self._domains:
            counts: Counter[str] = Counter()
            for index, slot in enumerate(row):
                if slot >= 0:
                    counts[domain.of[slot]] += 1
                    if counts[domain.of[slot]] > domain.limit:
                        row[index] = -1

    def _allowed(self, row: list[int], candidate: int, leaving: int = -1) -> bool:
        """Whether a member may take a place in a row (instead of ``leaving``)."""
        for domain in self._domains:
            name = domain.of[candidate]
            held = sum(domain.of[slot] == name for slot in row if slot >= 0)
            if leaving >= 0 and domain.of[leaving] == name:
                held -= 1
            if held >= domain.limit:
                return False
        return True

    def _fill(self, partition: int, row: list[int]) -> None:
        for index, slot in enumerate(row):
            if slot < 0:
                row[index] = self._pick(partition, row)
                self._load[row[index]] += 1

    def _pick(self, partition: int, row: list[int]) -> int:
        """The best-ranked member with quota left; the one least over it if there is none."""
        scores = self._scores[partition]
        allowed = [slot for slot in self._members if self._allowed(row, slot)]
        with_quota = [slot for slot in allowed if self._load[slot] + 1 <= self._quota[slot] + 0.5]
        if with_quota:
            return max(with_quota, key=scores.__getitem__)
        return min(allowed, key=lambda slot: (self._load[slot] / self._quota[slot], -scores[slot]))

    def _level(self) -> None:
        """Give members short of their quota slots of members over it, as far as the domains let them.

        First slots that move anyway, then others of members over their quota: who gives without being over
        takes from yet another, and that moves twice.
        """
        for moving, over in ((True, 0.5), (True, -math.inf), (False, 0.5), (False, -math.inf)):
            for short in sorted(self._members, key=self._surplus):
                if self._wanting(short) > 0:
                    self._give(short, over, moving=moving)
        for crowded in sorted(self._members, key=self._surplus, reverse=True):
            if self._surplus(crowded) >= _SURPLUS_MAX:
                self._relieve(crowded)

    def _surplus(self, slot: int) -> float:
        return self._load[slot] - self._quota[slot]

    def _relieve(self, crowded: int) -> None:
        """Hand places of a member far over its quota to others that want none, but are nearer to theirs.

        Members that are short may be missing only from rows that ``crowded`` is not in.
        """
        ranked = sorted(range(PARTITIONS), key=lambda partition: self._scores[partition][crowded])
        for partition in ranked:
            if self._surplus(crowded) < _SURPLUS_MAX:
                return
            if crowded in self._rows[partition]:
                self._give_away(partition, crowded)

    def _give_away(self, partition: int, crowded: int) -> None:
        """Let the member least over its quota have the place of ``crowded``, if it may and that is a gain."""
        row, scores = self._rows[partition], self._scores[partition]
        index = row.index(crowded)
        gain_min = 1 if row[index] != self._old_rows[partition][index] else 2
        gaining = [slot for slot in self._members if self._surplus(crowded) - self._surplus(slot) > gain_min]
        for taker in sorted(gaining, key=lambda slot: (self._surplus(slot), -scores[slot])):
            if self._allowed(row, taker, leaving=crowded):
                self._hand_over(row, index, taker)
                return

    def _hand_over(self, row: list[int], index: int, taker: int) -> None:
        self._load[row[index]] -= 1
        self._load[taker] += 1
        row[index] = taker

    def _wanting(self, slot: int) -> int:
        return math.floor(self._quota[slot] - self._load[slot] + 0.5)

    def _give(self, short: int, over: float, *, moving: bool) -> None:
        """Go through the rows, those that ``short`` ranks highest in first, again while it gets some."""
        ranked = sorted(range(PARTITIONS), key=lambda partition: self._scores[partition][short], reverse=True)
        before = -1
        while before < self._load[short]:
            before = self._load[short]
            for partition in ranked:
                if self._wanting(short) <= 0:
                    return
                self._take_over(partition, short, over, moving=moving)

    def _take_over(self, partition: int, short: int, over: float, *, moving: bool) -> None:
        """Let ``short`` have the place of the member most over its quota, if by ``over`` at least and it may leave."""
        # By less they would only change places, or, where nothing moves anyway, move for the rounding.
        gain_min = 1 if moving or short not in self._old_members else 2
        row, old = self._rows[partition], self._old_rows[partition]
        places = {slot: index for index, slot in enumerate(row) if not moving or slot != old[index]}
        surplus = {slot: self._surplus(slot) for slot in places}
        for slot in sorted(surplus, key=surplus.__getitem__, reverse=True):
            if surplus[slot] < over or surplus[slot] - self._surplus(short) <= gain_min:
                return
            if self._allowed(row, short, leaving=slot):
                self._hand_over(row, places[slot], short)
                return


def _put_back(row: list[int], old: tuple[int, ...]) -> None:
    """Let members that lost one place of a row and got another have the one they had."""
    for index, slot in enumerate(old):
        if row[index] != slot and slot in row:
            for other, taken in enumerate(row):
                if taken == slot and old[other] != slot:
                    row[index], row[other] = slot, row[index]
                    break


def _domains(members: list[Member], width: int) -> list[_Domain]:
    """Volumes, workers, zones and owners, each with its limit per row.

    What a domain can take at most follows from the limits of those inside it, so that all limits can be
    kept at once: volumes are inside of workers, workers inside of zones, zones inside of owners.
    """
    names: list[Callable[[Member], str]] = [lambda member: str(member.slot), by_worker, by_zone, by_owner]
    inner = Counter({str(member.slot): width for member in members})
    name_inside = names[0]
    domains = []
    for name in names:
        sizes: Counter[str] = Counter()
        for inside, outside in {name_inside(member): name(member) for member in members}.items():
            sizes[outside] += inner[inside]
        domain = _Domain({member.slot: name(member) for member in members}, sizes, width)
        domains.append(domain)
        inner, name_inside = Counter({each: min(domain.limit, size) for each, size in sizes.items()}), name
    return domains
