"""Reading stripes from stores that may be slow, with the k fastest shards.

The k likeliest shards are requested at the same time. If one has not arrived in the time within which 95 % of recent
calls of similar size have ended, another shard is requested as well (Dean and Barroso, "The Tail at Scale", 2013). The
slow store is then asked last for a while, and at least until it has answered. Payloads arrive in their places in the
target; what is still under way once enough have arrived is cancelled.

If this machine or its link is busy, all stores seem to be late, and further requests would make it worse. So a store is
only late in comparison with others: no further shards of a stripe are requested before so many have arrived that these
could take the place of all that are missing, nor before a call takes twice as long as the slowest one of the same read
that has ended.

Over links where even the fastest call takes long, decoding costs little beside waiting for the slowest store. There,
each store is asked for as much as it sends in the same time as others, be it data or parity. If only one of them has
not answered, further shards are requested as soon as its call takes twice as long as those of the others: their links
are idle, and its own may take seconds to recover from a loss.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from storage.erasure import code_for_key
from storage.keys import BYTE, ShardKey, StripeKey, data_shards, shard_count
from storage.limits import MIB
from storage.runtime import Mailbox, Runtime
from storage.stripes.patience import Asked, Owed, Patience, RelativeTimes, Slowness

_TIMES_OTHERS = 2.0
_CALL_BYTES = 4 * MIB
_CALL_SHARDS_MAX = 1024

Wanted = tuple[ShardKey, int]
"""A shard to fetch: its key, and the length of its payload in bytes."""

Outcome = Sequence[bool] | Callable[[], None]
"""Which payloads are in their places; or, if nothing is known of any, a function that reports why."""

Begin = Callable[[int, Sequence[Wanted], Sequence[memoryview], Callable[[Outcome], None]], Callable[[], None]]
"""(store, wanted, into, done) → a function to cancel; begins to fetch payloads from the store in a slot.

See :meth:`storage.shards.port.ShardStore.begin_fetch`; raises nothing.
"""


class StripeRead(NamedTuple):
    """A stripe to read.

    Attributes:
        stripe: stripe key of the object.
        holders: slot of the store that has each shard; None if no store has it.
        target: memory for the object, with exactly its length.
    """

    stripe: StripeKey
    holders: tuple[int | None, ...]
    target: memoryview


@dataclass(slots=True, eq=False)
class _Reading:
    """One stripe being read."""

    read: StripeRead
    k: int
    length: int
    spare: deque[int]
    asked: set[int] = field(default_factory=set)
    places: dict[int, memoryview] = field(default_factory=dict)
    payloads: dict[int, memoryview] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    replaced: set[int] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether enough shards have arrived."""
        return len(self.payloads) >= self.k

    @property
    def quiet(self) -> bool:
        """Whether no shards are under way, so that nothing will be written to the target."""
        return len(self.asked) == len(self.payloads) + len(self.failed)

    def can_replace(self, slot: int) -> bool:
        """Whether another shard may be requested in place of one.

        Those that may be requested, or were in addition, must be enough for all that are missing. If not, some of those
        that are missing have to arrive before that is of use.
        """
        missing = self.k - len(self.payloads)
        in_addition = len(self.asked) - len(self.payloads) - len(self.failed) - missing
        enough = missing <= len(self.spare) + in_addition
        return bool(self.spare) and enough and not self.complete and slot not in self.replaced

    def replacement(self, slot: int) -> int:
        """Choose the shard to request in place of one that may still arrive; return its slot."""
        self.replaced.add(slot)
        return self.spare.popleft()

    def place(self, slot: int) -> memoryview:
        """Return the memory for a shard: where it belongs in the target, if it is data and lies within."""
        place = self.places.get(slot)
        if place is None:
            inside = slot < self.k and (slot + 1) * self.length <= len(self.read.target)
            place = (
                self.read.target[slot * self.length : (slot + 1) * self.length]
                if inside
                else memoryview(bytearray(self.length))
            )
            self.places[slot] = place
        return place

    def wanted(self, slot: int) -> Wanted:
        """Return the shard in a stripe slot, as needed for a call."""
        return ShardKey(self.read.stripe + BYTE[slot]), self.length


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class _Call:
    """Shards requested from one store in one call."""

    owed: Owed
    shards: list[tuple[_Reading, int]]
    asked_s: float
    is_first: bool
    cancel: Callable[[], None] = _nothing

    @property
    def size(self) -> int:
        """Number of requested bytes."""
        return sum(reading.length for reading, _ in self.shards)

    @property
    def replaceable(self) -> bool:
        """Whether other shards may be requested in place of some of these."""
        return any(reading.can_replace(slot) for reading, slot in self.shards)


