"""Targets: where shards are written, given the layout and the states of the members."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from operator import add

from storage.fleet.layout import Layout

_Row = tuple[int, ...]


class Targets:
    """Where shards are written while no member changes its state.

    Immutable. Rows are made on demand, since members change more often than all rows are used.

    Stand-ins replace members that are away or full. Where enough other members are present, they also replace members
    to be avoided, and all but n - k of those on trial. No member, owner or zone gets more than n - k shards of a stripe
    through stand-ins, so that the loss of one cannot make a stripe unreadable. Among the members that this limit
    allows, the stand-in is the one with the fewest shards, in the partition's order. If there are too few owners for
    the limit, it is a member of the owner with the fewest shards.

    Full members keep what they held before. So stand-ins for all other members are chosen first, as if the full ones
    had their shards, and stand-ins for the full ones last. Where possible, the limit then also holds for a member's new
    shards together with those that full members keep.

    Args:
        layout: where shards belong.
        there: slots of the members that are online.
        full: slots of the members that have no space.
        keeping: those of the full members that are trusted to keep what they held.
        avoided: slots of the members that are distrusted or slow.
        unproved: slots of the members on trial.

    Attributes:
        avoided: the avoided members that are online and have space.
    """

    def __init__(
        self,
        layout: Layout,
        there: frozenset[int],
        full: frozenset[int] = frozenset(),
        keeping: frozenset[int] = frozenset(),
        avoided: frozenset[int] = frozenset(),
        unproved: frozenset[int] = frozenset(),
    ) -> None:
        self.layout = layout
        self.there = there & layout.by_slot.keys()
        self._online = (self.there - full) or self.there
        self.keeping = (keeping & self.there) - self._online
        self.avoided = avoided & self._online
        self._unproved = unproved & self._online
        owners = _domains(layout, 1)
        zones = _domains(layout, 2)
        self._levels = [level for level in (owners, zones) if len({*level.values()}) > 1]
        self._counted_on: dict[tuple[int, int], tuple[frozenset[int], frozenset[int]]] = {}
        self._rows: dict[tuple[int, int, int], _Row] = {}
        self._all: dict[tuple[int, int], frozenset[_Row]] = {}

    def is_like(self, other: Targets | None) -> bool:
        """Whether both write shards to the same places."""
        return other is not None and (self.layout, self._online, self.keeping, self.avoided, self._unproved) == (
            other.layout,
            other._online,
            other.keeping,
            other.avoided,
            other._unproved,
        )

    def can_spare(self, slots: Collection[int], profiles: Collection[tuple[int, int]]) -> bool:
        """Whether these members, too, can be avoided for all stripes with these k and n.

        No more than n - k members are avoided for the sake of those that wait, so that the others have enough to do.
        """
        if not self._online.issuperset(slots):
            return False  # full ones keep what they hold
        avoided = self.avoided.union(slots)
        others = self._online - avoided
        return all(len(avoided) <= n - k and _enough(others, k, n) for k, n in profiles)

    def row(self, partition: int, k: int, n: int) -> _Row:
        """The slot that each shard of a partition's k-of-n stripes is written to."""
        found = self._rows.get((partition, k, n))
        if found is None:
            found = self._rows[partition, k, n] = self._make(partition, k, n)
        return found

    def rows(self, k: int, n: int) -> frozenset[_Row]:
        """All different rows of k-of-n stripes."""
        found = self._all.get((k, n))
        if found is None:
            found = self._all[k, n] = frozenset(self.row(partition, k, n) for partition in range(len(self.layout.rows)))
        return found

    def _make(self, partition: int, k: int, n: int) -> _Row:
        holders = self.layout.row(partition, n)
        usable, proved = self._who_counts(k, n)
        if not usable or (usable.issuperset(holders) and (not self._unproved or proved.issuperset(holders))):
            return holders
        room = n - k if proved else n
        targets: list[int] = []
        for holder in holders:
            unproved = holder in self._unproved
            kept = holder in usable and (not unproved or room > 0)
            room -= kept and unproved
            targets.append(holder if kept else -1)
        if -1 in targets:
            candidates = [slot for slot in self.layout.order(partition) if slot in (proved or usable)]
            places = [
                holder if holder in self.keeping else target for holder, target in zip(holders, targets, strict=True)
            ]
            self._fill(places, candidates, n - k)
            targets = [-1 if place in self.keeping else place for place in places]
            self._fill(targets, candidates, n - k, [place for place in places if place in self.keeping])
        return tuple(targets)

    def _who_counts(self, k: int, n: int) -> tuple[frozenset[int], frozenset[int]]:
        """Members that may get shards of k-of-n stripes, and those of them that may get any number.

        An empty set means no restriction.
        """
        found = self._counted_on.get((k, n))
        if found is None:
            usable = _enough(self._online - self.avoided, k, n) or self._online
            found = self._counted_on[k, n] = usable, _enough(usable - self._unproved, k, n)
        return found

    def _fill(self, targets: list[int], candidates: Sequence[int], limit: int, keeping: Sequence[int] = ()) -> None:
        """Put the fittest candidate in each free place; if several are equal, the first one."""
        held = [slot for slot in targets if slot >= 0]
        for index, target in enumerate(targets):
            if target < 0:
                targets[index] = self._fittest(held, candidates, limit, keeping)
                held.append(targets[index])

    def _fittest(self, held: list[int], candidates: Sequence[int], limit: int, keeping: Sequence[int]) -> int:
        """The candidate that exceeds ``limit`` for no member, owner or zone, and has the fewest shards so far.

        Members are within zones, and zones within owners, so choosing one at a time satisfies all limits if that is
        possible. If not, the limit for a single member is kept before the others, because pushes promise to survive its
        loss. The shards that members in ``keeping`` have in addition count last.
        """
        by_level = [(level, [level[slot] for slot in held]) for level in self._levels]
        beside = [[level[slot] for slot in keeping] for level in self._levels] if keeping else []
        within = [(False, 0)] * len(by_level), [False] * len(by_level)
        best = -1
        least: tuple[bool, list[tuple[bool, int]], list[bool], int, list[int]] = (True, [], [], 0, [])
        for slot in candidates:
            own = held.count(slot)
            inside = [domains.count(level[slot]) for level, domains in by_level]
            if not (keeping or own or any(inside)):
                return slot  # none is fitter, and each one before was less fit
            exceeding, crowded = within
            if inside and max(inside) >= limit:
                exceeding = [(count >= limit, count if count >= limit else 0) for count in inside]
                crowded = [count >= limit for count in inside]
            all_inside = inside
            if keeping:
                beside_it = [kept.count(level[slot]) for kept, level in zip(beside, self._levels, strict=True)]
                all_inside = list(map(add, inside, beside_it))
                crowded = [count >= limit for count in all_inside]
            unfitness = (own >= limit, exceeding, crowded, own, inside)
            if best < 0 or unfitness < least:
                best, least = slot, unfitness
                if not own and not any(all_inside):
                    break
        return best


def _domains(layout: Layout, level: int) -> dict[int, int | str]:
    return {slot: domains[level] for slot, domains in layout.domains.items()}


def _enough(slots: frozenset[int], k: int, n: int) -> frozenset[int]:
    """These slots, if a stripe over them survives the loss of any one, or each shard gets its own; otherwise none."""
    count = len(slots)
    return slots if count and (count >= n or n - -(-n // count) >= k) else frozenset()
