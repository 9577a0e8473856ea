"""Content that is stored already: what a push may count on without sending or writing it again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, shard_count
from storage.write.context import PushContext


def is_new(context: PushContext, stripe: StripeKey) -> bool:
    """Whether a stripe is not stored; it may be all the same, and writing it again does no harm.

    Where asking the stores costs a round trip, the catalog tells: what nobody has a claim on is not
    counted on to be there, unless it was put there a moment ago.
    """
    if not context.stripes.volumes.remote:
        return context.stripes.is_new(stripe)
    return not context.stripes.was_put_lately(stripe) and not context.catalog.is_held(stripe)


def held_length(context: PushContext, user: bytes, stripe: StripeKey) -> int | None:
    """Length of a chunk if this user has a claim on it and its shards are there and sound, else None.

    A few that are missing are made again, where nobody stands in for stores that were away or full: those that their
    stores do not take now either count as missing at the commit.
    """
    if not context.catalog.holds(user, [stripe])[0]:
        return None
    stripes = context.stripes
    absent = stripes.absent_slots(stripe)
    if absent:
        is_enough = not stripes.volumes.stand_ins and survives_a_loss(stripe, absent)
        if not is_enough or isinstance(stripes.heal_all([stripe], at_once=True)[0], StorageError):
            return None
    length = stripes.object_length(stripe)
    return length if length is not None and stripes.is_sound(stripe, length) else None


def survives_a_loss(stripe: StripeKey, absent: Sequence[int]) -> bool:
    """Whether a stripe without these shards can be read after the loss of one more."""
    return shard_count(stripe) - len(absent) > data_shards(stripe)


def usable_stripes(context: PushContext, user: bytes, stripes: Sequence[StripeKey]) -> set[StripeKey]:
    """Those of some chunks that this user has a claim on, and that are whole, or as whole as they can be now."""
    held = context.catalog.holds(user, stripes)
    ours = [stripe for stripe, holds in zip(stripes, held, strict=True) if holds]
    refusing = _refusing(context.stripes.volumes)
    whole = [
        stripe
        for stripe, absent in zip(ours, context.stripes.absent(ours), strict=True)
        if not absent or (refusing and _is_as_whole_as_can_be(context.stripes.volumes, stripe, absent, refusing))
    ]
    return {stripe for stripe in whole if _is_sound(context, stripe)}


def _refusing(volumes: Fleet[Any]) -> set[int]:
    """Volumes that take no writes now, if nobody stands in for them: sending content again brings none there."""
    if volumes.stand_ins:
        return set()
    return {slot for slot in volumes.slots if volumes.volume(slot) is None or volumes.takes_no_writes(slot)}


def _is_as_whole_as_can_be(
    volumes: Fleet[Any], stripe: StripeKey, absent: Sequence[int], refusing: Collection[int]
) -> bool:
    holders = volumes.holders(stripe)
    return survives_a_loss(stripe, absent) and all(holders[slot] in refusing for slot in absent)


def _is_sound(context: PushContext, stripe: StripeKey) -> bool:
    length = context.stripes.object_length(stripe)
    return length is not None and context.stripes.is_sound(stripe, length)
