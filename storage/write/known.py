"""Content that is already stored, so that a push need not send or write it again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, shard_count
from storage.write.context import PushContext


def is_new(context: PushContext, stripe: StripeKey) -> bool:
    """Whether a stripe counts as not stored. It may still be stored; writing it again does no harm.

    If asking the stores takes a round trip, the catalog decides: a stripe counts as new if nobody has a claim on it and
    it was not written a moment ago.
    """
    if not context.stripes.volumes.remote:
        return context.stripes.is_new(stripe)
    return not context.stripes.was_put_lately(stripe) and not context.catalog.is_held(stripe)


def held_length(context: PushContext, user: bytes, stripe: StripeKey) -> int | None:
    """Return the length of a chunk if this user has a claim on it and its shards are stored and sound, else None.

    In a fleet without stand-ins, a few missing shards are made again. Those that their stores still refuse count as
    missing at the commit.
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
    """Whether a stripe without these shards could still be read after the loss of another one."""
    return shard_count(stripe) - len(absent) > data_shards(stripe)


def usable_stripes(context: PushContext, user: bytes, stripes: Sequence[StripeKey]) -> set[StripeKey]:
    """Return those chunks that this user has a claim on, and that are complete, or as complete as possible now."""
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
    """Return the volumes that take no writes now and have no stand-ins: sending content again would not help."""
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
