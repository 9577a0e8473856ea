"""Invariants, checked against what the simulated disks really hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache

from storage.erasure import ErasureProfile
from storage.keys import STRIPE_KEY_BYTES, ShardKey, StripeKey, shard_key
from tests.simulation.disk import MemoryVolume
from tests.simulation.model import Model
from tests.simulation.pool import Cluster
from tests.simulation.workers import Worker


class Violation(AssertionError):
    """An invariant is violated."""


def require(condition: bool, text: str) -> None:
    """Raise :class:`Violation` unless the condition holds."""
    if not condition:
        raise Violation(text)


@lru_cache(maxsize=10_000)
def shard_keys(stripe: StripeKey) -> tuple[ShardKey, ...]:
    """Return the keys of all shards of a stripe."""
    return tuple(shard_key(stripe, slot) for slot in range(stripe[34] + 1))


def readable(stripe: StripeKey, volumes: Iterable[MemoryVolume]) -> set[int]:
    """Return the slots of a stripe whose shard is good on some volume and wrong on none."""
    found: set[int] = set()
    wrong: set[int] = set()
    for slot, key in enumerate(shard_keys(stripe)):
        for volume in volumes:
            if key in volume.records_by_key:
                (found if volume.is_good(key) else wrong).add(slot)
    return found - wrong


def enough(stripe: StripeKey, volumes: Iterable[MemoryVolume]) -> bool:
    """Whether enough shards are readable to read the object."""
    return len(readable(stripe, volumes)) > stripe[33]


def _lasting(stripe: StripeKey, workers: Iterable[Worker]) -> set[int]:
    """Return the slots of a stripe whose correct shard these workers would still have after a power failure."""
    volumes = [worker.volume for worker in workers]
    keys = shard_keys(stripe)
    return {slot for slot in readable(stripe, volumes) if any(volume.is_durable(keys[slot]) for volume in volumes)}


def spare(cluster: Cluster, stripe: StripeKey) -> int:
    """Return how many more shards of a stripe the honest workers may lose before the object is lost."""
    return len(_lasting(stripe, cluster.honest())) - stripe[33] - 1


def bearable(cluster: Cluster, stripe: StripeKey, liars: Collection[Worker], gone: Collection[Worker] = ()) -> int:
    """Return how many more shards of a stripe faults may destroy, besides those that liars may hold at any time.

    A copy that an honest worker holds in a liar's place is dropped once the liar has returned the right bytes, and the
    next layout may give a liar another shard. So such copies do not allow for more than n - k faults in a stripe.

    Args:
        cluster: all workers.
        stripe: the stripe.
        liars: workers that lie, or are about to.
        gone: workers whose disks count as lost.
    """
    k, n = stripe[33] + 1, stripe[34] + 1
    honest = [worker for worker in cluster.honest() if worker not in liars and worker not in gone]
    lacking = set(range(n)) - _lasting(stripe, honest)
    theirs = lacking & _lasting(stripe, liars)
    # Placement ensures that liars hold no more shards of a stripe than may be lost at once.
    part = min(n - k, len(liars) * -(-n // len(cluster.workers)))
    return n - k - len(lacking - theirs) - max(len(theirs), part)


def can_do_without(cluster: Cluster, leaving: Collection[Worker], stripes: Iterable[StripeKey]) -> bool:
    """Whether no object is lost with these workers' disks: neither of a file, nor one that a push would reuse."""
    held = {StripeKey(key[:STRIPE_KEY_BYTES]) for worker in leaving for key in worker.volume.records_by_key}
    concerned = _concerned(cluster, leaving, stripes) & held
    liars = [worker for worker in cluster.workers if worker.liar and worker not in leaving]
    return all(bearable(cluster, stripe, liars, leaving) >= 0 for stripe in sorted(concerned))


def may_lie(cluster: Cluster, liars: Collection[Worker], stripes: Iterable[StripeKey]) -> bool:
    """Whether no object is lost if these workers lie from now on, whatever shards they get."""
    return all(bearable(cluster, stripe, liars) >= 0 for stripe in sorted(_concerned(cluster, liars, stripes)))


def _concerned(cluster: Cluster, leaving: Collection[Worker], stripes: Iterable[StripeKey]) -> set[StripeKey]:
    """Return these stripes and all damaged ones, as a push may reuse what is left of them."""
    others = [other for other in cluster.honest() if other not in leaving]
    wrong = {StripeKey(key[:STRIPE_KEY_BYTES]) for other in others for key in other.volume.wrong()}
    wrong |= {StripeKey(key[:STRIPE_KEY_BYTES]) for key in cluster.wounds}
    return wrong.union(stripes)