@dataclass(slots=True, eq=False)
class _UnderWay:
    """The calls of one read that have not ended.

    Attributes:
        calls: these calls.
        are_far: whether stores are behind distant links.
        slowest_s: how long the slowest of the calls took that have ended.
        asked: what each store was asked for at first.
    """

    calls: list[_Call]
    are_far: bool
    slowest_s: float = 0.0
    asked: dict[int, Asked] = field(default_factory=dict)

    @property
    def is_one_left(self) -> bool:
        """Whether all stores but one have answered."""
        return self.slowest_s > 0 and len({call.owed.store for call in self.calls}) == 1

    def note(self, call: _Call, taken_s: float) -> None:
        """Note how long a call took, or has taken so far."""
        if call.is_first:
            size, slowest_s = self.asked.get(call.owed.store, Asked(0, 0.0))
            self.asked[call.owed.store] = Asked(size + call.size, max(slowest_s, taken_s))


_Arrivals = Mailbox[tuple[_Call, Outcome]]


class HedgedReader:
    """Reads stripes with hedged requests. Thread-safe.

    Args:
        begin: fetches shards from the stores.
        runtime: provides the clock, and what to wait with.
    """

    def __init__(self, begin: Begin, runtime: Runtime) -> None:
        self._begin_fetch = begin
        self._runtime = runtime
        self._clock_s = runtime.monotonic_s
        self._patience = Patience()
        self._slowness = Slowness(runtime.monotonic_s)
        self._times = RelativeTimes()

    def read_into(self, stripe: StripeKey, holders: tuple[int | None, ...], target: memoryview) -> list[int] | None:
        """Like :meth:`read_all`, for one stripe."""
        return self.read_all([StripeRead(stripe, holders, target)])[0]

    def read_all(self, reads: Sequence[StripeRead]) -> list[list[int] | None]:
        """Fill the targets with their objects, unverified.

        Returns:
            For each stripe, the slots that could not be read and were not needed; None if fewer than k shards could be
            read.
        """
        outcomes: list[list[int] | None] = [None] * len(reads)
        for at, missing in self.read_each(reads):
            outcomes[at] = missing
        return outcomes

    def read_each(self, reads: Sequence[StripeRead]) -> Iterator[tuple[int, list[int] | None]]:
        """Like :meth:`read_all`, but yield the position and outcome of each stripe as soon as it is there.

        The others go on arriving meanwhile. Nothing is written any more to the target of a stripe that was yielded: one
        that has shards under way which are not needed is yielded at the end, when they have been cancelled.
        """
        ranks, are_far = self._slowness.ranks(), self._patience.are_far
        loads = _Loads(self._times.of) if are_far else None
        readings = [_begun(read, ranks, loads) for read in reads]
        positions = {id(reading): at for at, reading in enumerate(readings)}
        arrivals: _Arrivals = self._runtime.mailbox()
        first = [(reading, slot) for reading in readings for slot in _first(reading)]
        under_way = _UnderWay(self._ask(first, arrivals, is_first=True), are_far)
        try:
            yield from self._ended(readings, positions)
            while under_way.calls and not all(reading.complete for reading in readings):
                ready = self._await_one(under_way, arrivals)
                yield from self._ended(ready, positions)
        finally:
            self._give_up(under_way)
        for reading in readings:
            at = positions.pop(id(reading), None)
            if at is not None:
                yield at, _outcome(reading)

    def _ended(self, readings: Iterable[_Reading], positions: dict[int, int]) -> Iterator[tuple[int, list[int] | None]]:
        """Assemble the objects of which enough has arrived and nothing is under way; take their positions out."""
        for reading in readings:
            if reading.complete and reading.quiet and (at := positions.pop(id(reading), None)) is not None:
                yield at, _outcome(reading)

    def _give_up(self, under_way: _UnderWay) -> None:
        """Cancel what is still under way: the targets belong to the caller again, and are decoded into."""
        for call in under_way.calls:
            call.cancel()
            under_way.note(call, self._clock_s() - call.asked_s)
        if under_way.are_far:
            self._times.note(under_way.asked)

    def _ask(self, shards: list[tuple[_Reading, int]], arrivals: _Arrivals, *, is_first: bool = False) -> list[_Call]:
        """Request shards. Calls are small enough for stripes to be complete one after another."""
        by_store: dict[int, list[tuple[_Reading, int]]] = {}
        for reading, slot in shards:
            reading.asked.add(slot)
            store = reading.read.holders[slot]
            assert store is not None, "slots without a store are not among the spare ones"
            by_store.setdefault(store, []).append((reading, slot))
        calls = [
            _Call(Owed(store), shards, self._clock_s(), is_first)
            for store, all_of in by_store.items()
            for shards in _calls_of(all_of)
        ]
        for call in calls:
            wanted = [reading.wanted(slot) for reading, slot in call.shards]
            into = [reading.place(slot) for reading, slot in call.shards]
            call.cancel = self._begin_fetch(call.owed.store, wanted, into, partial(self._end, call, arrivals))
        return calls

    def _end(self, call: _Call, arrivals: _Arrivals, outcome: Outcome) -> None:
        """Pass an outcome on to the reader. May be called by any thread."""
        self._slowness.note_ended(call.owed)
        arrivals.put((call, outcome))

    def _await_one(self, under_way: _UnderWay, arrivals: _Arrivals) -> list[_Reading]:
        """Handle the next answer; request other shards in place of those that failed or take too long.

        Returns:
            The stripes that the answer has shards of.
        """
        try:
            call, outcome = arrivals.get(timeout=self._patience_s(under_way))
        except queue.Empty:
            under_way.calls += self._ask(self._instead_of_overdue(under_way), arrivals)
            return []
        under_way.calls.remove(call)
        if callable(outcome):
            outcome()
            outcome = [False] * len(call.shards)
        again: list[tuple[_Reading, int]] = []
        for (reading, slot), present in zip(call.shards, outcome, strict=True):
            if present:
                reading.payloads[slot] = reading.place(slot)
                continue
            reading.failed.append(slot)
            if not reading.complete and reading.spare:
                again.append((reading, reading.spare.popleft()))
        if any(outcome):
            taken_s = self._clock_s() - call.asked_s
            self._patience.note(call.size, taken_s)
            under_way.note(call, taken_s)
            under_way.slowest_s = max(under_way.slowest_s, taken_s)
        under_way.calls += self._ask(again, arrivals)
        return [reading for reading, _ in call.shards]

    def _overdue_s(self, call: _Call, under_way: _UnderWay) -> float:
        """Return when a call is overdue."""
        patience_s = 0.0 if under_way.are_far and under_way.is_one_left else self._patience.of(call.size)
        return call.asked_s + max(patience_s, _TIMES_OTHERS * under_way.slowest_s)

    def _patience_s(self, under_way: _UnderWay) -> float | None:
        """Return how long to wait before requesting other shards; None if that would be of no use."""
        waiting = [self._overdue_s(call, under_way) for call in under_way.calls if call.replaceable]
        return max(0.0, min(waiting) - self._clock_s()) if waiting else None

    def _instead_of_overdue(self, under_way: _UnderWay) -> list[tuple[_Reading, int]]:
        """Return the shards to request in place of overdue ones."""
        now_s = self._clock_s()
        instead: list[tuple[_Reading, int]] = []
        for call in under_way.calls:
            if now_s < self._overdue_s(call, under_way):
                continue
            for reading, slot in call.shards:
                if reading.can_replace(slot):
                    instead.append((reading, reading.replacement(slot)))
                    self._slowness.note_overdue(call.owed)
        return instead


