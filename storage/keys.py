"""Keys of stored objects: what kind of thing, which bytes, coded how, which shard of it.

An *object* is a chunk of a file, a manifest node, a version, a tombstone or a volume's mark. Its stripe key is
``id(32) kind(1) k-1(1) n-1(1)``, a shard key adds ``slot(1)``. Keys start with the id so that they
sort by content hash; kinds are part of the key so that no user's chunk can pose as metadata.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, NewType

StripeKey = NewType("StripeKey", bytes)
ShardKey = NewType("ShardKey", bytes)

ID_BYTES = 32
STRIPE_KEY_BYTES = 35
SHARD_KEY_BYTES = 36

# One byte per value, made once: key building is on the path of every small push.
BYTE = tuple(bytes([value]) for value in range(256))


class Kind(IntEnum):
    """What a stored object is."""

    CHUNK = 1
    NODE = 2
    VERSION = 3
    TOMBSTONE = 4
    MARK = 5  # a volume's own: it is in no placement, and no file needs it


class StripeParts(NamedTuple):
    """A stripe key taken apart."""

    object_id: bytes
    kind: Kind
    k: int
    n: int


def stripe_key(kind: Kind, object_id: bytes, k: int, n: int) -> StripeKey:
    """Key of all shards of one object under a (k, n) code."""
    return StripeKey(object_id + BYTE[kind] + BYTE[k - 1] + BYTE[n - 1])


def split_stripe_key(key: bytes) -> StripeParts:
    """Inverse of :func:`stripe_key`; a shard key is accepted too, its slot ignored."""
    return StripeParts(key[:ID_BYTES], Kind(key[32]), key[33] + 1, key[34] + 1)


def shard_key(stripe: StripeKey, slot: int) -> ShardKey:
    """Key of the shard in ``slot`` (0…n-1) of a stripe."""
    return ShardKey(stripe + BYTE[slot])
