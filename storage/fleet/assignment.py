"""Assigns slots of partitions to members, with the fewest moves."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from blake3 import blake3

from storage.fleet.members import Member, by_owner, by_worker, by_zone
from storage.fleet.placement import PARTITIONS

_SLOTS_KEPT = 1024  # of as many members as a pool may have, 8 KiB each

_ROUNDING = 1e-6

_SURPLUS_MAX = 1.5  # slots that a member may get beyond its quota, not counting those that no other may take


def _score(partition: int, member: Member) -> float:
    """Weighted rendezvous score: a member's probability of having the highest is proportional to its capacity."""
    return -member.capacity / _log_uniforms(member.slot, PARTITIONS)[partition]


@lru_cache(maxsize=_SLOTS_KEPT)
def _log_uniforms(slot: int, partitions: int) -> array[float]:
    """For each partition, the logarithm of a pseudorandom number in 0…1 that depends only on it and the slot."""
    return array("d", (_log_uniform(partition, slot) for partition in range(partitions)))


def _log_uniform(partition: int, slot: int) -> float:
    digest = blake3(partition.to_bytes(2, "big") + slot.to_bytes(4, "big")).digest(8)
    return math.log((int.from_bytes(digest, "big") + 0.5) / 2.0**64)


class _Domain:
    """The domains of one level (volumes, workers, zones, owners), each with at most ``limit`` slots of a row."""

    def __init__(self, of: dict[int, str], sizes: Counter[str], width: int) -> None:
        self.of = of
        self.limit = _least_limit(sizes, width)
        self._inside: dict[str, set[int]] = {}
        for slot, name in of.items():
            self._inside.setdefault(name, set()).add(slot)

    def rooms(self, due: dict[int, float]) -> list[tuple[float, set[int]]]:
        """For each domain, its members and how many more slots of the table it can take."""
        return [
            (PARTITIONS * self.limit - sum(due[slot] for slot in inside), inside) for inside in self._inside.values()
        ]


def _least_limit(sizes: Counter[str], width: int) -> int:
    """The smallest limit per domain that still lets a row of ``width`` slots be filled.

    ``sizes`` has the most slots of a row that each domain can take.
    """
    limit = 1
    while sum(min(limit, size) for size in sizes.values()) < width:
        limit += 1
    return limit


