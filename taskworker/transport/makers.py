"""Workers that make shards by themselves, so that what is repaired or moved does not pass through the pool."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from storage.errors import StorageError
from storage.fleet.orders import Order
from storage.keys import ShardKey, shard_key
from storage.shards import ShardStore, VolumeFailed
from taskworker.transport.making_frames import NONCE_BYTES, OWN, STRIPES_MAX, MakeOrder, Source, is_address
from taskworker.transport.port import WorkerVolume

log = logging.getLogger(__name__)

# A worker that could make nothing several times is not asked for a while: it may be one that cannot reach the others.
_FRUITLESS_MAX = 3
_PAUSE_S = 60.0
# A worker that takes longer, for a call and for each of its bytes, holds repair up: the pool is faster.
_SLOW_S = 10.0
_SLOW_BYTES_PER_S = 512 * 1024


class Workers(Protocol):
    """What is needed of the fleet."""

    def online(self) -> list[tuple[int, WorkerVolume]]:
        """The usable volumes with their slots."""

    def volume(self, slot: int) -> WorkerVolume | None:
        """The volume in a slot; None while it is offline."""

    def name(self, slot: int) -> str:
        """The worker's id."""

    def trusts(self, slot: int) -> bool:
        """Whether a worker's claims about its shards are trusted."""

    def set_offline(self, slot: int, reason: str, failed: ShardStore | None = None) -> None:
        """Stop using a volume that failed."""

    def failed(self, slot: int, store: ShardStore, error: StorageError) -> None:
        """Take a volume offline that raised this error, unless the error is temporary."""


class _Started(NamedTuple):
    """A call under way."""

    slot: int
    volume: WorkerVolume
    orders: list[Order]
    outcomes: Iterator[list[bytes] | None]
    began_s: float


class Makers:
    """Tells workers what to make. Thread-safe: it holds no lock when it calls ``workers``.

    Args:
        workers: the fleet.
        note_given: called with the slot of each worker that has made shards, which are not durable yet.
        clock_s: monotonic seconds.
    """

    def __init__(
        self, workers: Workers, note_given: Callable[[int], None], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._workers = workers
        self._note_given = note_given
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._paused: dict[int, float] = {}  # slot → until when it is not asked
        self._fruitless: Counter[int] = Counter()  # calls in a row in which it made nothing, by slot

    def able(self) -> list[int]:
        """The workers that can be told to make shards now."""
        now_s = self._clock_s()
        with self._lock:
            self._paused = {slot: until_s for slot, until_s in self._paused.items() if until_s > now_s}
            paused = self._paused
        return [slot for slot, volume in self._workers.online() if volume.makes and slot not in paused]

    def make(self, orders: Mapping[int, Sequence[Order]]) -> dict[ShardKey, bytes]:
        """See :meth:`storage.fleet.fleet.Fleet.make`. All workers work at the same time.

        A worker's word about others proves nothing, so it is not even asked who failed it: what is not made here is
        read by the pool itself, which finds out.
        """
        made: dict[ShardKey, bytes] = {}
        started = [
            call
            for slot, wanted in orders.items()
            for at in range(0, len(wanted), STRIPES_MAX)
            if (call := self._start(slot, list(wanted[at : at + STRIPES_MAX]))) is not None
        ]
        for call in started:
            digests = self._outcome(call)
            if digests:
                self._note_given(call.slot)
            made |= digests
            self._note_pace(call, len(digests))
        return made

    def _start(self, slot: int, orders: list[Order]) -> _Started | None:
        volume = self._workers.volume(slot)
        if volume is None or not volume.makes:
            return None
        packed = [MakeOrder(order.stripe, order.length, order.slots, self._sources(order, slot)) for order in orders]
        try:
            return _Started(slot, volume, orders, volume.start_make(packed), self._clock_s())
        except StorageError as error:
            self._failed(slot, volume, error)
            return None

    def _sources(self, order: Order, maker: int) -> tuple[Source, ...]:
        sources = []
        for slot, holder in enumerate(order.holders):
            if holder == maker:
                sources.append(Source(slot, OWN))
                continue
            volume = None if holder is None or not self._workers.trusts(holder) else self._workers.volume(holder)
            if volume is not None and is_address(volume.address):
                sources.append(Source(slot, volume.address))
        return tuple(sources)

    def _outcome(self, call: _Started) -> dict[ShardKey, bytes]:
        made: dict[ShardKey, bytes] = {}
        try:
            for order, digests in zip(call.orders, call.outcomes, strict=False):
                if digests is not None:
                    keys = (shard_key(order.stripe, slot) for slot in order.slots)
                    made.update(zip(keys, digests, strict=True))
            for _ in call.outcomes:  # the end of the stream, and nothing else
                pass
        except StorageError as error:
            self._failed(call.slot, call.volume, error)
        return made

    def _failed(self, slot: int, volume: WorkerVolume, error: StorageError) -> None:
        """Note that a worker did not make shards. If it refused them, so it will when it is sent them."""
        if isinstance(error, VolumeFailed):
            self._workers.set_offline(slot, str(error), volume)
            return
        log.info("worker %s does not make shards by itself: %s", self._workers.name(slot), error)

    def _note_pace(self, call: _Started, made: int) -> None:
        size = sum(order.length for order in call.orders)
        slow = self._clock_s() - call.began_s > _SLOW_S + size / _SLOW_BYTES_PER_S
        with self._lock:
            self._fruitless[call.slot] = 0 if made else self._fruitless[call.slot] + 1
            if slow or self._fruitless[call.slot] >= _FRUITLESS_MAX:
                self._fruitless[call.slot] = 0
                self._paused = {**self._paused, call.slot: self._clock_s() + _PAUSE_S}

    def alike(self, keys: Sequence[ShardKey], one: int, other: int) -> Collection[ShardKey]:
        """See :meth:`storage.fleet.fleet.Fleet.alike`. Both hash what they have with a key that is used only once."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        proofs = [self._prove(nonce, keys, slot) for slot in (one, other)]
        if not all(proofs):
            return ()
        return [key for key, mine, theirs in zip(keys, *proofs, strict=True) if mine is not None and mine == theirs]

    def _prove(self, nonce: bytes, keys: Sequence[ShardKey], slot: int) -> list[bytes | None]:
        volume = self._workers.volume(slot)
        if volume is not None and volume.makes:
            try:
                return volume.prove(nonce, keys)
            except VolumeFailed as error:
                self._workers.set_offline(slot, str(error), volume)
            except StorageError as error:
                log.info("worker %s proves nothing: %s", self._workers.name(slot), error)
        return []