class _Loads:
    """What distant stores are asked for in one read, as the time that it takes them.

    Args:
        times_of: how many times as long as others a store takes.
    """

    def __init__(self, times_of: Callable[[int], float]) -> None:
        self._times_of = times_of
        self._loads: dict[int, float] = {}

    def with_another(self, store: int, length: int) -> float:
        """The load of a store with another shard of so many bytes."""
        return self._loads.get(store, 0.0) + length * self._times_of(store)

    def add(self, store: int, length: int) -> None:
        """Note that a store is asked for a shard of so many bytes."""
        self._loads[store] = self.with_another(store, length)


def _begun(read: StripeRead, ranks: Mapping[int, int], loads: _Loads | None) -> _Reading:
    """Begin to read a stripe; ask last for what stores with ranks have.

    Of the others, ask for data before parity; or, with ``loads``, those first that have sent all soonest.

    Args:
        read: the stripe.
        ranks: of stores.
        loads: of stores, which are counted on; None: they do not matter.
    """
    k = data_shards(read.stripe)
    length = -(-len(read.target) // k)
    there = sorted(
        (ranks.get(store, 0), 0.0 if loads is None else loads.with_another(store, length), slot, store)
        for slot, store in enumerate(read.holders)
        if store is not None
    )
    if loads is not None:
        for *_, store in there[:k]:  # it may have several
            loads.add(store, length)
    return _Reading(read, k, length, deque(slot for _, _, slot, _ in there))


def _calls_of(shards: list[tuple[_Reading, int]]) -> Iterator[list[tuple[_Reading, int]]]:
    """The shards to fetch from one store, by call."""
    call: list[tuple[_Reading, int]] = []
    size = 0
    for reading, slot in shards:
        if call and (size + reading.length > _CALL_BYTES or len(call) == _CALL_SHARDS_MAX):
            yield call
            call, size = [], 0
        call.append((reading, slot))
        size += reading.length
    if call:
        yield call


def _first(reading: _Reading) -> list[int]:
    """Remove and return the k likeliest stripe slots."""
    return [reading.spare.popleft() for _ in range(min(reading.k, len(reading.spare)))]


def _outcome(reading: _Reading) -> list[int] | None:
    """Assemble the object if enough has arrived; return the slots that could not be read, or None."""
    if not reading.complete:
        return None
    _assemble(reading)
    return sorted(reading.failed)


def _assemble(reading: _Reading) -> None:
    """Assemble the object from k shards. Those that lie in the target are in their places."""
    k, length, target = reading.k, reading.length, reading.read.target
    slots = sorted(reading.payloads)[:k]
    missing = [slot for slot in range(k) if slot not in slots]
    if missing:
        code = code_for_key(k, shard_count(reading.read.stripe))
        made = [reading.place(slot) for slot in missing]
        code.decode_into([reading.payloads[slot] for slot in slots], slots, missing, made)
    for slot in range(k):
        part = target[slot * length : (slot + 1) * length]
        if len(part) < length and part:  # the end of the object, without padding
            part[:] = reading.place(slot)[: len(part)]
