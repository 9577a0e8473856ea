"""Keys of stored objects: the object's id and kind, its erasure code, and the number of the shard.

An *object* is a chunk of a file, a manifest node, a version, a tombstone or a volume's mark. Its stripe key is
``id(32) kind(1) k-1(1) n-1(1)``; a shard key adds ``slot(1)``. Keys start with the id so that they
sort by content hash. They contain the kind so that no user's chunk can pass as metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from struct import Struct
from typing import NamedTuple, NewType, cast, overload

StripeKey = NewType("StripeKey", bytes)
ShardKey = NewType("ShardKey", bytes)

ID_BYTES = 32
SHARD_HASH_BYTES = 16
"""How much is kept of the hash of a shard that a client wrote."""
STRIPE_KEY_BYTES = 35
SHARD_KEY_BYTES = 36

# All single bytes, created once, since every small push builds keys.
BYTE = tuple(bytes([value]) for value in range(256))


class Kind(IntEnum):
    """The kind of a stored object."""

    CHUNK = 1
    NODE = 2
    VERSION = 3
    TOMBSTONE = 4
    MARK = 5  # belongs to one volume: it has no placement, and no file needs it


class StripeParts(NamedTuple):
    """A stripe key taken apart."""

    object_id: bytes
    kind: Kind
    k: int
    n: int


def stripe_key(kind: Kind, object_id: bytes, k: int, n: int) -> StripeKey:
    """The key of an object under a (k, n) code; the keys of its shards begin with it."""
    return StripeKey(object_id + BYTE[kind] + BYTE[k - 1] + BYTE[n - 1])


def split_stripe_key(key: bytes) -> StripeParts:
    """Inverse of :func:`stripe_key`. Also accepts a shard key, and ignores its slot."""
    return StripeParts(key[:ID_BYTES], Kind(key[32]), key[33] + 1, key[34] + 1)


def object_id_of(key: bytes) -> bytes:
    """The id of the object in a stripe key or a shard key."""
    return key[:ID_BYTES]


def kind_of(key: bytes) -> int:
    """The kind in a stripe key or a shard key, as a number that may not be a valid :class:`Kind`."""
    return key[32]


def data_shards(key: bytes) -> int:
    """The k in a stripe key or a shard key: how many shards are enough to decode the object."""
    return key[33] + 1


def shard_count(key: bytes) -> int:
    """The n in a stripe key or a shard key: how many shards the object has."""
    return key[34] + 1


def stripe_of(key: bytes) -> StripeKey:
    """The stripe key in a shard key."""
    return StripeKey(key[:STRIPE_KEY_BYTES])


def slot_of(key: bytes) -> int:
    """The number of the shard within its stripe, from 0, in a shard key."""
    return key[35]


def shard_key(stripe: StripeKey, slot: int) -> ShardKey:
    """Key of the shard in ``slot`` (0…n-1) of a stripe."""
    return ShardKey(stripe + BYTE[slot])


_KEY = Struct(f"{SHARD_KEY_BYTES}s")


class PackedKeys(Sequence[ShardKey]):
    """Shard keys concatenated in one buffer, so that millions can be passed on without an object for each.

    Args:
        packed: the concatenated keys.
    """

    __slots__ = ("packed",)

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed) // SHARD_KEY_BYTES

    @overload
    def __getitem__(self, index: int) -> ShardKey: ...
    @overload
    def __getitem__(self, index: slice) -> PackedKeys: ...

    def __getitem__(self, index: int | slice) -> ShardKey | PackedKeys:
        where = range(len(self))[index]
        if isinstance(where, int):
            return ShardKey(self.packed[where * SHARD_KEY_BYTES : (where + 1) * SHARD_KEY_BYTES])
        if where.step != 1:
            return PackedKeys(b"".join(self[at] for at in where))
        return PackedKeys(self.packed[where.start * SHARD_KEY_BYTES : where.stop * SHARD_KEY_BYTES])

    def __iter__(self) -> Iterator[ShardKey]:
        return cast("Iterator[ShardKey]", (key for (key,) in _KEY.iter_unpack(self.packed)))


def packed_keys(keys: Sequence[ShardKey]) -> bytes:
    """The concatenated keys."""
    return keys.packed if isinstance(keys, PackedKeys) else b"".join(keys)


def packed_shard_keys(stripes: Sequence[StripeKey], slot: int) -> bytes:
    """The concatenated keys of the shards in ``slot`` of some stripes."""
    end = BYTE[slot]
    return end.join(stripes) + end if stripes else b""
