"""Chunks as they are stored: the content itself or, for a target with a key, sealed."""

from __future__ import annotations

from typing import NamedTuple

from blake3 import blake3

from storage.erasure import ErasureProfile
from storage.formats.manifest import stored_id
from storage.keys import BYTE, Kind, StripeKey, object_id_of
from storage.limits import BytesLike
from storage.sealing.objects import OVERHEAD_BYTES, seal_into
from storage.sealing.user_keys import UserKey
from storage.stripes.contents import Scratch
from storage.stripes.stripes import chunk_stripe
from storage.write.padding import padded


class StoredChunk(NamedTuple):
    """A chunk as it is stored.

    Attributes:
        stripe: its stripe.
        plain_id: hash of its content.
        data: the bytes to store, zero-padded to a multiple of k.
        length: how many of them are the object.
    """

    stripe: StripeKey
    plain_id: bytes
    data: BytesLike
    length: int


def lasting_bytes(target_key: UserKey | None, chunk: StoredChunk) -> BytesLike | None:
    """Return the bytes of a chunk from :func:`stored_chunk`, if nobody can change them any more."""
    if target_key is None and not isinstance(chunk.data, bytes):
        return None
    return chunk.data if len(chunk.data) == chunk.length else memoryview(chunk.data)[: chunk.length]


class AcceptedChunk(NamedTuple):
    """A chunk that is stored: its stripe, the hash of its content, and the length of its content in bytes."""

    stripe: StripeKey
    plain_id: bytes
    length: int


def stored_chunk(key: UserKey | None, profile: ErasureProfile, content: BytesLike) -> StoredChunk:
    """Return a chunk as it is stored.

    Args:
        key: the owner's key; None: it is not sealed.
        profile: its erasure profile.
        content: its content, 1 byte or more; must not change while the result is used.
    """
    plain_id = blake3(content).digest()
    if key is None:
        return StoredChunk(chunk_stripe(plain_id, profile), plain_id, padded(content, profile.k), len(content))
    length = len(content) + OVERHEAD_BYTES
    data = memoryview(bytearray(profile.k * profile.shard_length(length)))
    seal_into(key, Kind.CHUNK, plain_id, content, data[:length])
    return StoredChunk(chunk_stripe(blake3(data[:length]).digest(), profile), plain_id, data, length)


def passing_chunk(key: UserKey | None, suffix: bytes, data: memoryview, length: int, scratch: Scratch) -> StoredChunk:
    """Like :func:`stored_chunk`, without new memory: sealed bytes are valid until this thread's next call.

    Args:
        key: the owner's key; None: it is not sealed.
        suffix: what follows the id in the stripe's key.
        data: the content, zero-padded to a multiple of k.
        length: length of the content.
        scratch: memory for sealed bytes.
    """
    content = data[:length]
    plain_id = blake3(content).digest()
    if key is None:
        return StoredChunk(StripeKey(plain_id + suffix), plain_id, data, length)
    k, sealed_length = suffix[1] + 1, length + OVERHEAD_BYTES
    space = scratch.of(-(-sealed_length // k) * k)
    seal_into(key, Kind.CHUNK, plain_id, content, space[:sealed_length])
    space[sealed_length:] = bytes(len(space) - sealed_length)
    return StoredChunk(StripeKey(blake3(space[:sealed_length]).digest() + suffix), plain_id, space, sealed_length)


def suffix_of(profile: ErasureProfile) -> bytes:
    """Return what follows the id in the stripe keys of chunks with a profile."""
    return BYTE[Kind.CHUNK] + BYTE[profile.k - 1] + BYTE[profile.n - 1]


def reference_to(key: UserKey | None, stripe: StripeKey, plain_id: bytes) -> bytes:
    """Return the reference by which a manifest names a chunk."""
    return plain_id if key is None else plain_id + object_id_of(stripe)


def stripe_to(reference: bytes, profile: ErasureProfile) -> StripeKey:
    """Return the stripe of a chunk that a manifest names."""
    return chunk_stripe(stored_id(reference), profile)


def content_length(length: int, *, is_sealed: bool) -> int:
    """Return the length of a chunk's content, given that of the stored object."""
    return length - OVERHEAD_BYTES if is_sealed else length