def excused(cluster: Cluster, key: ShardKey) -> bool:
    """Whether a fault has destroyed this shard, noticed or not."""
    if key in cluster.wounds:
        return True
    return any(key in w.volume.records_by_key and not w.volume.is_good(key) for w in cluster.honest())


def check_durable(cluster: Cluster, stripes: Iterable[StripeKey]) -> None:
    """Check that every shard is durable somewhere, except those that faults destroyed.

    Shards on lying workers count as missing; while a worker lies, the honest ones must have enough of every stripe.
    Liars may have more than their part while they stand in for a slow worker, if the pool says that fewer may be lost.
    """
    stripes = stripes if isinstance(stripes, dict) else dict.fromkeys(stripes)
    for key, volume in cluster.dropped.items():
        needed = StripeKey(key[:STRIPE_KEY_BYTES]) in stripes
        require(not needed, f"the last copy of shard {key[-1]} of {key.hex()[:12]} was dropped by volume {volume}")
    cluster.dropped.clear()
    honest = cluster.honest()
    keys = set[ShardKey]().union(*map(shard_keys, stripes))
    missing = sorted(keys.difference(cluster.wounds, *(worker.volume.durable for worker in honest)))
    if len(honest) < len(cluster.workers):
        for stripe in dict.fromkeys(StripeKey(key[:STRIPE_KEY_BYTES]) for key in missing):
            left = sum(any(key in worker.volume.durable for worker in honest) for key in shard_keys(stripe))
            enough_left = left > stripe[33] or _is_said_to_be_at_risk(cluster, stripe)
            require(enough_left, f"honest workers have too little of {stripe.hex()[:12]}")
        return
    for key in missing:
        require(excused(cluster, key), f"shard {key[-1]} of {key.hex()[:12]} is durable nowhere, and no fault took it")


def _is_said_to_be_at_risk(cluster: Cluster, stripe: StripeKey) -> bool:
    """Whether others stand in for a slow worker, and the pool says that it cannot lose as many workers as are lying."""
    fleet = cluster.pool.fleet
    liars = len(cluster.workers) - len(cluster.honest())
    return bool(fleet.slow()) and fleet.losses_survivable(ErasureProfile(stripe[33] + 1, stripe[34] + 1)) < liars


def check_spread(cluster: Cluster, stripes: Iterable[StripeKey]) -> None:
    """Check that any one worker may be lost without losing a stripe.

    Does nothing while a worker lies, as `check_durable` then already counts that worker as lost.
    """
    if len(cluster.honest()) < len(cluster.workers):
        return
    for stripe in stripes:
        keys = shard_keys(stripe)
        for lost in cluster.workers:
            others = [worker.volume for worker in cluster.workers if worker is not lost]
            left = sum(any(key in volume.durable for volume in others) or excused(cluster, key) for key in keys)
            require(left > stripe[33], f"{stripe.hex()[:12]} would not survive the loss of {lost.name}")


def check_spread_over(cluster: Cluster, stripes: Iterable[StripeKey], owned: Collection[Worker]) -> None:
    """Check that all workers of one owner may be lost without losing a stripe."""
    others = [worker.volume.durable for worker in cluster.workers if worker not in owned]
    for stripe in stripes:
        left = sum(any(key in durable for durable in others) or excused(cluster, key) for key in shard_keys(stripe))
        require(left > stripe[33], f"{stripe.hex()[:12]} would not survive the loss of all workers of one owner")


def check_in_place(cluster: Cluster, model: Model) -> None:
    """Check that every shard of every version is good and durable where the layout places it.

    A machine that was removed may still be in the layout if too few others are left.
    """
    fleet = cluster.pool.fleet
    by_name = {worker.name: worker for worker in cluster.workers}
    for stripe in model.stripes():
        for slot, holders in enumerate(zip(fleet.targets(stripe), fleet.places(stripe), strict=True)):
            names = {fleet.name(holder) for holder in holders}
            key = shard_key(stripe, slot)
            there = any(by_name[name].volume.is_durable(key) for name in names if name in by_name)
            require(there, f"shard {slot} of {stripe.hex()[:12]} is not on {' or '.join(names)}, where it belongs")
