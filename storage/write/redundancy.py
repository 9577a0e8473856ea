"""Makes a push complete before its commit: replaces shards on stores that went away, or that were removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from storage.batching import batched
from storage.erasure import profile_for
from storage.errors import DataLossError, IncompletePush, InsufficientWorkers, ShardsUnavailable, StorageError
from storage.keys import ID_BYTES, StripeKey, data_shards, object_id_of, shard_count
from storage.stripes.stripes import StripeStore

_AT_ONCE = 256
ROUNDS_MAX = 16  # so that workers that keep coming and going do not delay a push for ever


def settle(
    stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...], *, removals: bool
) -> tuple[int, ...]:
    """Just before a commit, make all stripes of the push complete and durable.

    Args:
        stripes: the store's stripes.
        written: yields every stripe that the push needs.
        since: epoch of the fleet when the first of them was written.
        removals: whether anything was removed from the stores since the push began.

    Returns:
        An epoch since which the push is complete.

    Raises:
        InsufficientWorkers, StoreFull, IncompletePush: see :func:`make_whole` and
            :func:`require_whole`.
    """
    since = make_whole(stripes, written, since)
    if not removals:
        return since
    require_whole(stripes, written)
    return make_whole(stripes, written, since)  # stores may have come or gone meanwhile


def make_whole(
    stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...]
) -> tuple[int, ...]:
    """Write the shards on stores lost since ``since`` to other stores, durably, so that all n exist again.

    Does nothing if all that was written still counts (:meth:`Fleet.lasts`), or if the fleet has no stand-ins.

    Args:
        stripes: the store's stripes.
        written: yields every stripe that the push needs.
        since: epoch of the fleet when the first of them was written.

    Returns:
        An epoch since which the push is complete.

    Raises:
        InsufficientWorkers: too many stores were lost, or stores kept coming and going.
        StoreFull: too few stores have space.
    """
    volumes = stripes.volumes
    rounds = 0
    while volumes.stand_ins and not volumes.lasts(since):
        rounds += 1
        if rounds > ROUNDS_MAX:
            raise restless()
        since = volumes.epoch()
        for batch in batched(written(), _AT_ONCE):
            lacking = [stripe for stripe, absent in zip(batch, stripes.absent(batch), strict=True) if absent]
            for group in batched(lacking, stripes.mended_together):
                made = zip(group, stripes.heal_all(group, at_once=True), strict=True)
                lost, stripe = next(
                    ((one, stripe) for stripe, one in made if isinstance(one, StorageError)), (None, b"")
                )
                if lost is not None:
                    # Raises StoreFull if too many stores are full.
                    volumes.require_writable(profile_for(data_shards(stripe), shard_count(stripe)))
                    raise _gone(lost)
        volumes.sync_most()
    return since


def require_whole(stripes: StripeStore, written: Callable[[], Iterable[StripeKey]]) -> None:
    """Check that all stripes of a push are complete on the present stores; make missing shards again.

    Raises:
        IncompletePush: too few shards of a stripe are left.
        InsufficientWorkers: too few shards are within reach; or see :func:`make_whole`.
        StoreFull: see :func:`make_whole`.
    """
    volumes = stripes.volumes
    since = volumes.epoch()
    made = 0
    for batch in batched(written(), _AT_ONCE):
        lacking = []
        for stripe, absent in zip(batch, stripes.absent(batch), strict=True):
            targets = volumes.targets(stripe)
            here = sum(volumes.volume(targets[slot]) is not None for slot in absent)
            if here or len(targets) - len(absent) <= stripe[ID_BYTES + 1]:
                lacking.append(stripe)
        for group in batched(lacking, stripes.mended_together):
            for stripe, outcome in zip(group, stripes.heal_all(group, at_once=True), strict=True):
                if isinstance(outcome, StorageError):
                    raise _not_whole(stripe, outcome)
                made += outcome[0]
    if made:
        volumes.sync_most()
        make_whole(stripes, written, since)  # stores may have refused these shards, or gone away with them


def restless() -> InsufficientWorkers:
    """Return the error for a push whose stores change faster than it can be made complete."""
    return InsufficientWorkers("workers kept coming and going, or refused shards; push again")


def _not_whole(stripe: StripeKey, error: StorageError) -> StorageError:
    if isinstance(error, DataLossError):
        return IncompletePush(
            f"a part of this push ({object_id_of(stripe).hex()}) was removed before it was committed, so nothing was "
            "stored; push again"
        )
    return _gone(error) if isinstance(error, ShardsUnavailable) else error


def _gone(error: StorageError) -> InsufficientWorkers:
    return InsufficientWorkers(
        f"workers that held parts of this push went away before it was committed ({error}); push again"
    )
