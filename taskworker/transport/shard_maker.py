"""Makes shards on the worker that shall have them, from those that other workers have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from storage.batching import batched_by_size
from storage.keys import data_shards, shard_count, split_stripe_key
from storage.limits import MIB
from storage.runtime import Runtime
from storage.shards import Shard
from storage.stripes.decoding import is_object
from storage.stripes.encoding import Encoder
from storage.stripes.hedging import HedgedReader, StripeRead
from taskworker.rpc.binding import require_active
from taskworker.transport.making_frames import STRIPES_MAX, MakeOrder, Result
from taskworker.transport.sources import Sources
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.serving import Caller

# Of a stripe, so many sources more than are needed are used in place of those that are slow or fail.
_SPARE_SOURCES = 4
_TOGETHER_BYTES = 8 * MIB
# For all calls of a worker's process. Six of the largest objects fit; a pool makes a few calls at a time.
_MEMORY_BYTES = 128 * MIB


class Made(NamedTuple):
    """What became of a stripe: the BLAKE3 hash of each wanted shard if they were made."""

    result: Result
    digests: Sequence[bytes] = ()


class ShardMaker:
    """Fetches objects, verifies them, and makes shards of them. Thread-safe.

    The stripes of a call are handled some megabytes at a time. A call that finds no memory for some is told so at once,
    as its pool has other ways to make the shards.

    Args:
        sources: other workers' volumes.
        runtime: provides the clock, and what to wait with.
        memory_bytes: for the objects under way.
    """

    def __init__(self, sources: Sources, runtime: Runtime, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._sources = sources
        self._reader = HedgedReader(sources.begin_fetch, runtime)
        self._encoder = Encoder()
        self._memory = Budget(memory_bytes)

    def make(
        self, orders: Sequence[MakeOrder], append: Callable[[Sequence[Shard]], None], caller: Caller
    ) -> Iterator[Made]:
        """Make the shards of each stripe, and append them; yields what became of it, in order.

        Args:
            orders: the stripes.
            append: stores shards; they are not durable yet.
            caller: nothing more is done once it does not wait any more.

        Raises:
            CallAbandoned: the caller has left.
            StorageError: the shards cannot be stored.
        """
        for batch in batched_by_size(orders, STRIPES_MAX, _TOGETHER_BYTES, lambda order: order.length):
            require_active(caller)
            size = sum(map(_memory_for, batch))
            if not self._memory.take(size):
                yield from (Made(Result.BUSY) for _ in batch)
                continue
            try:
                made = self._make_together(batch, append)
            finally:
                self._memory.give_back(size)
            yield from made

    def _make_together(self, orders: Sequence[MakeOrder], append: Callable[[Sequence[Shard]], None]) -> list[Made]:
        reads: list[StripeRead] = []
        padded: list[memoryview] = []
        for order in orders:
            whole = memoryview(bytearray(_padded_bytes(order)))
            padded.append(whole)
            reads.append(StripeRead(order.stripe, self._holders(order), whole[: order.length]))
        made = [Made(Result.TOO_FEW)] * len(orders)
        for at, missing in self._reader.read_each(reads):
            if missing is not None:
                made[at] = self._make_of(orders[at], padded[at], append)
        return made

    def _make_of(self, order: MakeOrder, whole: memoryview, append: Callable[[Sequence[Shard]], None]) -> Made:
        """Make the wanted shards of an object, which is zero-padded to whole shards, if it is the right one."""
        if not is_object(split_stripe_key(order.stripe), whole[: order.length]):
            return Made(Result.NO_OBJECT)
        shards = self._encoder.shards_of(order.stripe, whole, order.length, slots=order.slots)
        append(shards)
        return Made(Result.MADE, [shard.digest for shard in shards])

    def _holders(self, order: MakeOrder) -> tuple[int | None, ...]:
        """The number of the source for each slot; None without one."""
        holders: list[int | None] = [None] * shard_count(order.stripe)
        for source in order.sources[: data_shards(order.stripe) + _SPARE_SOURCES]:
            holders[source.slot] = self._sources.number(source.address)
        return tuple(holders)


def _padded_bytes(order: MakeOrder) -> int:
    k = data_shards(order.stripe)
    return int(k * -(-order.length // k))


def _memory_for(order: MakeOrder) -> int:
    """The most memory that a stripe takes: the object, spare shards, and those that are coded."""
    k, n = data_shards(order.stripe), shard_count(order.stripe)
    coded = n - k if k > 1 else 0
    return _padded_bytes(order) + -(-order.length // k) * (_SPARE_SOURCES + coded)
