"""Reads shards back: what a store claims to hold is fetched and compared before anything relies on it.

A store can easily claim that it has a shard, or that the shard is intact. So copies elsewhere are dropped, and rebuilt
shards are relied on, only after their bytes were fetched and found to be correct.

Shards that a store made by itself never passed through here, and fetching them all would undo what that saves. For each
that was moved, both the former store and the new one prove that they have the same content, without sending it. Of the
others, the first of each store and some chosen at random after the store has answered are compared with the object, and
all of them if one was wrong.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from blake3 import blake3

from storage.errors import DataLossError, ShardsUnavailable, StorageError, StoreFull
from storage.fleet.fleet import Fleet
from storage.keys import Kind, ShardKey, StripeKey, data_shards, kind_of, slot_of, stripe_of
from storage.limits import MIB, OBJECT_BYTES_MAX
from storage.shards import CorruptShard, Shard, ShardStore, VolumeFailed, VolumeUnavailable
from storage.shards.port import Verdict
from storage.stripes.delegation import Written
from storage.stripes.stripes import StripeStore

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")

_TOGETHER_BYTES = 4 * MIB  # memory for each store that is read
_TOGETHER = 512
# A store that gives so many wrong answers in a row is not asked again until that was handled.
_WRONG_MAX = 8
_CHOSEN_OF_256 = 8
"""Of so many shards that a store says that it made, how many are fetched. A store that lies about all is found at once,
and one that lies about a tenth by the time it has lied about 30."""


class Moved(NamedTuple):
    """A shard that was written, and the store that held it before; None if it was missing."""

    shard: Written
    former: int | None


class Looked(NamedTuple):
    """Shards that were read back as written, and those that were not."""

    good: list[Moved]
    rest: list[Moved]


class Audited(NamedTuple):
    """The result of a stripe's audit: shards fetched, bytes read in total, incorrect shards."""

    shards: int
    bytes: int
    wrong: int