class Assignment:
    """A new layout in the making, from the previous one.

    Args:
        width: slots of a row.
        rows: rows of the previous layout, one for each partition.
        by_slot: members of the previous layout.
        members: members of the new layout.
    """

    def __init__(
        self, width: int, rows: Sequence[tuple[int, ...]], by_slot: Mapping[int, Member], members: list[Member]
    ) -> None:
        self._width = width
        self._members = {member.slot: member for member in members}
        self._domains = _domains(members, width)
        self._quota = self._quotas()
        # A limit of the whole row is none: whoever takes a place finds at least this one not taken.
        self._limits = [(domain.of, domain.limit) for domain in self._domains if domain.limit < width]
        self._load: Counter[int] = Counter(dict.fromkeys(self._members, 0))
        self._old_rows = rows
        self._old_members = by_slot
        self._rows = [[slot if slot in self._members else -1 for slot in row] for row in rows]
        self._scores = {
            member.slot: [-member.capacity / value for value in _log_uniforms(member.slot, PARTITIONS)]
            for member in members
        }  # for each member, by partition; see `_score`

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
        """The quota of each member: proportional to its capacity, but no domain gets more than fits into its rows.

        Progressive filling: all quotas grow at rates proportional to capacity; when a domain is full, the others go on.
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
        """Vacate the last slots of domains that hold too many slots of a row."""
        for domain in self._domains:
            counts: Counter[str] = Counter()
            for index, slot in enumerate(row):
                if slot >= 0:
                    counts[domain.of[slot]] += 1
                    if counts[domain.of[slot]] > domain.limit:
                        row[index] = -1

    def _allowed(self, row: list[int], candidate: int, leaving: int = -1) -> bool:
        """Whether a member may take a place in a row (in place of ``leaving``)."""
        for of, limit in self._limits:
            name = of[candidate]
            held = [of[slot] for slot in row if slot >= 0].count(name)
            if leaving >= 0 and of[leaving] == name:
                held -= 1
            if held >= limit:
                return False
        return True

    def _fill(self, partition: int, row: list[int]) -> None:
        if -1 not in row:
            return
        ranked = sorted(self._members, key=lambda slot: self._scores[slot][partition], reverse=True)
        held = [(of, limit, Counter(of[slot] for slot in row if slot >= 0)) for of, limit in self._limits]
        for index, slot in enumerate(row):
            if slot < 0:
                taker = row[index] = self._pick(partition, ranked, held)
                self._load[taker] += 1
                for of, _, counts in held:
                    counts[of[taker]] += 1

    def _pick(self, partition: int, ranked: list[int], held: list[tuple[dict[int, str], int, Counter[str]]]) -> int:
        """The best-ranked member below its quota; if there is none, the one that exceeds its quota least.

        Args:
            partition: the row.
            ranked: all members, the best one for this row first.
            held: for each level of domains, the domain of each member, the limit, and how much of the row each has.
        """
        load, quota = self._load, self._quota

        def is_allowed(slot: int) -> bool:
            for of, limit, counts in held:  # noqa: SIM110 (a generator would take twice as long)
                if counts.get(of[slot], 0) >= limit:
                    return False
            return True

        for slot in ranked:
            if load[slot] + 1 <= quota[slot] + 0.5 and is_allowed(slot):
                return slot
        allowed = filter(is_allowed, self._members)
        return min(allowed, key=lambda slot: (load[slot] / quota[slot], -self._scores[slot][partition]))

    def _level(self) -> None:
        """Move slots from members above their quota to members below it, as far as the domains allow.

        First slots that move anyway, then other slots of members above their quota. A member within its quota would
        have to replace the slots that it gives away, which moves data twice.
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
        """Move places of a member far above its quota to others that are not below theirs, but closer to it.

        Members below their quota may be absent only from rows that ``crowded`` is not in.
        """
        ranked = sorted(range(PARTITIONS), key=self._scores[crowded].__getitem__)
        for partition in ranked:
            if self._surplus(crowded) < _SURPLUS_MAX:
                return
            if crowded in self._rows[partition]:
                self._give_away(partition, crowded)

    def _give_away(self, partition: int, crowded: int) -> None:
        """Give the place of ``crowded`` to the member that exceeds its quota least, if allowed and an improvement."""
        row = self._rows[partition]
        index = row.index(crowded)
        gain_min = 1 if row[index] != self._old_rows[partition][index] else 2
        gaining = [slot for slot in self._members if self._surplus(crowded) - self._surplus(slot) > gain_min]
        for taker in sorted(gaining, key=lambda slot: (self._surplus(slot), -self._scores[slot][partition])):
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
        """Go through the rows, those where ``short`` ranks highest first, repeatedly while it gets places."""
        ranked = sorted(range(PARTITIONS), key=self._scores[short].__getitem__, reverse=True)
        before = -1
        while before < self._load[short]:
            before = self._load[short]
            for partition in ranked:
                if self._wanting(short) <= 0:
                    return
                self._take_over(partition, short, over, moving=moving)

    def _take_over(self, partition: int, short: int, over: float, *, moving: bool) -> None:
        """Give ``short`` the place of the member that exceeds its quota most, if by at least ``over`` and allowed."""
        # With a smaller difference, they would only swap roles, or move slots because of rounding.
        gain_min = 1 if moving or short not in self._old_members else 2
        row, old, own = self._rows[partition], self._old_rows[partition], self._surplus(short)
        places: dict[int, int] = {}
        surplus: dict[int, float] = {}
        for index, slot in enumerate(row):
            if moving and slot == old[index]:
                continue
            excess = self._load[slot] - self._quota[slot]
            if excess >= over and excess - own > gain_min:
                places[slot], surplus[slot] = index, excess
        for slot in sorted(surplus, key=surplus.__getitem__, reverse=True):
            if self._allowed(row, short, leaving=slot):
                self._hand_over(row, places[slot], short)
                return


def _put_back(row: list[int], old: tuple[int, ...]) -> None:
    """Give members that lost one place of a row and got another their former place back."""
    for index, slot in enumerate(old):
        if row[index] != slot and slot in row:
            for other, taken in enumerate(row):
                if taken == slot and old[other] != slot:
                    row[index], row[other] = slot, row[index]
                    break


def _domains(members: list[Member], width: int) -> list[_Domain]:
    """Volumes, workers, zones and owners, each with its limit per row.

    The most that a domain can take follows from the limits of the domains inside it, so that all limits hold at once:
    volumes are inside workers, workers inside zones, zones inside owners.
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
