"""Messages with which a worker is told to make shards by itself, and to prove what it holds.

All numbers are little-endian. A Make request:

==========================  =======================================================================================
length, name                1 byte, and the name of the process that is meant, as in an append
then for each stripe:
stripe key                  35 bytes
object length               8 bytes
wanted                      1 byte: how many shards less one; then a byte each, their slots, ascending
sources                     2 bytes: how many; then each: slot (1), length of the address (2), address (empty: the
                            worker that makes the shards has this one)
==========================  =======================================================================================

The answer is a stream with a message for each stripe, in order: a byte, see :class:`Result`, and if the shards were
made, the BLAKE3 hash of each (32).

A Prove request is a key for BLAKE3 (32), and shard keys. The answer has 32 bytes for each: the hash of the payload with
that key, or zeros if the shard is not there or cannot be read.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from storage.keys import STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey, data_shards, shard_count
from storage.limits import MIB
from taskworker.transport.frames import OBJECT_BYTES_MAX, FrameError, join_keys, parse_keys

STRIPES_MAX = 64
"""How many stripes a request has at most."""
REQUEST_BYTES_MAX = 2 * MIB
ADDRESS_BYTES_MAX = 512
DIGEST_BYTES = 32
NONCE_BYTES = 32
OWN = ""
ABSENT_PROOF = bytes(DIGEST_BYTES)

_HEAD = struct.Struct(f"<{STRIPE_KEY_BYTES}sQB")
_COUNT = struct.Struct("<H")
_SOURCE = struct.Struct("<BH")
_KINDS = frozenset((Kind.CHUNK, Kind.NODE, Kind.VERSION, Kind.TOMBSTONE))


class Result(IntEnum):
    """What became of a stripe."""

    MADE = 0
    TOO_FEW = 1
    """Too few sources gave their shards."""
    NO_OBJECT = 2
    """What they gave is not the object."""
    BUSY = 3
    """There is no memory for it now."""


class Source(NamedTuple):
    """Where to fetch a shard: its slot, and the address of a worker's volume; OWN: the volume that makes shards."""

    slot: int
    address: str


class MakeOrder(NamedTuple):
    """A stripe of a Make request.

    Attributes:
        stripe: stripe key of the object.
        length: length of the object in bytes.
        slots: slots of the wanted shards, ascending.
        sources: where to fetch shards, best first; at most one for each slot.
    """

    stripe: StripeKey
    length: int
    slots: tuple[int, ...]
    sources: tuple[Source, ...]


class MakeRequest(NamedTuple):
    """A received request; ``instance`` is the process that it is meant for, empty: any."""

    instance: bytes
    orders: list[MakeOrder]


def pack_make(instance: bytes, orders: Sequence[MakeOrder]) -> bytes:
    """Serialize a request."""
    parts = [bytes([len(instance)]), instance]
    for order in orders:
        parts.append(_HEAD.pack(order.stripe, order.length, len(order.slots) - 1) + bytes(order.slots))
        parts.append(_COUNT.pack(len(order.sources)))
        for source in order.sources:
            address = source.address.encode()
            parts.append(_SOURCE.pack(source.slot, len(address)) + address)
    return b"".join(parts)


def parse_make(message: bytes) -> MakeRequest:
    """Inverse of :func:`pack_make`.

    Raises:
        FrameError: the request is malformed, or asks for more than one may.
    """
    if len(message) > REQUEST_BYTES_MAX:
        raise FrameError(f"a request of {len(message):,} bytes to make shards; at most {REQUEST_BYTES_MAX:,} are taken")
    try:
        return _parse_make(message)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise FrameError("a request to make shards that ends too early, or has an address that is no text") from None


def _parse_make(message: bytes) -> MakeRequest:
    at = 1 + message[0]
    instance = message[1:at]
    if len(instance) != message[0]:
        raise FrameError("a request that ends within the name of a process")
    orders: list[MakeOrder] = []
    while at < len(message):
        if len(orders) == STRIPES_MAX:
            raise FrameError(f"more than {STRIPES_MAX} stripes to make shards of")
        order, at = _parse_order(message, at)
        orders.append(order)
    return MakeRequest(instance, orders)


