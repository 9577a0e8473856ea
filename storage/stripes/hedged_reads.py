"""Reading healthy stripes from stores that cost a round trip: the k fastest shards, many stripes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from blake3 import blake3

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, object_id_of, split_stripe_key
from storage.limits import MIB
from storage.runtime import Runtime
from storage.shards import ShardStore
from storage.stripes.decoding import is_object
from storage.stripes.hedging import HedgedReader, StripeRead, Wanted
from storage.stripes.quarantine import HealRequests
from storage.stripes.shard_map import ShardMap
from storage.stripes.soundness import Soundness

# Several shards a message, in bounded memory. Measured on a pool of six workers: 8 MiB are a tenth faster than 4.
# 16 are another tenth faster for one reader, but not for eight, who take 50 MiB more then.
_TOGETHER_BYTES = 8 * MIB
_TOGETHER_MAX = 64
_HEALED_TOGETHER = 4  # usual chunks of 1 MiB; readers wait for so much at most


class HedgedReads:
    """Reads with hedged requests. Thread-safe.

    See :class:`~storage.stripes.fast_reads.FastReads`.

    Args:
        fleet: the stores.
        soundness: learns which stripes were read.
        heal_requests: called for stripes of which a store that is there lacks a shard.
        runtime: threads and clocks.
    """

    healed_together = _HEALED_TOGETHER

    def __init__(self, fleet: Fleet[Any], soundness: Soundness, heal_requests: HealRequests, runtime: Runtime) -> None:
        self._fleet = fleet
        self._soundness = soundness
        self._heal_requests = heal_requests
        self._reader = HedgedReader(self._fetch_all, runtime)

    def together(self, object_bytes: int) -> int:
        """As many as are worth a message and the memory."""
        return max(1, min(_TOGETHER_MAX, _TOGETHER_BYTES // object_bytes))

    def read(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        holders = self._fleet.places(stripe)
        missing = self._reader.read_into(stripe, holders, target)
        if missing is None:
            return False
        self._note_missing(stripe, holders, missing)
        return True

    def fill(self, stripe: StripeKey, target: memoryview) -> bool:
        """See :class:`~storage.stripes.fast_reads.FastReads`."""
        return self._reader.read_into(stripe, self._fleet.places(stripe), target) is not None

    def read_together(self, reads: Sequence[tuple[StripeKey, memoryview]]) -> Iterator[tuple[StripeKey, memoryview]]:
        """All are read when the first of the others is asked for; those that failed are the others."""
        wanted = [StripeRead(stripe, self._fleet.places(stripe), target) for stripe, target in reads]
        for read, missing in zip(wanted, self._reader.read_all(wanted), strict=True):
            if missing is None or blake3(read.target).digest() != object_id_of(read.stripe):
                yield read.stripe, read.target
                continue
            self._soundness.note_read(read.stripe)
            if missing:
                self._note_missing(read.stripe, read.holders, missing)

    def read_located(self, wanted: Sequence[tuple[StripeKey, ShardMap]]) -> dict[StripeKey, memoryview]:
        """See :class:`~storage.stripes.fast_reads.FastReads`; all whose length is known are tried."""
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
        """End the threads; see :meth:`HedgedReader.close`."""
        self._reader.close()

    def _note_missing(self, stripe: StripeKey, holders: tuple[int | None, ...], missing: list[int]) -> None:
        """Have a stripe healed if stores that are there lack shards of it."""
        stores = (holders[slot] for slot in missing)
        if any(store is not None and self._fleet.state(store) == "ok" for store in stores):
            self._heal_requests.missing(stripe)

    def _fetch_all(self, holder: int, wanted: Sequence[Wanted]) -> Sequence[memoryview | None]:
        volume: ShardStore | None = self._fleet.volume(holder)
        if volume is None:
            return [None] * len(wanted)
        try:
            return volume.fetch_all(wanted)
        except (StorageError, OSError) as error:
            self._fleet.could_not_read(holder, volume, error)
            return [None] * len(wanted)
