"""Reading back: what a store says it holds is fetched and compared before anything rests on it.

A store's word that it has a shard, or that the shard is good, costs it nothing. Copies elsewhere are dropped, and
shards that were made anew are counted on, only after their bytes were fetched and found to be the right ones.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from blake3 import blake3

from storage.errors import DataLossError, ShardsUnavailable, StorageError, StoreFull
from storage.fleet.fleet import Fleet
from storage.keys import ShardKey, StripeKey, data_shards, slot_of, stripe_of
from storage.limits import CHUNK_SIZE_MAX, MIB
from storage.shards import CorruptShard, Shard, ShardStore, VolumeFailed, VolumeUnavailable
from storage.shards.port import Verdict
from storage.stripes.healing import Written
from storage.stripes.stripes import StripeStore

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")

_TOGETHER_BYTES = 4 * MIB  # held in memory for each store that is read from
_TOGETHER = 512
# A store that answers so many questions wrongly in a row is asked no more until it has been dealt with.
_WRONG_MAX = 8


class Moved(NamedTuple):
    """A shard that was written, and the store that held it until then; None if it was missing."""

    shard: Written
    former: int | None


class Looked(NamedTuple):
    """Shards that were given back as they were written, and those that were not."""

    good: list[Moved]
    rest: list[Moved]


class Audited(NamedTuple):
    """What the audit of a stripe found: shards fetched, all bytes read for it, shards that are not right."""

    shards: int
    bytes: int
    wrong: int


class ReadBack:
    """Compares what stores give back with what they should hold. Thread-safe.

    Args:
        stripes: the objects.
        is_collecting: whether shards may be removed right now because no file needs them any more.
    """

    def __init__(self, stripes: StripeStore, is_collecting: Callable[[], bool]) -> None:
        self._stripes = stripes
        self._is_collecting = is_collecting
        self._fleet: Fleet[Any] = stripes.volumes

    def look(self, moved: Sequence[Moved], epoch: tuple[int, ...]) -> Looked:
        """Fetch shards that were written a moment ago, while they are in everybody's memory; accuses nobody.

        Args:
            moved: shards that were written.
            epoch: the fleet's when it was decided where to put them.
        """
        good: list[Moved] = []
        rest: list[Moved] = []
        for store, written in by_store(moved).items():
            volume = self._fleet.volume(store)
            found: set[ShardKey] = set()
            if volume is not None and self._fleet.epoch() == epoch:
                with self._fleet.guard(store, volume):
                    for one in self._given_back(volume, written):
                        found.add(one.shard.key)
            for one in written:
                (good if one.shard.key in found else rest).append(one)
        return Looked(good, rest)

    def settle(self, looked: Looked, epoch: tuple[int, ...]) -> None:
        """All of it has been made durable since: drop the former copies of what is right, and look into the rest.

        Args:
            looked: what came of :meth:`look`.
            epoch: as there; under another nothing is dropped, and nothing proves a lie.
        """
        good = list(looked.good)
        for store, written in by_store(looked.rest).items():
            volume = self._fleet.volume(store)
            if volume is None or self._fleet.epoch() != epoch:
                continue  # or it may be another process, which never was given these
            with self._fleet.guard(store, volume):
                good += self._right_ones(store, volume, written)
        if self._fleet.epoch() == epoch:
            self._drop_former(good)

    def _given_back(self, volume: ShardStore, written: Sequence[Moved]) -> Iterator[Moved]:
        for batch in _fitting(written, lambda one: one.shard.length):
            payloads = volume.fetch_all([(one.shard.key, one.shard.length) for one in batch])
            for one, payload in zip(batch, payloads, strict=True):
                if payload is not None and blake3(payload).digest() == one.shard.digest:
                    yield one

    def _right_ones(self, store: int, volume: ShardStore, written: Sequence[Moved]) -> list[Moved]:
        right: list[Moved] = []
        wrong = 0
        for one in written:
            if self._is_right(store, volume, one.shard.key, one.shard.digest, new=True):
                right.append(one)
            else:
                wrong += 1
            if wrong >= _WRONG_MAX:
                break
        return right

    def _drop_former(self, good: Iterable[Moved]) -> None:
        doomed: defaultdict[int, list[ShardKey]] = defaultdict(list)
        for one in good:
            key, store = one.shard.key, one.shard.store
            if one.former not in (None, store) and self._is_holder(store, key):
                doomed[one.former].append(key)
        for former, keys in doomed.items():
            volume = self._fleet.volume(former)
            if volume is not None:
                with self._fleet.guard(former, volume):
                    volume.remove(keys)

    def _is_holder(self, store: int, key: ShardKey) -> bool:
        stripe = stripe_of(key)
        return self._fleet.holders(stripe)[slot_of(key)] == store and self._fleet.trusts(store)

    def alike(self, keys: Sequence[ShardKey], former: int, proper: int) -> list[ShardKey]:
        """Those of the shards that both stores give out with the same content, so that ``former`` may drop its own.

        To compare them is enough: if ``former`` is honest, the other copy is as right as its own; if it is not, its
        copy is worth nothing.
        """
        mine, theirs = self._fleet.volume(former), self._fleet.volume(proper)
        if mine is None or theirs is None or not self._fleet.trusts(proper):
            return []
        wanted: list[tuple[ShardKey, int]] = []
        with self._fleet.guard(former, mine):
            wanted = _of_proper_length(keys, mine.locate_all(keys))
        alike: list[ShardKey] = []
        with self._fleet.guard(proper, theirs):
            said = set(theirs.missing([key for key, _ in wanted]))
            held = [want for at, want in enumerate(wanted) if at not in said]
            for batch in _fitting(held, lambda want: want[1]):
                same, wrong = self._compared(batch, former, mine, proper, theirs)
                alike += same
                if wrong >= _WRONG_MAX:
                    break
            try:
                theirs.sync()  # what was fetched may have been appended a moment ago
            except (StoreFull, VolumeUnavailable) as error:
                log.warning("nothing is dropped for what is on %s for now: %s", self._fleet.name(proper), error)
                self._fleet.note_write_refused(proper, error)  # it may be a push's that was refused
                return []
            return alike
        return []  # type: ignore[unreachable]

    def _compared(
        self, batch: list[tuple[ShardKey, int]], former: int, mine: ShardStore, proper: int, theirs: ShardStore
    ) -> tuple[list[ShardKey], int]:
        """Those that are the same, and how many others the proper store should have given back."""
        own: Sequence[memoryview | None] = [None] * len(batch)
        with self._fleet.guard(former, mine):
            own = mine.fetch_all(batch)
        same: list[ShardKey] = []
        wrong = 0
        for (key, _), ours, other in zip(batch, own, theirs.fetch_all(batch), strict=True):
            if ours is None:
                continue  # there is nothing to drop, or it cannot be read now
            if other == ours or self._is_right(proper, theirs, key, blake3(ours).digest()):
                same.append(key)
            else:
                wrong += 1
        return same, wrong

    def audit(self, stripe: StripeKey) -> Audited:
        """Fetch every shard of a stripe from the store that should hold it, and compare it with what it should be.

        Those that a store says itself that it lacks are left to repair.
        """
        truth = self._truth(stripe)
        if truth is None:
            return Audited(0, 0, 0)  # too little of it can be read now: repair tells of that
        fetched = wrong = 0
        length = -(-truth[0].object_length // data_shards(stripe))
        for slot, shard in enumerate(truth):
            # Where somebody stands in for a store that is there, that one is asked as well: it may be a liar.
            for store in {self._fleet.targets(stripe)[slot], self._fleet.holders(stripe)[slot]}:
                volume = self._fleet.volume(store)
                if volume is None:
                    continue
                with self._fleet.guard(store, volume):
                    if volume.missing([shard.key]):
                        continue
                    (payload,) = volume.fetch_all([(shard.key, length)])
                    fetched += 1
                    good = payload is not None and blake3(payload).digest() == shard.digest
                    wrong += not good and not self._is_right(store, volume, shard.key, shard.digest)
        return Audited(fetched, length * (data_shards(stripe) + fetched), wrong)

    def _truth(self, stripe: StripeKey) -> list[Shard] | None:
        """All shards of a stripe as its verified object gives them; None if that cannot be read."""
        try:
            data = self._stripes.read(stripe)
        except (DataLossError, ShardsUnavailable):
            return None
        return self._stripes.shards_of(stripe, data + bytes(-len(data) % data_shards(stripe)), len(data))

    def _is_right(self, store: int, volume: ShardStore, key: ShardKey, digest: bytes, *, new: bool = False) -> bool:
        """Ask once more for a shard that was not given back as it should be; tells of rot and of lies.

        Args:
            store: the slot of ``volume``.
            volume: says that it holds the shard.
            key: of the shard.
            digest: what its payload's should be, by the word of another store or by what was written.
            new: the store has just said that it made the shard durable.
        """
        try:
            shard: Shard | None = volume.read(key)
        except CorruptShard:
            if volume.check([key]) == [Verdict.ROTTEN]:  # it sets it aside, so that it is missing and made anew
                self._fleet.report("rotten", key, store, "found while reading back; it is made anew")
            return False
        except VolumeFailed:
            raise
        except (StorageError, OSError):
            self._fleet.note_unread(store)  # which proves nothing, unless it goes on
            return False
        if shard is not None and shard.digest == digest:
            return True
        if shard is None:
            # Somebody may have dropped it for good reasons between two calls; then it says so.
            if new and not self._is_collecting():
                self._fleet.note_lie(store, key, "took a shard, said that it is durable, and does not have it")
            elif not volume.missing([key]):
                self._fleet.note_lie(store, key, "says that it holds a shard that it cannot give back")
            return False
        return self._is_true(store, shard)

    def _is_true(self, store: int, shard: Shard) -> bool:
        """Two contents of one shard: what the whole stripe decodes to decides."""
        stripe, slot = stripe_of(shard.key), slot_of(shard.key)
        truth = self._truth(stripe)
        if truth is None:
            return False  # nobody can tell: both copies stay
        if truth[slot].digest == shard.digest:
            return True
        self._fleet.note_lie(store, shard.key, "holds other content than the shard's, under a digest that fits it")
        return False


def by_store(moved: Iterable[Moved]) -> dict[int, list[Moved]]:
    """Shards that were written, by the store that took them."""
    found: defaultdict[int, list[Moved]] = defaultdict(list)
    for one in moved:
        found[one.shard.store].append(one)
    return found


def _of_proper_length(keys: Sequence[ShardKey], places: Sequence[Any]) -> list[tuple[ShardKey, int]]:
    """Shards with their payload lengths, without those that no shard can have."""
    return [
        (key, place.payload_length)
        for key, place in zip(keys, places, strict=True)
        if place is not None and place.payload_length <= -(-CHUNK_SIZE_MAX // data_shards(key))
    ]


def _fitting(items: Iterable[ItemT], length: Callable[[ItemT], int]) -> Iterator[list[ItemT]]:
    """As many at a time as are held in memory."""
    batch: list[ItemT] = []
    size = 0
    for item in items:
        if batch and (size + length(item) > _TOGETHER_BYTES or len(batch) == _TOGETHER):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length(item)
    if batch:
        yield batch