class ReadBack:
    """Compares what stores return with what they should hold. Thread-safe.

    Args:
        stripes: reads the objects.
        is_collecting: whether a collect may be removing shards right now.
        token_bytes: unforeseeable bytes.
    """

    def __init__(
        self,
        stripes: StripeStore,
        is_collecting: Callable[[], bool],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self._stripes = stripes
        self._is_collecting = is_collecting
        self._token_bytes = token_bytes
        self._tried: set[int] = set()  # stores of which a shard was chosen
        self._doubted: set[int] = set()  # stores that were wrong about a shard
        self._fleet: Fleet[Any] = stripes.volumes

    def look(self, moved: Sequence[Moved], epoch: tuple[int, ...]) -> Looked:
        """Fetch shards that were just written, while they are still in the stores' memory; accuses no store.

        Args:
            moved: shards that were written.
            epoch: the fleet's epoch when their places were chosen.
        """
        good, moved = self._sifted(moved)
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

    def _sifted(self, moved: Sequence[Moved]) -> tuple[list[Moved], list[Moved]]:
        """Separate shards that need not be fetched from others, which get the hashes that they must have.

        Those of objects that cannot be read now are left out: nothing is concluded about them.
        """
        claimed = [one for one in moved if one.shard.claimed]
        believed: list[Moved] = []
        chosen: list[Moved] = []
        for one in self._unproved(claimed, believed):
            (chosen if self._is_chosen(one) else believed).append(one)
        return believed, [*(one for one in moved if not one.shard.claimed), *self._with_true_digests(chosen)]

    def _unproved(self, claimed: Sequence[Moved], proved: list[Moved]) -> Iterator[Moved]:
        """Yield those that are not proved to be what the former store has; add the others to ``proved``."""
        pairs: defaultdict[tuple[int, int | None], list[Moved]] = defaultdict(list)
        for one in claimed:
            there = one.former is not None and one.former != one.shard.store
            pairs[one.shard.store, one.former if there else None].append(one)
        for (store, former), written in pairs.items():
            alike: Collection[ShardKey] = ()
            if former is not None:
                alike = set(self._fleet.alike([one.shard.key for one in written], store, former))
            for one in written:
                if one.shard.key in alike:
                    proved.append(one)
                else:
                    yield one

    def _is_chosen(self, one: Moved) -> bool:
        """Whether a shard is fetched: if it was moved and nothing was proved, or by chance, or to try its store."""
        store, former = one.shard.store, one.former
        unproved = former not in (None, store) and self._fleet.volume(former) is not None
        chosen = unproved or store not in self._tried or self._token_bytes(1)[0] < _CHOSEN_OF_256
        self._tried.add(store)
        return chosen

    def settle(self, looked: Looked, epoch: tuple[int, ...]) -> None:
        """After a sync: drop the former copies of correct shards, and investigate the others.

        Args:
            looked: the result of :meth:`look`.
            epoch: as for :meth:`look`; if it has changed, nothing is dropped and nothing proves a lie.
        """
        good = list(looked.good)
        for store, written in by_store(looked.rest).items():
            volume = self._fleet.volume(store)
            if volume is None or self._fleet.epoch() != epoch:
                continue  # otherwise it may be another process, which never got these shards
            with self._fleet.guard(store, volume):
                right = self._right_ones(store, volume, written)
                good += right
                if len(right) < len(written):
                    self._doubted.add(store)
        if self._doubted:
            good = self._without_doubtful(good, epoch)
        if self._fleet.epoch() == epoch:
            self._drop_former(good)

    def _without_doubtful(self, good: Sequence[Moved], epoch: tuple[int, ...]) -> list[Moved]:
        """After a store was found wrong about a shard that it made, investigate what else it says that it made."""
        doubtful = [one for one in good if one.shard.claimed and one.shard.store in self._doubted]
        sound = [one for one in good if not (one.shard.claimed and one.shard.store in self._doubted)]
        for store, written in by_store(doubtful).items():
            volume = self._fleet.volume(store)
            if volume is not None and self._fleet.epoch() == epoch:
                with self._fleet.guard(store, volume):
                    sound += self._right_ones(store, volume, self._with_true_digests(written))
        return sound

    def _with_true_digests(self, claimed: Iterable[Moved]) -> Iterator[Moved]:
        """Shards with the hashes that they must have, without those of objects that cannot be read now."""
        for one in claimed:
            digest = self._true_digest(one.shard.key)
            if digest is not None:
                yield one._replace(shard=one.shard._replace(digest=digest, claimed=False))

    def _given_back(self, volume: ShardStore, written: Sequence[Moved]) -> Iterator[Moved]:
        for batch in _fitting(written, lambda one: one.shard.length):
            payloads = volume.fetch_all([(one.shard.key, one.shard.length) for one in batch])
            for one, payload in zip(batch, payloads, strict=True):
                if payload is not None and blake3(payload).digest() == one.shard.digest:
                    yield one

    def _right_ones(self, store: int, volume: ShardStore, written: Iterable[Moved]) -> list[Moved]:
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
        """The shards that both stores return with the same content, so that ``former`` may drop its copies.

        Comparing them is enough: if ``former`` is honest, the other copy is as correct as its own; if it is not, its
        copy is worthless.
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
                theirs.sync()  # the fetched shards may have been appended a moment ago
            except (StoreFull, VolumeUnavailable) as error:
                log.warning("other copies of shards on %s are kept for now: %s", self._fleet.name(proper), error)
                self._fleet.note_write_refused(proper, error)  # the refused write may be that of a push
                return []
            return alike
        return []  # type: ignore[unreachable]

    def _compared(
        self, batch: list[tuple[ShardKey, int]], former: int, mine: ShardStore, proper: int, theirs: ShardStore
    ) -> tuple[list[ShardKey], int]:
        """The shards that are equal, and how many others the proper store should have returned."""
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
        """Fetch every shard of a stripe from the store that should hold it, and compare it with the correct content.

        Shards that a store reports as missing are left to repair.
        """
        truth = self._truth(stripe)
        if truth is None:
            return Audited(0, 0, 0)  # too little can be read now; repair reports that
        fetched = wrong = 0
        length = -(-truth[0].object_length // data_shards(stripe))
        for slot, shard in enumerate(truth):
            # If another store stands in for an available one, the latter is asked as well: it may be lying.
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
        """All shards of a stripe, encoded from its verified object; None if the object cannot be read."""
        try:
            data = self._stripes.read(stripe)
        except (DataLossError, ShardsUnavailable):
            return None
        return self._stripes.shards_of(stripe, data + bytes(-len(data) % data_shards(stripe)), len(data))

    def _true_digest(self, key: ShardKey) -> bytes | None:
        """The hash that a shard's payload must have; None if the object cannot be read."""
        stripe, slot, k = stripe_of(key), slot_of(key), data_shards(key)
        length = self._stripes.object_length(stripe) if kind_of(key) == Kind.CHUNK else None
        if length:
            data = memoryview(bytearray(k * -(-length // k)))
            with suppress(DataLossError, ShardsUnavailable):  # the length may be a lie
                self._stripes.read_into(stripe, data[:length])
                return self._stripes.shards_of(stripe, data, length, slots=[slot])[0].digest
        truth = self._truth(stripe)
        return None if truth is None else truth[slot].digest

    def _is_right(self, store: int, volume: ShardStore, key: ShardKey, digest: bytes, *, new: bool = False) -> bool:
        """Ask again for a shard that was not returned correctly; reports corruption and lies.

        Args:
            store: the slot of ``volume``.
            volume: claims to hold the shard.
            key: key of the shard.
            digest: the digest that its payload should have, by another store's copy or by what was written.
            new: whether the store has just confirmed that the shard is durable.
        """
        try:
            shard: Shard | None = volume.read(key)
        except CorruptShard:
            if volume.check([key]) == [Verdict.ROTTEN]:  # the store sets it aside, so that it gets rebuilt
                self._fleet.report("rotten", key, store, "found while reading back; it will be rebuilt")
            return False
        except VolumeFailed:
            raise
        except (StorageError, OSError):
            self._fleet.note_unread(store)  # proves nothing, unless it happens repeatedly
            return False
        if shard is not None and shard.digest == digest:
            return True
        if shard is None:
            # It may have been dropped legitimately between two calls; then the store says so.
            if new and not self._is_collecting():
                self._fleet.note_lie(store, key, "took a shard, said that it was durable, and does not have it")
            elif not volume.missing([key]):
                self._fleet.note_lie(store, key, "says that it holds a shard that it cannot give back")
            return False
        return self._is_true(store, volume, shard, new=new)

    def _is_true(self, store: int, volume: ShardStore, shard: Shard, *, new: bool) -> bool:
        """Decide between two contents of a shard by decoding the whole stripe.

        What a client wrote wrong is made again, and no store is to blame for it unless it has just taken the right one.
        """
        stripe, slot = stripe_of(shard.key), slot_of(shard.key)
        truth = self._truth(stripe)
        if truth is None:
            return False  # undecidable: both copies stay
        if truth[slot].digest == shard.digest:
            return True
        if not new and self._stripes.origins.is_blameless(shard):
            self._stripes.set_aside(shard, store, volume.locate(shard.key))
        else:
            self._fleet.note_lie(store, shard.key, "holds wrong content for a shard, with a digest that matches it")
        return False


def by_store(moved: Iterable[Moved]) -> dict[int, list[Moved]]:
    """Written shards, by the store that took them."""
    found: defaultdict[int, list[Moved]] = defaultdict(list)
    for one in moved:
        found[one.shard.store].append(one)
    return found


def _of_proper_length(keys: Sequence[ShardKey], places: Sequence[Any]) -> list[tuple[ShardKey, int]]:
    """Shards with valid payload lengths."""
    return [
        (key, place.payload_length)
        for key, place in zip(keys, places, strict=True)
        if place is not None and place.payload_length <= -(-OBJECT_BYTES_MAX // data_shards(key))
    ]


def _fitting(items: Iterable[ItemT], length: Callable[[ItemT], int]) -> Iterator[list[ItemT]]:
    """Batches that fit into memory."""
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
