"""Recovery of an object from any k good shards, even if others are gone, rotten or forged."""

from __future__ import annotations

from itertools import islice, product
from typing import Any

from storage.errors import DataLossError, ShardsUnavailable, StoreClosed
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, object_id_of, shard_key, split_stripe_key
from storage.shards import Shard
from storage.stripes.checked_reads import CheckedReader, ShardReads
from storage.stripes.decoding import solve, survivors_by_length
from storage.stripes.encoding import Encoder
from storage.stripes.origins import Origins, WrittenWrongLog
from storage.stripes.quarantine import Quarantine
from storage.stripes.shard_map import ShardMapper
from storage.stripes.soundness import Soundness

_COPIES_TRIED_MAX = 100  # combinations of differing copies: with two copies of each of 6 shards, there are 64

Unread = DataLossError | ShardsUnavailable
"""Why an object cannot be read: its shards are gone, or out of reach for now."""


class WrittenWrong(DataLossError):
    """A client wrote shards of an object itself that never belonged together, and the stores have them so."""


class Recovery:
    """Reads all shards of a stripe, decodes the object from good ones, and sets the others aside. Thread-safe.

    Args:
        fleet: the stores.
        reader: reads the shards.
        mapper: finds further copies of shards.
        encoder: makes the right shards for comparison.
        quarantine: sets bad shards aside.
        soundness: remembers which stripes can be read.
        origins: knows what a client wrote itself.
        told: logs what clients wrote wrong.
    """

    def __init__(
        self, fleet: Fleet[Any], reader: CheckedReader, mapper: ShardMapper, encoder: Encoder, quarantine: Quarantine,
        soundness: Soundness, origins: Origins, told: WrittenWrongLog,
    ) -> None:  # fmt: skip
        self._origins = origins
        self._told = told
        self._fleet = fleet
        self._reader = reader
        self._mapper = mapper
        self._encoder = encoder
        self._quarantine = quarantine
        self._soundness = soundness
        self._closed = False

    def close(self) -> None:
        """From now on, failed reads raise that the store was closed, not that data is lost."""
        self._closed = True

    def recover(self, stripe: StripeKey, expect: int | None) -> memoryview:
        """Recover and return the verified object.

        During the search, a shard may move from a store that has not been asked yet to one that has. So the stores are
        asked again as long as new shards are found.

        Args:
            stripe: stripe key of the object.
            expect: length of the object in bytes, if it is known.

        Raises:
            DataLossError: fewer than k intact shards are left.
            ShardsUnavailable: too many shards are out of reach for now.
            StoreClosed: the store was closed meanwhile.
        """
        seen: set[int] | None = None
        while True:
            if self._closed:
                raise StoreClosed("the store was closed while it was being read")
            reads = self._reader.read_all(stripe)
            data = self._recover_from(stripe, expect, reads)
            if data is not None:
                self._soundness.note_read(stripe)
                return data
            if self._fleet.revive():
                continue
            if not self._fleet.stand_ins or (seen is not None and reads.found.keys() <= seen):
                data = self._recover_from_copies(stripe, expect, reads)
                if data is not None:
                    return data
                raise self._unread(stripe, reads)
            seen = (seen or set()) | reads.found.keys()

    def _recover_from(self, stripe: StripeKey, expect: int | None, reads: ShardReads) -> memoryview | None:
        """Decode the object from the shards that were read; return None if they are not enough."""
        parts = split_stripe_key(stripe)
        found, places = reads.found, reads.places
        if reads.rotten:
            self._quarantine.set_aside(stripe, reads.rotten, "digest differs")
        groups = survivors_by_length(found, parts.k)
        if expect is not None:
            groups = [group for group in groups if group.length == expect]
        for survivors in groups:
            data = solve(parts, survivors, self._of_client(found) if len(survivors.payloads) > parts.k else ())
            if data is not None:
                liars = self._liars(stripe, survivors.length, data, found)
                excused = [slot for slot in liars if self._origins.is_blameless(found[slot])]
                for slots, is_blamed in ((set(liars).difference(excused), True), (excused, False)):
                    if slots:
                        self._quarantine.set_aside(
                            stripe,
                            {slot: places[slot] for slot in slots},
                            "content differs from what the stripe decodes to",
                            wrong=True,
                            is_blamed=is_blamed,
                        )
                return data[: survivors.length]
        return None

    def _of_client(self, found: dict[int, Shard]) -> set[int]:
        """The slots whose shard is as a client wrote it."""
        return {slot for slot, shard in found.items() if self._origins.is_of_client(shard)}

    def _liars(self, stripe: StripeKey, length: int, data: memoryview, found: dict[int, Shard]) -> list[int]:
        """Return the slots whose shard differs from that of the verified object."""
        truth = self._encoder.shards_of(stripe, data, length)
        return [
            slot for slot, shard in found.items() if shard.object_length != length or shard.digest != truth[slot].digest
        ]

    def _recover_from_copies(self, stripe: StripeKey, expect: int | None, reads: ShardReads) -> memoryview | None:
        """Decode the object using other copies of shards, as a wrong shard may have hidden a right copy elsewhere.

        Returns:
            The object; None if no combination of copies gives it.
        """
        copies = {slot: [(shard, reads.places[slot])] for slot, shard in reads.found.items()}
        for holder in self._fleet.elsewhere(stripe):
            volume = self._fleet.volume(holder)
            locations = self._mapper.locate(holder, [shard_key(stripe, slot) for slot in copies])
            for slot, place in zip(copies, locations or [None] * len(copies), strict=True):
                if volume is None or place is None or reads.places[slot][0] == holder:
                    continue
                shard = self._reader.read(holder, volume, shard_key(stripe, slot), place, ShardReads())
                if shard is not None and not any(_is_same(shard, known) for known, _ in copies[slot]):
                    copies[slot].append((shard, (holder, place)))
        for chosen in islice(product(*copies.values()), 1, _COPIES_TRIED_MAX):  # the first choice has been tried
            shards = dict(zip(copies, (shard for shard, _ in chosen), strict=True))
            where = dict(zip(copies, (place for _, place in chosen), strict=True))
            data = self._recover_from(stripe, expect, ShardReads(shards, where))
            if data is not None:
                return data
        return None

    def _unread(self, stripe: StripeKey, reads: ShardReads) -> Unread:
        """Return why an object could not be read. It counts as lost only if unreachable shards could not restore it."""
        k = data_shards(stripe)
        most = max((len(group.payloads) for group in survivors_by_length(reads.found, k)), default=0)
        sound = min(most, k - 1)  # if k or more do not decode, fewer than k are right
        away = len(reads.unreachable.keys() - reads.found.keys())
        if sound + away < k or most > sound:
            self._soundness.note_unreadable(stripe)
        if most > sound and len(self._of_client(reads.found)) >= k:
            self._told.note(stripe, "a client wrote what does not belong together; it cannot be read")
            return WrittenWrong(object_id_of(stripe).hex(), 0, k)
        if sound + away < k:
            return DataLossError(object_id_of(stripe).hex(), most if most == sound else 0, k)
        causes = tuple(dict.fromkeys(reads.unreachable.values()))
        return ShardsUnavailable(object_id_of(stripe).hex(), sound, k, away=away, causes=causes)


def _is_same(one: Shard, other: Shard) -> bool:
    """Whether two copies of a shard are equal, including the object length, about which a store may also lie."""
    return one.digest == other.digest and one.object_length == other.object_length