def _parse_order(message: bytes, at: int) -> tuple[MakeOrder, int]:
    stripe, length, last = _HEAD.unpack_from(message, at)
    at += _HEAD.size
    slots = tuple(message[at : at + last + 1])
    at += last + 1
    (count,) = _COUNT.unpack_from(message, at)
    at += _COUNT.size
    k, n = data_shards(stripe), shard_count(stripe)
    if stripe[32] not in _KINDS or k > n:
        raise FrameError(f"{stripe.hex()} is no key of a stripe")
    if not 0 < length <= OBJECT_BYTES_MAX:
        raise FrameError(f"an object of {length} bytes")
    if len(slots) != last + 1 or not _is_ascending(slots) or slots[-1] >= n:
        raise FrameError(f"slots that are not ascending ones of {n}")
    if count > n:
        raise FrameError(f"{count} sources for {n} shards")
    sources: list[Source] = []
    for _ in range(count):
        slot, size = _SOURCE.unpack_from(message, at)
        at += _SOURCE.size
        address = message[at : at + size]
        at += size
        if len(address) != size or size > ADDRESS_BYTES_MAX:
            raise FrameError(f"an address of {size} bytes, or a part of one")
        sources.append(Source(slot, address.decode()))
    known = {source.slot for source in sources}
    if len(known) != count or not known <= set(range(n)):
        raise FrameError("sources that are not for different slots")
    return MakeOrder(StripeKey(stripe), length, slots, tuple(sources)), at


def _is_ascending(slots: Sequence[int]) -> bool:
    return all(before < after for before, after in pairwise(slots))


def pack_made(result: Result, digests: Sequence[bytes] = ()) -> bytes:
    """Serialize what became of a stripe."""
    return bytes([result]) + b"".join(digests)


def parse_made(message: bytes, order: MakeOrder) -> list[bytes] | None:
    """Inverse of :func:`pack_made`: the hash of each wanted shard; None if they were not made.

    Raises:
        FrameError: it is not a message about this stripe.
    """
    if not message or message[0] > max(Result):
        raise FrameError("a message that says nothing about a stripe")
    made = message[0] == Result.MADE
    if len(message) != 1 + DIGEST_BYTES * len(order.slots) * made:
        raise FrameError(f"{len(message)} bytes about {len(order.slots)} shards")
    if not made:
        return None
    return [message[at : at + DIGEST_BYTES] for at in range(1, len(message), DIGEST_BYTES)]


def pack_prove(nonce: bytes, keys: Sequence[ShardKey]) -> bytes:
    """Serialize a request for proofs."""
    return nonce + join_keys(keys)


def parse_prove(message: bytes) -> tuple[bytes, list[ShardKey]]:
    """Inverse of :func:`pack_prove`.

    Raises:
        FrameError: the request is malformed, or has too many keys.
    """
    if len(message) < NONCE_BYTES:
        raise FrameError("a request for proofs begins with 32 bytes")
    return message[:NONCE_BYTES], parse_keys(message[NONCE_BYTES:])


def parse_proofs(message: bytes, count: int) -> list[bytes | None]:
    """The proofs in an answer; None for shards that are not there.

    Raises:
        FrameError: they are not ``count`` proofs.
    """
    if len(message) != count * DIGEST_BYTES:
        raise FrameError(f"{len(message)} bytes are not {count} proofs")
    proofs = [message[at : at + DIGEST_BYTES] for at in range(0, len(message), DIGEST_BYTES)]
    return [None if proof == ABSENT_PROOF else proof for proof in proofs]


def is_address(text: str) -> bool:
    """Whether an address of another worker can be sent in a request."""
    return 0 < len(text.encode()) <= ADDRESS_BYTES_MAX
