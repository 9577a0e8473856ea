"""Reading a stripe from stores that may be slow: the k fastest shards win.

The k likeliest shards are asked for at once. Where one has not come after the time in which 95 % of
recent calls for as much came, a further shard is asked for in its stead (Dean and Barroso, "The Tail at Scale",
2013), and its store is asked last for a while, in any case until it has answered. Each store has threads
of its own, so that one which hangs holds up nobody but itself.
"""

from __future__ import annotations

import bisect
import queue
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.erasure import code_for_key
from storage.keys import BYTE, ShardKey, StripeKey, data_shards, shard_count
from storage.runtime import Runtime

_THREADS_PER_STORE = 8
_SAMPLES = 256
_HEDGE_S_MIN = 0.004  # less would hedge against the scheduler, not against a slow worker
_HEDGE_S_MAX = 1.0
_HEDGE_S_FIRST = 0.05  # until enough reads have been seen
_SHUNNED_S = 2.0

Wanted = tuple[ShardKey, int]
"""A shard to fetch: its key, and how many bytes its payload must have."""

FetchAll = Callable[[int, Sequence[Wanted]], Sequence[memoryview | None]]
"""Gets payloads from one store: (store slot, what is wanted). None for each that cannot be had there."""


class StripeRead(NamedTuple):
    """A stripe to read: its key, the store slot of each of its shards, and exactly as much room as the object.

    A shard that is known to be nowhere has None for its store, and is not asked for.
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
    payloads: dict[int, memoryview] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether enough shards have come."""
        return len(self.payloads) >= self.k

    def wanted(self, slot: int) -> Wanted:
        """The shard in a stripe slot."""
        return ShardKey(self.read.stripe + BYTE[slot]), self.length


@dataclass(slots=True, eq=False)
class _Call:
    """Shards asked of one store in one go."""

    store: int
    shards: list[tuple[_Reading, int]]
    asked_s: float
    hedged: bool = False
    ended: bool = False

    @property
    def size(self) -> int:
        """Bytes asked for."""
        return sum(reading.length for reading, _ in self.shards)


_Arrivals = queue.SimpleQueue[tuple[_Call, Sequence[memoryview | None]]]


