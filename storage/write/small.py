"""Small files: pushed in one step, with their shards appended by the commit."""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from storage.formats.manifest import ROOT_FORMAT, TRANSFORM_IDENTITY, RootNode
from storage.formats.versions import Version
from storage.keys import BYTE, Kind, StripeKey, data_shards, object_id_of
from storage.limits import BytesLike
from storage.shards import Shard
from storage.write.context import PushContext
from storage.write.known import is_new
from storage.write.pending import PendingVersion
from storage.write.target import PushTarget


def push_small(context: PushContext, target: PushTarget, data: BytesLike) -> Version:
    """Push up to 64 KiB in one step, like an :class:`Upload` without what only large files need."""
    stripe = inline_stripe(data, BYTE[Kind.CHUNK] + BYTE[target.profile.k - 1] + BYTE[target.profile.n - 1])
    root = root_of_one(target, data, [stripe])
    context.activity.note()
    context.pins.pin(stripe)
    try:
        shards = inline_shards(context, stripe, data)
        pending = PendingVersion(
            target=target,
            root=root,
            nodes=[],
            stripes=[stripe],
            shards=shards,
            file_id=None,
            base=None,
            epoch=target.epoch,
        )
        return context.commits.commit(pending).public()
    finally:
        context.pins.unpin([stripe])


def root_of_one(target: PushTarget, data: BytesLike, stripes: Sequence[StripeKey]) -> RootNode:
    """Return the manifest root of a file of one chunk, or of an empty one, which has no stripe."""
    return RootNode(
        ROOT_FORMAT,
        len(data),
        target.chunk_size,
        target.profile.k,
        target.profile.n,
        TRANSFORM_IDENTITY,
        0,
        b"".join(map(object_id_of, stripes)),
    )


def inline_stripe(data: BytesLike, suffix: bytes) -> StripeKey:
    """Return the stripe key of a chunk with this data; ``suffix`` is the kind and the profile."""
    return StripeKey(blake3(data).digest() + suffix)


def inline_shards(context: PushContext, stripe: StripeKey, data: BytesLike) -> dict[int, list[Shard]]:
    """Return the shards of a small chunk that have to be written, by volume slot."""
    stripes = context.stripes
    known = None if is_new(context, stripe) else stripes.look_for(stripe)
    absent, targets = (None, None) if known is None else (known.slots, known.targets)
    unsound = absent == [] and not stripes.is_sound(stripe, len(data))
    if absent == [] and not unsound:
        return {}
    k, length = data_shards(stripe), len(data)
    whole = k * -(-length // k)
    padded = data if whole == length else bytes(data) + bytes(whole - length)
    shards = stripes.shards_of(stripe, padded, length)
    if unsound:
        absent, targets = stripes.unsound_slots(stripe, shards), None
    return stripes.by_volume(stripe, shards if absent is None else [shards[slot] for slot in absent], targets)
