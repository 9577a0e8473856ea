"""Reading a stripe from stores that may be slow: the k fastest shards win.

The k likeliest shards are asked for at once. Where one has not come after the time in which 95 % of
recent ones came, a further shard is asked for in its stead (Dean and Barroso, "The Tail at Scale",
2013), and its store is asked last for a while.
"""

from __future__ import annotations

import bisect
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from storage.erasure import code_for_key
from storage.keys import BYTE, ShardKey, StripeKey
from storage.runtime import Runtime

_THREADS = 32
_SAMPLES = 256
_HEDGE_S_MIN = 0.004  # less would hedge against the scheduler, not against a slow worker
_HEDGE_S_MAX = 1.0
_HEDGE_S_FIRST = 0.05  # until enough reads have been seen
_SHUNNED_S = 2.0

Fetch = Callable[[int, ShardKey, int], memoryview | None]
"""Gets a shard's payload from a store: (store slot, key, length). None: it cannot be had there."""


@dataclass(slots=True)
class _Reading:
    """One stripe being read."""

    stripe: StripeKey
    length: int
    holders: tuple[int, ...]
    arrivals: queue.SimpleQueue[tuple[int, memoryview | None]] = field(default_factory=queue.SimpleQueue)
    asked: dict[int, float] = field(default_factory=dict)
    payloads: dict[int, memoryview] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    @property
    def waiting(self) -> list[int]:
        """Stripe slots asked for that have not come."""
        return [slot for slot in self.asked if slot not in self.payloads and slot not in self.failed]


class HedgedReader:
    """Reads stripes by way of ``fetch``. Thread-safe.

    Args:
        fetch: gets one shard; called from threads of this object's own.
        runtime: where those and the time come from.
    """

    def __init__(self, fetch: Fetch, runtime: Runtime) -> None:
        self._fetch = fetch
        self._now_s = runtime.monotonic_s
        self._threads = runtime.executor(_THREADS, "fetch-shard")
        self._lock = threading.Lock()
        self._recent: deque[float] = deque(maxlen=_SAMPLES)
        self._sorted: list[float] = []
        self._shunned: dict[int, float] = {}

    def read_into(self, stripe: StripeKey, holders: tuple[int, ...], target: memoryview) -> list[int] | None:
        """Fill ``target`` with the object, unverified.

        Args:
            stripe: its key.
            holders: the store slot of each of its shards.
            target: exactly as long as the object.

        Returns:
            Stripe slots that could not be had and were done without; None: fewer than k could be had.
        """
        k = stripe[33] + 1
        reading = _Reading(stripe, -(-len(target) // k), holders)
        order = self._order(holders)
        for slot in order[:k]:
            self._ask(reading, slot)
        spare = order[k:]
        while len(reading.payloads) < k:
            if not self._await_one(reading, spare):
                return None
        _assemble(reading, k, target)
        return sorted(reading.failed)

    def close(self) -> None:
        """End the threads; what is being fetched is waited for, and reads that ask for more get nothing."""
        self._threads.shutdown()

    def _order(self, holders: tuple[int, ...]) -> list[int]:
        """Stripe slots in the order to ask: data before parity, but stores that were slow lately last."""
        if not self._shunned:
            return list(range(len(holders)))
        now = self._now_s()
        slow = {store for store, until in list(self._shunned.items()) if until > now}
        self._shunned = {store: until for store, until in list(self._shunned.items()) if until > now}
        return sorted(range(len(holders)), key=lambda slot: holders[slot] in slow)

    def _ask(self, reading: _Reading, slot: int) -> None:
        reading.asked[slot] = self._now_s()
        try:
            self._threads.submit(self._run, reading, slot)
        except RuntimeError:  # closed
            reading.arrivals.put((slot, None))

    def _run(self, reading: _Reading, slot: int) -> None:
        payload: memoryview | None = None
        try:
            payload = self._fetch(reading.holders[slot], ShardKey(reading.stripe + BYTE[slot]), reading.length)
        finally:
            reading.arrivals.put((slot, payload))

    def _await_one(self, reading: _Reading, spare: list[int]) -> bool:
        """Take in the next shard that comes, asking for others meanwhile; False if nothing more can come."""
        while True:
            if not reading.waiting:
                if not spare:
                    return False
                self._ask(reading, spare.pop(0))
            try:
                slot, payload = reading.arrivals.get(timeout=self._patience_s(reading) if spare else None)
            except queue.Empty:
                self._hedge(reading, spare)
                continue
            if payload is None:
                reading.failed.append(slot)
                if spare:
                    self._ask(reading, spare.pop(0))
                return bool(reading.waiting)
            reading.payloads[slot] = payload
            self._note(self._now_s() - reading.asked[slot])
            return True

    def _patience_s(self, reading: _Reading) -> float:
        """How long to wait for the shards under way before asking for another."""
        latest = max(reading.asked[slot] for slot in reading.waiting)
        return max(0.0, latest + self._hedge_after_s() - self._now_s())

    def _hedge(self, reading: _Reading, spare: list[int]) -> None:
        now = self._now_s()
        for slot in reading.waiting:
            if spare and now - reading.asked[slot] >= self._hedge_after_s():
                self._shunned[reading.holders[slot]] = now + _SHUNNED_S
                self._ask(reading, spare.pop(0))

    def _hedge_after_s(self) -> float:
        with self._lock:
            if len(self._sorted) < _SAMPLES // 8:
                return _HEDGE_S_FIRST
            p95 = self._sorted[len(self._sorted) * 95 // 100]
        return min(max(1.5 * p95, _HEDGE_S_MIN), _HEDGE_S_MAX)

    def _note(self, taken_s: float) -> None:
        with self._lock:
            if len(self._recent) == _SAMPLES:
                del self._sorted[bisect.bisect_left(self._sorted, self._recent[0])]
            self._recent.append(taken_s)
            bisect.insort(self._sorted, taken_s)


def _assemble(reading: _Reading, k: int, target: memoryview) -> None:
    """Put k shards together into the object."""
    length, slots = reading.length, sorted(reading.payloads)[:k]
    missing = [slot for slot in range(k) if slot not in slots]
    whole = target if len(target) == k * length else memoryview(bytearray(k * length))
    cut = [whole[slot * length : (slot + 1) * length] for slot in range(k)]
    for slot in slots:
        if slot < k:
            cut[slot][:] = reading.payloads[slot]
    if missing:
        code = code_for_key(k, reading.stripe[34] + 1)
        code.decode_into([reading.payloads[slot] for slot in slots], slots, missing, [cut[slot] for slot in missing])
    if whole is not target:
        target[:] = whole[: len(target)]
