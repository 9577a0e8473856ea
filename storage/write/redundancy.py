"""A push is whole before its commit, whichever stores went away, and whatever was removed, meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from storage.batching import batched
from storage.erasure import profile_for
from storage.errors import DataLossError, IncompletePush, InsufficientWorkers, ShardsUnavailable, StorageError
from storage.keys import ID_BYTES, StripeKey, data_shards, object_id_of, shard_count
from storage.stripes.stripes import StripeStore

_AT_ONCE = 256
ROUNDS_MAX = 16  # workers that come and go faster than that keep no push waiting for ever


def settle(
    stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...], *, removals: bool
) -> tuple[int, ...]:
    """Have everything a push counts on where it belongs, durably, just before its commit.

    Args:
        stripes: where its shards are.
        written: gives every stripe the push counts on.
        since: the fleet's epoch when the first of it was written.
        removals: whether anything was removed from the stores since the push began.

    Returns:
        The epoch for which it is whole.

    Raises:
        InsufficientWorkers, StoreFull, IncompletePush: see :func:`make_whole` and
            :func:`require_whole`.
    """
    since = make_whole(stripes, written, since)
    if not removals:
        return since
    require_whole(stripes, written)
    return make_whole(stripes, written, since)  # stores may have come and gone meanwhile


def make_whole(
    stripes: StripeStore, written: Callable[[], Iterable[StripeKey]], since: tuple[int, ...]
) -> tuple[int, ...]:
    """Put the shards that went to stores lost since on others, durably, so that all n are there again.

    Does nothing where no store went away, or where none stands in for another.

    Args:
        stripes: where they are.
        written: gives every stripe the push counts on.
        since: the fleet's epoch when the first of it was written.

    Returns:
        The epoch for which it is whole.

    Raises:
        InsufficientWorkers: too many stores were lost meanwhile, or they come and go all the time.
        StoreFull: too few have space for it.
    """
    volumes = stripes.volumes
    rounds = 0
    while volumes.stand_ins and since != volumes.epoch():
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
                    # They may all be full.
                    volumes.require_writable(profile_for(data_shards(stripe), shard_count(stripe)))
                    raise _gone(lost)
        volumes.sync_each()
    return since


def require_whole(stripes: StripeStore, written: Callable[[], Iterable[StripeKey]]) -> None:
    """See that everything a push counts on is on the stores that are there; make up for shards that are not.

    Raises:
        IncompletePush: too few shards of something are left.
        InsufficientWorkers: too few are within reach; or see :func:`make_whole`.
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
        volumes.sync_each()
        make_whole(stripes, written, since)  # stores may have refused it, or gone away with it


def restless() -> InsufficientWorkers:
    """Why a push is given up whose stores change faster than it can be made whole."""
    return InsufficientWorkers("workers came and went, or refused shards, all the while; push again")


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
