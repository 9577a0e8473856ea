"""Reading healthy stripes from remote stores: the k fastest shards, with many stripes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from blake3 import blake3

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, object_id_of, split_stripe_key
from storage.limits import MIB
from storage.runtime import Runtime
from storage.shards import ShardStore
from storage.stripes.decoding import is_object
from storage.stripes.hedging import HedgedReader, Outcome, StripeRead, Wanted
from storage.stripes.quarantine import HealRequests
from storage.stripes.shard_map import ShardMap
from storage.stripes.soundness import Soundness

# Several shards in each message, with limited memory. Measured on a pool of six workers: 8 MiB is a tenth faster than
# 4 MiB. 16 MiB is another tenth faster for one reader, but not for eight, which then use 50 MiB more.
_TOGETHER_BYTES = 8 * MIB
_TOGETHER_MAX = 64
_HEALED_TOGETHER = 4  # few, as reads may have to wait for so many chunks of usually 1 MiB


class HedgedReads:
    """Reads with hedged requests. Thread-safe.

    See :class:`~storage.stripes.fast_reads.FastReads`.

    Args:
        fleet: the stores.
        soundness: remembers which stripes were read.
        heal_requests: called for stripes of which a present store lacks a shard.
        runtime: threads and clocks.
    """

    healed_together = _HEALED_TOGETHER

    def __init__(self, fleet: Fleet[Any], soundness: Soundness, heal_requests: HealRequests, runtime: Runtime) -> None:
        self._fleet = fleet
        self._soundness = soundness
        self._heal_requests = heal_requests
        self._reader = HedgedReader(self._begin_fetch, runtime)

    def together(self, object_bytes: int) -> int:
        """Return as many as fit into the memory limit."""
        return max(1, min(_TOGETHER_MAX, _TOGETHER_BYTES // object_bytes))

    def read(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        holders = self._present(stripe)
        missing = self._reader.read_into(stripe, holders, target)
        if missing is None:
            return False
        self._note_missing(stripe, holders, missing)
        return True

    def fill(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        return self._reader.read_into(stripe, self._present(stripe), target) is not None

    def read_together(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Iterator[tuple[StripeKey, memoryview]]:
        """Read all objects when the first item is requested; yield those that failed."""
        wanted = [StripeRead(stripe, self._present(stripe), target) for stripe, target in reads]
        failed: list[StripeRead] = []
        for at, missing in self._reader.read_each(wanted):
            read = wanted[at]
            if missing is None or blake3(read.target).digest() != object_id_of(read.stripe):
                failed.append(read)
                continue
            self._soundness.note_read(read.stripe)
            if missing:
                self._note_missing(read.stripe, read.holders, missing)
        for read in failed:
            yield read.stripe, read.target

    def read_located(self, wanted: Sequence[tuple[StripeKey, ShardMap]]) -> dict[StripeKey, memoryview]:
        """See :class:`~storage.stripes.fast_reads.FastReads`. All objects with a known length are read."""
        reads: list[StripeRead] = []
        for stripe, where in wanted:
            if where.length is not None:
                k = data_shards(stripe)
                target = memoryview(bytearray(k * -(-where.length // k)))[: where.length]
                reads.append(StripeRead(stripe, where.holders, target))
        outcomes = self._reader.read_all(reads)
        return {
            read.stripe: read.target
            for read, missing in zip(reads, outcomes, strict=True)
            if missing is not None and is_object(split_stripe_key(read.stripe), read.target)
        }

    def close(self) -> None:
        """See :class:`~storage.stripes.fast_reads.FastReads`. There are no threads."""

    def _present(self, stripe: StripeKey) -> tuple[int | None, ...]:
        """The store of each shard of a stripe; None for those that are offline, so that nobody asks them first."""
        return tuple(slot if self._fleet.volume(slot) is not None else None for slot in self._fleet.places(stripe))

    def _note_missing(self, stripe: StripeKey, holders: tuple[int | None, ...], missing: list[int]) -> None:
        """Request healing of a stripe if present stores lack shards of it."""
        stores = (holders[slot] for slot in missing)
        if any(store is not None and self._fleet.state(store) == "ok" for store in stores):
            self._heal_requests.missing(stripe)

    def _begin_fetch(
        self, slot: int, wanted: Sequence[Wanted], into: Sequence[memoryview], done: Callable[[Outcome], None]
    ) -> Callable[[], None]:
        volume: ShardStore | None = self._fleet.volume(slot)
        if volume is None:
            done([False] * len(wanted))
            return lambda: None

        def ended(outcome: Sequence[bool] | StorageError) -> None:
            if isinstance(outcome, StorageError):
                done(partial(self._fleet.could_not_read, slot, volume, outcome))
            else:
                done(outcome)

        try:
            return volume.begin_fetch(wanted, into, ended)
        except StorageError as error:
            ended(error)
            return lambda: None
