"""Messages of the shard transport: raw bytes with small fixed headers, so that payloads are never re-coded.

They are the bodies of the frames in :mod:`taskworker.transport.wire.framing`. All numbers are little-endian.
docs/format.md has the complete format.

=========  ====================================================================  ==========================
method     request                                                               response
=========  ====================================================================  ==========================
Append     flags (1), for which process (length (1), name), then shards:         empty
           entry (80), payload
Locate     keys (36 each)                                                        a location (25) each
Missing    keys                                                                  positions (4) of those not there
Fetch      key and payload length (40) each                                      payloads, then a byte each
Read       keys                                                                  what it is (45) each,
                                                                                 then payloads
Newest     empty                                                                 its newest version or
                                                                                 tombstone as an entry (80)
                                                                                 and payload, or empty
Check      keys                                                                  a verdict (1) each
Instance   empty                                                                 the worker process's own name
Make       see :mod:`taskworker.transport.making_frames`
Prove      see there
Take       length of a ticket (2), the ticket, then as Fetch                     as Fetch
Put        length of a ticket (2), the ticket, then shards as in Append          empty
Written    keys                                                                  a hash (32) each
=========  ====================================================================  ==========================
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple

from storage.errors import InvalidArgument
from storage.keys import ID_BYTES, SHARD_KEY_BYTES, Kind, PackedKeys, ShardKey, packed_keys
from storage.limits import KIB, MIB, BytesLike
from storage.limits import OBJECT_BYTES_MAX as OBJECT_BYTES_MAX  # larger claims would only make readers allocate memory
from storage.shards import Location, Shard
from taskworker.transport.wire.framing import BODY_BYTES_MAX

MESSAGE_BYTES_MAX = BODY_BYTES_MAX
TAKING_BYTES_MAX = 256 * KIB
"""The largest request to take shards: the largest ticket, and as many keys as fit into a request."""
PUT_BYTES_MAX = MIB + 64 * KIB
"""The largest request to put shards: the largest ticket, and a shard of 1 MiB or several smaller ones."""
KEYS_MAX = 4096
_GATHERED_BYTES_MAX = 16 * KIB
DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)
"""Stands for the hash of a shard that no client wrote, as far as is known."""
_POSITION_BYTES = 4
# No machine has more bytes or shards; the sum of a thousand such numbers fits into 64 bits.
COUNT_MAX = 1 << 52

FLAG_URGENT = 1
FLAG_SYNC = 2

_ENTRY = struct.Struct("<36sQ32sI")  # key, object length, BLAKE3 of the payload, payload length
_LOCATION = struct.Struct("<BIQIQ")  # present, segment, offset, payload length, object length
_WANTED = struct.Struct("<36sI")  # key, payload length
_TICKET = struct.Struct("<H")  # length of a ticket
_FOUND = struct.Struct("<BQ32sI")  # state, object length, digest, payload length

ABSENT, PRESENT, CORRUPT, UNREADABLE = 0, 1, 2, 3


class Call(IntEnum):
    """The methods, by the number with which they travel. A number is never used for anything else."""

    APPEND = 1
    LOCATE = 2
    MISSING = 3
    FETCH = 4
    READ = 5
    REMOVE = 6
    DISCARD = 7
    JUDGE = 8
    CHECK = 9
    COMPACT = 10
    USAGE = 11
    NEWEST = 12
    INSTANCE = 13
    KEYS = 14
    RECORDS = 15
    VERIFY = 16
    REST = 17
    MAKE = 18
    PROVE = 19
    TAKE = 20
    PUT = 21
    WRITTEN = 22


_KINDS = frozenset(int(kind) for kind in Kind)


class FrameError(InvalidArgument):
    """A frame of the shard transport is malformed."""


class Wanted(NamedTuple):
    """A shard to fetch: its key, and the length that its payload must have."""

    key: ShardKey
    length: int


class Append(NamedTuple):
    """A received append frame; ``instance`` is the process that it is meant for, empty: any."""

    flags: int
    instance: bytes
    shards: list[Shard]


class AppendFrame:
    """An append being put together.

    Large payloads are not copied: they are sent from where they are. Small ones are gathered with what describes them,
    as passing on thousands of parts takes longer than copying them.

    Args:
        instance: name of the worker's process that is to take the shards, at most 255 bytes; empty: any.

    Attributes:
        size: bytes of the message.
        keys: the shards in it.
        count: how many shards were added.
    """

    def __init__(self, instance: bytes = b"") -> None:
        self._instance = instance
        self._parts: list[BytesLike] = []  # before what is being gathered
        self._gathered = bytearray()
        self.size = 2 + len(instance)
        self.keys: dict[ShardKey, Location] = {}
        self.count = 0

    def takes(self, shard: Shard) -> bool:
        """Whether a shard still fits into the message; an empty message takes any shard."""
        return not self.keys or self.size + _ENTRY.size + _length(shard) <= MESSAGE_BYTES_MAX

    def add(self, shard: Shard) -> None:
        """Add a shard; its payload must not change before the message is sent."""
        length = _length(shard)
        self._gathered += _ENTRY.pack(shard.key, shard.object_length, shard.digest, length)
        if length <= _GATHERED_BYTES_MAX:
            self._gathered += shard.payload
        else:
            self._parts += (self._gathered, shard.payload)
            self._gathered = bytearray()
        self.size += _ENTRY.size + length
        self.count += 1
        self.keys[shard.key] = Location(0, 0, length, shard.object_length)

    def parts(self, flags: int) -> list[BytesLike]:
        """The finished message."""
        return [bytes((flags, len(self._instance))) + self._instance, *self._parts, self._gathered]


def _length(shard: Shard) -> int:
    payload = shard.payload
    return payload.nbytes if isinstance(payload, memoryview) else len(payload)


def parse_append(message: memoryview) -> Append:
    """Read an append frame; payloads are views of ``message``.

    Raises:
        FrameError: the frame is malformed.
    """
    if len(message) < 2 or len(message) < 2 + message[1]:
        raise FrameError("an append frame has at least its flags and the name of a process")
    flags, at = message[0], 2 + message[1]
    if flags & ~(FLAG_URGENT | FLAG_SYNC):
        raise FrameError(f"unknown flags {flags:#x}: the sender is newer than this worker")
    return Append(flags, bytes(message[2:at]), _parse_entries(message, at))


def _parse_entries(message: BytesLike, at: int) -> list[Shard]:
    """Read the shards that follow one another from position ``at``."""
    view = memoryview(message)
    shards: list[Shard] = []
    while at < len(message):
        if at + _ENTRY.size > len(message):
            raise FrameError("a frame ends within a shard's header")
        key, object_length, digest, length = _ENTRY.unpack_from(message, at)
        at += _ENTRY.size
        if at + length > len(message):
            raise FrameError("a frame ends within a payload")
        _checked_length(length)
        shards.append(Shard(_checked_key(key), _checked_length(object_length), digest, view[at : at + length]))
        at += length
    return shards


def _checked_key(key: bytes) -> ShardKey:
    if not _is_end(*key[ID_BYTES:]):
        raise FrameError(f"{key.hex()} is no shard key")
    return ShardKey(key)


def _is_end(kind: int, k: int, n: int, slot: int) -> bool:
    """Whether a shard key may end with these values; ``k`` and ``n`` are stored less one."""
    return kind in _KINDS and k <= n and slot <= n


def join_keys(keys: Sequence[ShardKey]) -> bytes:
    """Serialize keys."""
    return packed_keys(keys)


def parse_keys(message: bytes) -> list[ShardKey]:
    """Inverse of :func:`join_keys`.

    Raises:
        FrameError: a key is malformed, or there are too many.
    """
    keys = split_keys(message)
    # Thousands of keys have only a few different ends after the id.
    ends = set(zip(*(message[at::SHARD_KEY_BYTES] for at in range(ID_BYTES, SHARD_KEY_BYTES)), strict=True))
    if not all(_is_end(*end) for end in ends):
        for key in keys:
            _checked_key(key)
    return keys


def split_keys(message: bytes) -> list[ShardKey]:
    """Like :func:`parse_keys`, for uses where keys that are no shard keys do no harm.

    Raises:
        FrameError: the length is not a multiple of a key's, or there are too many.
    """
    count, rest = divmod(len(message), SHARD_KEY_BYTES)
    if rest:
        raise FrameError(f"{len(message)} bytes are no whole number of {SHARD_KEY_BYTES}-byte keys")
    if count > KEYS_MAX:
        raise FrameError(f"{count} keys in one message; at most {KEYS_MAX} are taken")
    return list(PackedKeys(message))


def pack_positions(positions: Sequence[int]) -> bytes:
    """Serialize positions among keys."""
    return struct.pack(f"<{len(positions)}I", *positions)


def parse_positions(message: bytes, count: int) -> list[int]:
    """Inverse of :func:`pack_positions`.

    Raises:
        FrameError: they are not ascending positions among ``count`` keys.
    """
    number, rest = divmod(len(message), _POSITION_BYTES)
    if rest or number > count:
        raise FrameError(f"{len(message)} bytes are no positions among {count}")
    positions = list(struct.unpack(f"<{number}I", message))
    if any(after <= before for before, after in pairwise(positions)) or (positions and positions[-1] >= count):
        raise FrameError(f"positions that are not ascending ones among {count}")
    return positions


def pack_locations(locations: Iterable[Location | None]) -> bytes:
    """Serialize locations."""
    return b"".join(
        _LOCATION.pack(0, 0, 0, 0, 0) if location is None else _LOCATION.pack(1, *location) for location in locations
    )


def parse_locations(message: bytes, count: int) -> list[Location | None]:
    """Inverse of :func:`pack_locations`.

    Raises:
        FrameError: they are not ``count`` locations.
    """
    if len(message) != count * _LOCATION.size:
        raise FrameError(f"{len(message)} bytes are not {count} locations")
    return [
        Location(segment, offset, _checked_length(length), _checked_length(object_length)) if there else None
        for there, segment, offset, length, object_length in _LOCATION.iter_unpack(message)
    ]


def _checked_length(object_length: int) -> int:
    if object_length > OBJECT_BYTES_MAX:
        raise FrameError(f"an object or shard of {object_length} bytes is larger than any chunk")
    return object_length


def pack_wanted(wanted: Sequence[Wanted]) -> bytes:
    """Serialize a fetch request."""
    return b"".join(_WANTED.pack(key, length) for key, length in wanted)


def parse_wanted(message: BytesLike) -> list[Wanted]:
    """Inverse of :func:`pack_wanted`.

    Raises:
        FrameError: the request is malformed, or asks for more than fits into a message.
    """
    if len(message) % _WANTED.size or len(message) > KEYS_MAX * _WANTED.size:
        raise FrameError("malformed fetch request")
    wanted = [Wanted(_checked_key(key), length) for key, length in _WANTED.iter_unpack(message)]
    if sum(length for _, length in wanted) + len(wanted) > MESSAGE_BYTES_MAX:
        raise FrameError("a fetch asks for more than fits into one message; ask for less")
    return wanted


def pack_taking(ticket: bytes, wanted: Sequence[Wanted]) -> list[bytes]:
    """Serialize a request to take shards with a ticket."""
    return [_TICKET.pack(len(ticket)), ticket, pack_wanted(wanted)]


def parse_taking(message: BytesLike) -> tuple[bytes, list[Wanted]]:
    """Inverse of :func:`pack_taking`.

    Raises:
        FrameError: the request is malformed, or asks for more than fits into a message.
    """
    ticket, rest = _split_ticket(message)
    return ticket, parse_wanted(rest)


def pack_putting(ticket: bytes, shards: Sequence[Shard]) -> list[BytesLike]:
    """Serialize a request to put shards with a ticket. Payloads are not copied."""
    parts: list[BytesLike] = [_TICKET.pack(len(ticket)), ticket]
    for shard in shards:
        parts.append(_ENTRY.pack(shard.key, shard.object_length, shard.digest, _length(shard)))
        parts.append(shard.payload)
    return parts


def parse_putting(message: BytesLike) -> tuple[bytes, list[Shard]]:
    """Inverse of :func:`pack_putting`; payloads are views of ``message``.

    Raises:
        FrameError: the request is malformed.
    """
    ticket, rest = _split_ticket(message)
    return ticket, _parse_entries(rest, 0)


def _split_ticket(message: BytesLike) -> tuple[bytes, memoryview]:
    view = memoryview(message)
    end = _TICKET.size + (_TICKET.unpack_from(view)[0] if len(view) >= _TICKET.size else 0)
    if not _TICKET.size < end <= len(view):
        raise FrameError("a request that ends within its ticket, or has none")
    return bytes(view[_TICKET.size : end]), view[end:]


def parse_digests(message: bytes, count: int) -> list[bytes | None]:
    """The hashes of an answer to Written; None for each shard of which none is known.

    Raises:
        FrameError: they are not ``count`` hashes.
    """
    if len(message) != count * DIGEST_BYTES:
        raise FrameError(f"{len(message)} bytes are not {count} hashes")
    found = (message[at : at + DIGEST_BYTES] for at in range(0, len(message), DIGEST_BYTES))
    return [None if one == NO_DIGEST else one for one in found]


def parse_fetched(message: memoryview, wanted: Sequence[Wanted]) -> list[memoryview | None]:
    """The payloads of a fetch reply, as views of it.

    A reply that is as long as if all shards were there has room for all payloads: those of shards that turned out to be
    unreadable are zeros, and marked as absent. Otherwise, absent shards have no payloads.

    Raises:
        FrameError: it is not a reply to this request.
    """
    if len(message) < len(wanted):
        raise FrameError("a reply of another length than was asked for")
    states = message[len(message) - len(wanted) :]
    whole = len(message) == fetched_bytes(wanted)
    payloads: list[memoryview | None] = []
    at = 0
    for state, want in zip(states, wanted, strict=True):
        present = state == PRESENT
        payloads.append(message[at : at + want.length] if present else None)
        at += want.length if present or whole else 0
    if at != len(message) - len(wanted):
        raise FrameError("a reply of another length than was asked for")
    return payloads


def fetched_bytes(wanted: Sequence[Wanted]) -> int:
    """The length of a fetch reply that has all shards."""
    return sum(length for _, length in wanted) + len(wanted)


def pack_found(found: Sequence[Shard | int | None]) -> bytes:
    """Serialize a read reply.

    Args:
        found: shards; None for absent ones, CORRUPT for rotten ones, UNREADABLE for those that cannot be read now.
    """
    heads: list[bytes] = []
    payloads: list[bytes | bytearray | memoryview] = []
    for shard in found:
        if isinstance(shard, Shard):
            heads.append(_FOUND.pack(PRESENT, shard.object_length, shard.digest, _length(shard)))
            payloads.append(shard.payload)
        else:
            heads.append(_FOUND.pack(shard or ABSENT, 0, bytes(32), 0))
    return b"".join((*heads, *payloads))


def parse_found(message: memoryview, keys: Sequence[ShardKey]) -> list[Shard | int | None]:
    """Inverse of :func:`pack_found`; digests are not checked here.

    Raises:
        FrameError: it is not a reply to this request.
    """
    at = len(keys) * _FOUND.size
    if len(message) < at:
        raise FrameError("a reply of another length than was asked for")
    view = memoryview(message)
    found: list[Shard | int | None] = []
    for index, key in enumerate(keys):
        state, object_length, digest, length = _FOUND.unpack_from(message, index * _FOUND.size)
        if state == PRESENT:
            if at + length > len(message):
                raise FrameError("a reply that ends within a payload")
            found.append(Shard(key, _checked_length(object_length), digest, view[at : at + length]))
            at += length
        else:
            found.append(state if state in (CORRUPT, UNREADABLE) else None)
    if at != len(message):
        raise FrameError("a reply of another length than was asked for")
    return found


def pack_shards(shards: Iterable[Shard]) -> bytes:
    """Serialize shards as in an append frame, but without its head."""
    parts: list[bytes | bytearray | memoryview] = []
    for shard in shards:
        parts.append(_ENTRY.pack(shard.key, shard.object_length, shard.digest, _length(shard)))
        parts.append(shard.payload)
    return b"".join(parts)


def parse_shards(message: bytes) -> list[Shard]:
    """Inverse of :func:`pack_shards`.

    Raises:
        FrameError: the message is malformed.
    """
    return _parse_entries(message, 0)