class _Slowness:
    """Which stores are better asked last. Thread-safe."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._lately: dict[int, float] = {}  # until when
        self._owing: Counter[int] = Counter()  # calls that are overdue, and go on

    def note_overdue(self, call: _Call) -> None:
        """It takes longer than most."""
        with self._lock:
            call.hedged = True
            self._lately[call.store] = self._clock_s() + _SHUNNED_S
            if not call.ended:
                self._owing[call.store] += 1

    def note_ended(self, call: _Call) -> None:
        """It has come to its end, whatever that was."""
        with self._lock:
            call.ended = True
            if call.hedged:
                self._owing[call.store] -= 1

    def order(self, holders: tuple[int | None, ...]) -> list[int]:
        """Stripe slots in the order to ask: data before parity, but slow stores last, those that owe an answer last."""
        with self._lock:
            if not self._lately and not self._owing:
                return list(range(len(holders)))
            now = self._clock_s()
            self._lately = {store: until for store, until in self._lately.items() if until > now}
            self._owing = +self._owing
            return sorted(range(len(holders)), key=lambda slot: self._rank(holders[slot]))

    def _rank(self, store: int | None) -> int:
        return 2 if store in self._owing else int(store in self._lately)


class _Patience:
    """How long calls usually take, told apart by how much they ask for. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._sorted: defaultdict[int, list[float]] = defaultdict(list)

    def note(self, size: int, taken_s: float) -> None:
        """A call for ``size`` bytes took so long."""
        with self._lock:
            recent, ordered = self._recent[_magnitude(size)], self._sorted[_magnitude(size)]
            if len(recent) == _SAMPLES:
                del ordered[bisect.bisect_left(ordered, recent[0])]
            recent.append(taken_s)
            bisect.insort(ordered, taken_s)

    def of(self, size: int) -> float:
        """Seconds after which a call for ``size`` bytes is overdue."""
        with self._lock:
            ordered = self._sorted[_magnitude(size)]
            if len(ordered) < _SAMPLES // 8:
                return _HEDGE_S_FIRST
            p95 = ordered[len(ordered) * 95 // 100]
        return min(max(1.5 * p95, _HEDGE_S_MIN), _HEDGE_S_MAX)


def _magnitude(size: int) -> int:
    """The same for sizes within a factor of four."""
    return size.bit_length() // 2


class HedgedReader:
    """Reads stripes by way of ``fetch_all``. Thread-safe.

    Args:
        fetch_all: gets shards from one store; called from threads of this object's own.
        runtime: where those and the time come from.
    """

    def __init__(self, fetch_all: FetchAll, runtime: Runtime) -> None:
        self._fetch_all = fetch_all
        self._runtime = runtime
        self._clock_s = runtime.monotonic_s
        self._threads: dict[int, Executor] = {}  # by store
        self._closed = False
        self._lock = threading.Lock()
        self._patience = _Patience()
        self._slowness = _Slowness(runtime.monotonic_s)

    def read_into(self, stripe: StripeKey, holders: tuple[int | None, ...], target: memoryview) -> list[int] | None:
        """:meth:`read_all` of one stripe."""
        return self.read_all([StripeRead(stripe, holders, target)])[0]

    def read_all(self, reads: Sequence[StripeRead]) -> list[list[int] | None]:
        """Fill the targets with their objects, unverified; each store is asked for all its shards at once.

        Returns:
            For each, the stripe slots that could not be had and were done without; None: fewer than k could
            be had.
        """
        readings = [self._begin(read) for read in reads]
        arrivals: _Arrivals = queue.SimpleQueue()
        under_way = self._ask([(reading, slot) for reading in readings for slot in _first(reading)], arrivals)
        while under_way and not all(reading.complete for reading in readings):
            self._await_one(under_way, arrivals)
        for reading in readings:
            if reading.complete:
                _assemble(reading)
        return [sorted(reading.failed) if reading.complete else None for reading in readings]

    def close(self) -> None:
        """End the threads; what is being fetched is waited for, and reads that ask for more get nothing."""
        with self._lock:
            self._closed = True
        for wait in (False, True):  # none takes anything more while another is waited for
            for threads in self._threads.values():
                threads.shutdown(wait)

    def _begin(self, read: StripeRead) -> _Reading:
        k = data_shards(read.stripe)
        spare = deque(slot for slot in self._slowness.order(read.holders) if read.holders[slot] is not None)
        return _Reading(read, k, -(-len(read.target) // k), spare)

    def _ask(self, shards: list[tuple[_Reading, int]], arrivals: _Arrivals) -> list[_Call]:
        """Send for shards, one call to each store."""
        by_store: dict[int, list[tuple[_Reading, int]]] = {}
        for reading, slot in shards:
            reading.asked.add(slot)
            store = reading.read.holders[slot]
            assert store is not None, "those that are nowhere are not among the spare ones"
            by_store.setdefault(store, []).append((reading, slot))
        calls = [_Call(store, wanted, self._clock_s()) for store, wanted in by_store.items()]
        for call in calls:
            try:
                self._threads_for(call.store).submit(self._run, call, arrivals)
            except RuntimeError:  # closed
                arrivals.put((call, [None] * len(call.shards)))
        return calls

    def _threads_for(self, store: int) -> Executor:
        """The threads that ask one store.

        Raises:
            RuntimeError: the reader is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            threads = self._threads.get(store)
            if threads is None:
                threads = self._threads[store] = self._runtime.executor(_THREADS_PER_STORE, f"fetch-from-{store}")
            return threads

    def _run(self, call: _Call, arrivals: _Arrivals) -> None:
        payloads: Sequence[memoryview | None] = [None] * len(call.shards)
        try:
            payloads = self._fetch_all(call.store, [reading.wanted(slot) for reading, slot in call.shards])
        finally:
            self._slowness.note_ended(call)
            arrivals.put((call, payloads))

    def _await_one(self, under_way: list[_Call], arrivals: _Arrivals) -> None:
        """Take in what comes next, sending for others in place of what fails or takes too long."""
        try:
            call, payloads = arrivals.get(timeout=self._patience_s(under_way))
        except queue.Empty:
            under_way += self._ask(self._overdue(under_way), arrivals)
            return
        under_way.remove(call)
        again: list[tuple[_Reading, int]] = []
        for (reading, slot), payload in zip(call.shards, payloads, strict=True):
            if payload is not None:
                reading.payloads[slot] = payload
                continue
            reading.failed.append(slot)
            if not reading.complete and reading.spare:
                again.append((reading, reading.spare.popleft()))
        if len(call.shards) > sum(payload is None for payload in payloads):
            self._patience.note(call.size, self._clock_s() - call.asked_s)
        under_way += self._ask(again, arrivals)

    def _patience_s(self, under_way: list[_Call]) -> float | None:
        """How long to wait before asking others as well; None if there is nobody else to ask."""
        waiting = [
            call.asked_s + self._patience.of(call.size) for call in under_way if not call.hedged and _replaceable(call)
        ]
        return max(0.0, min(waiting) - self._clock_s()) if waiting else None

    def _overdue(self, under_way: list[_Call]) -> list[tuple[_Reading, int]]:
        """What to ask for in place of shards that have not come in time."""
        now = self._clock_s()
        instead: list[tuple[_Reading, int]] = []
        for call in under_way:
            if call.hedged or now - call.asked_s < self._patience.of(call.size):
                continue
            self._slowness.note_overdue(call)
            for reading, _ in call.shards:
                if not reading.complete and reading.spare:
                    instead.append((reading, reading.spare.popleft()))
        return instead


def _first(reading: _Reading) -> list[int]:
    """The k likeliest stripe slots."""
    return [reading.spare.popleft() for _ in range(min(reading.k, len(reading.spare)))]


def _replaceable(call: _Call) -> bool:
    return any(reading.spare and not reading.complete for reading, _ in call.shards)


def _assemble(reading: _Reading) -> None:
    """Put k shards together into the object."""
    k, length, target = reading.k, reading.length, reading.read.target
    slots = sorted(reading.payloads)[:k]
    missing = [slot for slot in range(k) if slot not in slots]
    whole = target if len(target) == k * length else memoryview(bytearray(k * length))
    cut = [whole[slot * length : (slot + 1) * length] for slot in range(k)]
    for slot in slots:
        if slot < k:
            cut[slot][:] = reading.payloads[slot]
    if missing:
        code = code_for_key(k, shard_count(reading.read.stripe))
        code.decode_into([reading.payloads[slot] for slot in slots], slots, missing, [cut[slot] for slot in missing])
    if whole is not target:
        target[:] = whole[: len(target)]
