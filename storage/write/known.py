"""Content that is already stored, so that a push need not send or write it again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from storage.erasure import ErasureProfile
from storage.errors import StorageError
from storage.fleet.fleet import Fleet
from storage.keys import StripeKey, data_shards, object_id_of, shard_count
from storage.limits import BytesLike
from storage.stripes.stripes import chunk_stripe
from storage.write.context import PushContext
from storage.write.padding import padded
from storage.write.target import PushTarget


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


def held_otherwise(context: PushContext, target: PushTarget, chunk_id: bytes) -> tuple[StripeKey, int] | None:
    """Find a chunk that this user has with another profile than the target's: as copies, or as shards.

    Returns:
        Its stripe, which is pinned, and its length; None if the user does not have it.
    """
    for profile in target.copies.others(target.profile):
        stripe = chunk_stripe(chunk_id, profile)
        context.pins.pin(stripe)
        try:
            length = held_length(context, target.user, stripe)
        except BaseException:
            context.pins.unpin([stripe])
            raise
        if length is not None:
            return stripe, length
        context.pins.unpin([stripe])
    return None


def content_held_otherwise(context: PushContext, target: PushTarget, chunk_id: bytes) -> bytes | None:
    """Return the content of a chunk that this user has with another profile; None if the user does not have it."""
    found = held_otherwise(context, target, chunk_id)
    if found is None:
        return None
    stripe, length = found
    try:
        return context.stripes.read(stripe) if length <= target.chunk_size else None
    finally:
        context.pins.unpin([stripe])


def write_missing(context: PushContext, stripe: StripeKey, data: BytesLike) -> bool:
    """Append the shards of a chunk that are not stored, or not sound. They are not durable yet.

    Returns:
        Whether there were any.
    """
    stripes = context.stripes
    if stripes.absent_slots(stripe):
        stripes.put_absent(stripe, padded(data, data_shards(stripe)), len(data))
    elif not stripes.is_sound(stripe, len(data)):
        stripes.put_unsound(stripe, padded(data, data_shards(stripe)), len(data))
    else:
        return False
    return True


def survives_a_loss(stripe: StripeKey, absent: Sequence[int]) -> bool:
    """Whether a stripe without these shards could still be read after the loss of another one."""
    return shard_count(stripe) - len(absent) > data_shards(stripe)


def usable_chunks(
    context: PushContext, user: bytes, chunk_ids: Sequence[bytes], profiles: Iterable[ErasureProfile]
) -> set[bytes]:
    """Return those chunks that this user has a claim on, and that are complete, or as complete as possible now.

    Args:
        context: parts of the store.
        user: key of the user.
        chunk_ids: ids of the chunks.
        profiles: the profiles with which a chunk may be stored, the likeliest first.
    """
    usable: set[bytes] = set()
    for profile in profiles:
        stripes = [chunk_stripe(chunk_id, profile) for chunk_id in chunk_ids if chunk_id not in usable]
        usable.update(map(object_id_of, _usable_stripes(context, user, stripes)))
    return usable


def _usable_stripes(context: PushContext, user: bytes, stripes: Sequence[StripeKey]) -> set[StripeKey]:
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
