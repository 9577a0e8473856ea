"""Content that is already stored, so that a push need not send or write it again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from storage.erasure import ErasureProfile
from storage.errors import InvalidArgument, StorageError
from storage.fleet.fleet import Fleet
from storage.formats.manifest import plain_id, stored_id
from storage.keys import StripeKey, data_shards, object_id_of, shard_count
from storage.sealing.user_keys import UserKey
from storage.stripes.stripes import chunk_stripe
from storage.write.chunks import StoredChunk, content_length, stripe_to
from storage.write.context import PushContext
from storage.write.target import PushTarget
from storage.write.unverified import is_verified, vouch


def is_new(context: PushContext, stripe: StripeKey) -> bool:
    """Whether a stripe counts as not stored. It may still be stored; writing it again does no harm.

    If asking the stores takes a round trip, the catalog decides: a stripe counts as new if nobody has a claim on it and
    it was not written a moment ago. So does one that a client wrote, and nobody verified.
    """
    if not context.stripes.volumes.remote:
        return context.stripes.is_new(stripe)
    if not context.catalog.is_held(stripe):
        return not context.stripes.was_put_lately(stripe)
    # Also if it was put a moment ago: a collect may have removed that before the client wrote.
    return bool(context.catalog.unverified(stripe))


def reference_held(context: PushContext, target: PushTarget, chunk_id: bytes) -> bytes | None:
    """Return the reference to a chunk, if this user may have it stored with the target's key.

    Args:
        context: parts of the store.
        target: the file.
        chunk_id: hash of the chunk's content.
    """
    return references_held(context, target.key, [chunk_id])[0]


def references_held(context: PushContext, key: UserKey | None, chunk_ids: Sequence[bytes]) -> list[bytes | None]:
    """Like :func:`reference_held`, for several chunks."""
    if key is None:
        return list(chunk_ids)
    named = context.catalog.chunks_named([key.name_of(chunk_id) for chunk_id in chunk_ids])
    return [None if found is None else one + found for one, found in zip(chunk_ids, named, strict=True)]


def content_of_held(context: PushContext, target: PushTarget, stripe: StripeKey, reference: bytes) -> bytes:
    """Return the content of a chunk that this user has, stored with the target's key."""
    return context.contents.read(stripe, plain_id(reference), target.keys)


def held_length(context: PushContext, target: PushTarget, stripe: StripeKey, chunk_id: bytes) -> int | None:
    """Return the length of a chunk's content if this user has a claim on it, and its shards are stored and sound.

    A sealed chunk is opened, and its content compared with ``chunk_id``, if this process has not done that yet.

    Otherwise return None.

    In a fleet without stand-ins, a few missing shards are made again. Those that their stores still refuse count as
    missing at the commit.
    """
    if not context.catalog.holds(target.user, [stripe])[0]:
        return None
    stripes = context.stripes
    absent = stripes.absent_slots(stripe)
    if absent:
        is_enough = not stripes.volumes.stand_ins and survives_a_loss(stripe, absent)
        if not is_enough or isinstance(stripes.heal_all([stripe], at_once=True)[0], StorageError):
            return None
    length = stripes.object_length(stripe)
    if length is None or not is_verified(context, target.user, stripe, chunk_id, target.key, length):
        return None
    return content_length(length, is_sealed=target.key is not None)


def held_otherwise(context: PushContext, target: PushTarget, reference: bytes) -> tuple[StripeKey, int] | None:
    """Find a chunk that this user has with another profile than the target's: as copies, or as shards.

    Returns:
        Its stripe, which is pinned, and the length of its content; None if the user does not have it.
    """
    for profile in target.copies.others(target.profile):
        stripe = stripe_to(reference, profile)
        context.pins.pin(stripe)
        try:
            length = held_length(context, target, stripe, plain_id(reference))
        except BaseException:
            context.pins.unpin([stripe])
            raise
        if length is not None:
            return stripe, length
        context.pins.unpin([stripe])
    return None


def content_held_otherwise(context: PushContext, target: PushTarget, reference: bytes) -> bytes | None:
    """Return the content of a chunk that this user has with another profile; None if the user does not have it."""
    found = held_otherwise(context, target, reference)
    if found is None:
        return None
    stripe, length = found
    try:
        return content_of_held(context, target, stripe, reference) if length <= target.chunk_size else None
    finally:
        context.pins.unpin([stripe])


def write_missing(context: PushContext, chunk: StoredChunk) -> bool:
    """Append the shards of a chunk that are not stored, or not sound. They are not durable yet.

    Returns:
        Whether there were any.
    """
    stripes = context.stripes
    if context.catalog.unverified(chunk.stripe):
        stripes.put(chunk.stripe, chunk.data, chunk.length)
    elif stripes.absent_slots(chunk.stripe):
        stripes.put_absent(chunk.stripe, chunk.data, chunk.length)
    elif not stripes.is_sound(chunk.stripe, chunk.length):
        stripes.put_unsound(chunk.stripe, chunk.data, chunk.length)
    else:
        return False
    return True


def survives_a_loss(stripe: StripeKey, absent: Sequence[int]) -> bool:
    """Whether a stripe without these shards could still be read after the loss of another one."""
    return shard_count(stripe) - len(absent) > data_shards(stripe)


def usable_chunks(
    context: PushContext,
    user: bytes,
    chunk_ids: Sequence[bytes],
    profiles: Iterable[ErasureProfile],
    key: UserKey | None = None,
) -> set[bytes]:
    """Return those chunks that this user has a claim on, and that are complete, or as complete as possible now.

    Args:
        context: parts of the store.
        user: key (in the catalog) of the user.
        chunk_ids: hashes of the chunks' contents.
        profiles: the profiles with which a chunk may be stored, the likeliest first.
        key: the user's key with which they must be sealed; None: they must not be sealed.
    """
    held = references_held(context, key, chunk_ids)
    stored = {stored_id(reference): plain_id(reference) for reference in held if reference is not None}
    usable: set[bytes] = set()
    verified: list[StripeKey] = []
    for profile in profiles:
        stripes = [chunk_stripe(one, profile) for one in stored if one not in usable]
        whole = _whole_stripes(context, user, stripes)
        usable.update(
            object_id_of(one)
            for one in whole
            if _is_verified(context, user, one, stored[object_id_of(one)], key, verified)
        )
    vouch(context, user, verified)
    return {stored[one] for one in usable}


def _whole_stripes(context: PushContext, user: bytes, stripes: Sequence[StripeKey]) -> list[StripeKey]:
    """Those that the user has a claim on, and that are complete, or as complete as possible now."""
    held = context.catalog.holds(user, stripes)
    ours = [stripe for stripe, holds in zip(stripes, held, strict=True) if holds]
    refusing = _refusing(context.stripes.volumes)
    return [
        stripe
        for stripe, absent in zip(ours, context.stripes.absent(ours), strict=True)
        if not absent or (refusing and _is_as_whole_as_can_be(context.stripes.volumes, stripe, absent, refusing))
    ]


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


def _is_verified(
    context: PushContext,
    user: bytes,
    stripe: StripeKey,
    chunk_id: bytes,
    key: UserKey | None,
    verified: list[StripeKey],
) -> bool:
    length = context.stripes.object_length(stripe)
    return length is not None and is_verified(context, user, stripe, chunk_id, key, length, verified)


def not_held(chunk_id: bytes) -> InvalidArgument:
    """Return the error for a chunk that is named without its bytes, but not stored for this user."""
    return InvalidArgument(f"chunk {chunk_id.hex()} is not available to this user; send its bytes")
