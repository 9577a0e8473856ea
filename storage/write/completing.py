"""Makes a batch of commits complete after its shards were appended, if stores came or went meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, shard_key, stripe_of
from storage.shards import Shard
from storage.stripes.stripes import StripeStore
from storage.write.pending import PendingVersion
from storage.write.redundancy import make_whole


class Appended(NamedTuple):
    """What was appended for a batch.

    Attributes:
        shards: all of it, by the slot of the store that was to have it.
        durable: what stores have confirmed to be durable, by their slot.
        began: epoch of the fleet before.
    """

    shards: Mapping[int, Sequence[Shard]]
    durable: Mapping[int, Sequence[Shard]]
    began: tuple[int, ...]

    @property
    def stripes(self) -> dict[StripeKey, None]:
        """The stripes of it."""
        return dict.fromkeys(StripeKey(stripe_of(shard.key)) for shards in self.shards.values() for shard in shards)


def make_batch_whole(stripes: StripeStore, batch: Sequence[PendingVersion], appended: Appended) -> None:
    """Make all stripes of a batch complete and durable. Does nothing if they are, or if the fleet has no stand-ins.

    Args:
        stripes: the store's stripes.
        batch: the versions of which something was written.
        appended: what was appended for them just now.

    Raises:
        InsufficientWorkers, StoreFull: see :func:`make_whole`.
    """
    volumes = stripes.volumes
    if not volumes.stand_ins:
        return
    since = volumes.epoch()
    doubtful = [pending for pending in batch if not volumes.lasts(pending.epoch)]
    if doubtful and not _are_whole(volumes, doubtful, appended):
        since = doubtful[0].epoch
    make_whole(stripes, lambda: _written(batch, appended), since)


def _are_whole(volumes: Fleet[Any], doubtful: Iterable[PendingVersion], appended: Appended) -> bool:
    """Whether these versions are complete without a look at the stores.

    What is in the batch was confirmed just now, and the parts of large files were durable before their versions came to
    the commit. They stay where they are if stores are only slow, even if they belong elsewhere now.
    """
    stripes = appended.stripes
    for pending in doubtful:
        if pending.written is None:
            stripes.update(dict.fromkeys(pending.stripes))
        elif not volumes.keeps(pending.epoch):
            return False
    durable = {(shard.key, slot) for slot, shards in appended.durable.items() for shard in shards}
    in_place = all(
        (shard_key(stripe, index), target) in durable
        for stripe in stripes
        for index, target in enumerate(volumes.targets(stripe))
    )
    return in_place and volumes.keeps(appended.began)


def _written(batch: Sequence[PendingVersion], appended: Appended) -> Iterator[StripeKey]:
    stripes = appended.stripes
    for pending in batch:
        stripes.update(dict.fromkeys(pending.stripes))
    yield from stripes
    for pending in batch:  # last, as large files have many stripes
        if pending.written is not None:
            yield from pending.written()
