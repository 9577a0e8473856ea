"""Reading stripes from stores that may be slow, with the k fastest shards.

The k likeliest shards are requested at the same time. If one has not arrived in the time within which 95 % of recent
calls of similar size have ended, another shard is requested as well (Dean and Barroso, "The Tail at Scale", 2013). The
slow store is then asked last for a while, and at least until it has answered. Each store has its own threads, so that a
store which hangs does not delay others.
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
_HEDGE_S_MIN = 0.004  # shorter delays may come from the scheduler, not from a slow worker
_HEDGE_S_MAX = 1.0
_HEDGE_S_FIRST = 0.05  # until there are enough samples
_SHUNNED_S = 2.0

Wanted = tuple[ShardKey, int]
"""A shard to fetch: its key, and the length of its payload in bytes."""

FetchAll = Callable[[int, Sequence[Wanted]], Sequence[memoryview | None]]
"""Fetches payloads from the store in a slot. Returns None for each shard that the store does not give."""


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
    payloads: dict[int, memoryview] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether enough shards have arrived."""
        return len(self.payloads) >= self.k

    def wanted(self, slot: int) -> Wanted:
        """Return the shard in a stripe slot, as needed for a call."""
        return ShardKey(self.read.stripe + BYTE[slot]), self.length


@dataclass(slots=True, eq=False)
class _Call:
    """Shards requested from one store in one call."""

    store: int
    shards: list[tuple[_Reading, int]]
    asked_s: float
    hedged: bool = False
    ended: bool = False

    @property
    def size(self) -> int:
        """Number of requested bytes."""
        return sum(reading.length for reading, _ in self.shards)


_Arrivals = queue.SimpleQueue[tuple[_Call, Sequence[memoryview | None]]]


class _Slowness:
    """Which stores to ask last because they are slow. Thread-safe."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._lately: dict[int, float] = {}  # store → until when it counts as slow
        self._owing: Counter[int] = Counter()  # overdue calls that have not ended, by store

    def note_overdue(self, call: _Call) -> None:
        """Note that a call takes longer than most."""
        with self._lock:
            call.hedged = True
            self._lately[call.store] = self._clock_s() + _SHUNNED_S
            if not call.ended:
                self._owing[call.store] += 1

    def note_ended(self, call: _Call) -> None:
        """Note that a call has ended, successfully or not."""
        with self._lock:
            call.ended = True
            if call.hedged:
                self._owing[call.store] -= 1

    def order(self, holders: tuple[int | None, ...]) -> list[int]:
        """Return stripe slots in the order to ask: data, parity, slow stores, stores with overdue calls."""
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
    """How long calls usually take, by their size. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_SAMPLES))
        self._sorted: defaultdict[int, list[float]] = defaultdict(list)

    def note(self, size: int, taken_s: float) -> None:
        """Note the duration of a call for ``size`` bytes."""
        with self._lock:
            recent, ordered = self._recent[_magnitude(size)], self._sorted[_magnitude(size)]
            if len(recent) == _SAMPLES:
                del ordered[bisect.bisect_left(ordered, recent[0])]
            recent.append(taken_s)
            bisect.insort(ordered, taken_s)

    def of(self, size: int) -> float:
        """Return the seconds after which a call for ``size`` bytes is overdue."""
        with self._lock:
            ordered = self._sorted[_magnitude(size)]
            if len(ordered) < _SAMPLES // 8:
                return _HEDGE_S_FIRST
            p95 = ordered[len(ordered) * 95 // 100]
        return min(max(1.5 * p95, _HEDGE_S_MIN), _HEDGE_S_MAX)


def _magnitude(size: int) -> int:
    """Return a class for sizes, each within a factor of four."""
    return size.bit_length() // 2


class HedgedReader:
    """Reads stripes with hedged requests. Thread-safe.

    Args:
        fetch_all: fetches shards from one store; called from this object's threads.
        runtime: provides threads and the clock.
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
        """Like :meth:`read_all`, for one stripe."""
        return self.read_all([StripeRead(stripe, holders, target)])[0]

    def read_all(self, reads: Sequence[StripeRead]) -> list[list[int] | None]:
        """Fill the targets with their objects, unverified. Each store is asked for all its shards in one call.

        Returns:
            For each stripe, the slots that could not be read and were not needed; None if fewer than k shards could be
            read.
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
        """End the threads after their current calls. Reads that need further calls fail."""
        with self._lock:
            self._closed = True
        for wait in (False, True):  # first stop all from taking new calls, then wait
            for threads in self._threads.values():
                threads.shutdown(wait)

    def _begin(self, read: StripeRead) -> _Reading:
        k = data_shards(read.stripe)
        spare = deque(slot for slot in self._slowness.order(read.holders) if read.holders[slot] is not None)
        return _Reading(read, k, -(-len(read.target) // k), spare)

    def _ask(self, shards: list[tuple[_Reading, int]], arrivals: _Arrivals) -> list[_Call]:
        """Request shards, with one call to each store."""
        by_store: dict[int, list[tuple[_Reading, int]]] = {}
        for reading, slot in shards:
            reading.asked.add(slot)
            store = reading.read.holders[slot]
            assert store is not None, "slots without a store are not among the spare ones"
            by_store.setdefault(store, []).append((reading, slot))
        calls = [_Call(store, wanted, self._clock_s()) for store, wanted in by_store.items()]
        for call in calls:
            try:
                self._threads_for(call.store).submit(self._run, call, arrivals)
            except RuntimeError:  # closed
                arrivals.put((call, [None] * len(call.shards)))
        return calls

    def _threads_for(self, store: int) -> Executor:
        """Return the threads for calls to one store.

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
        """Handle the next answer; request other shards in place of those that failed or take too long."""
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
        """Return how long to wait before requesting other shards; None if there are no others."""
        waiting = [
            call.asked_s + self._patience.of(call.size) for call in under_way if not call.hedged and _replaceable(call)
        ]
        return max(0.0, min(waiting) - self._clock_s()) if waiting else None

    def _overdue(self, under_way: list[_Call]) -> list[tuple[_Reading, int]]:
        """Return the shards to request in place of overdue ones."""
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
    """Remove and return the k likeliest stripe slots."""
    return [reading.spare.popleft() for _ in range(min(reading.k, len(reading.spare)))]


def _replaceable(call: _Call) -> bool:
    return any(reading.spare and not reading.complete for reading, _ in call.shards)


def _assemble(reading: _Reading) -> None:
    """Assemble the object from k shards."""
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
