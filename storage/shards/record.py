"""Encoding of shard records and of a segment's first block (docs/format.md has tables of both).

Record: ``magic(4) format(1) key(36) object_length(4) payload_length(4) digest(32) zero(3) tag(12)``, then the payload.
Integers are little-endian. The tag is made with the volume's own random key, so that bytes in a payload that look like
a record cannot mislead a scan.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from storage.errors import FormatError
from storage.keys import SHARD_KEY_BYTES, Kind, ShardKey
from storage.limits import OBJECT_BYTES_MAX
from storage.shards.port import Shard

RECORD_MAGIC = b"TwSh"
RECORD_FORMAT = 1
_BODY = struct.Struct("<4sB36sII32s3x")
_TAG_BYTES = 12
HEADER_BYTES = _BODY.size + _TAG_BYTES
PAYLOAD_BYTES_MAX = OBJECT_BYTES_MAX

SEGMENT_MAGIC = b"TwSegmt1"
_SEGMENT = struct.Struct("<8s16s32sHHIQIBB")
SEGMENT_HEADER_BYTES = 128
_SEGMENT_PAD = SEGMENT_HEADER_BYTES - 32 - _SEGMENT.size

_KINDS = frozenset(int(kind) for kind in Kind)

assert HEADER_BYTES == 96


class Header(NamedTuple):
    """A decoded header of a record."""

    key: ShardKey
    object_length: int
    payload_length: int
    digest: bytes


class SegmentHeader(NamedTuple):
    """First block of a segment file: its store and volume, and the store's defaults."""

    store_id: bytes
    volume_key: bytes
    slot: int
    volume_count: int
    number: int
    created_ms: int
    chunk_size: int
    k: int
    n: int


def pack_headers(shards: Iterable[Shard], volume_key: bytes) -> list[bytes]:
    """Encode the header of each shard's record, for the volume with this key."""
    headers = []
    pack = _BODY.pack
    for key, object_length, digest, payload in shards:
        body = pack(RECORD_MAGIC, RECORD_FORMAT, key, object_length, len(payload), digest)
        headers.append(body + blake3(body, key=volume_key).digest(_TAG_BYTES))
    return headers


def parse_header(raw: bytes | memoryview, volume_key: bytes) -> Header | None:
    """Decode the header in the first 96 bytes of ``raw``; return None if it is not a header of this volume."""
    if len(raw) < HEADER_BYTES:
        return None
    magic, version, key, object_length, payload_length, digest = _BODY.unpack_from(raw)
    if magic != RECORD_MAGIC or version != RECORD_FORMAT or payload_length > PAYLOAD_BYTES_MAX:
        return None
    if key[32] not in _KINDS or key[33] > key[34] or key[35] > key[34]:
        return None
    body = bytes(raw[: _BODY.size])
    if blake3(body, key=volume_key).digest(_TAG_BYTES) != bytes(raw[_BODY.size : HEADER_BYTES]):
        return None
    return Header(ShardKey(key), object_length, payload_length, digest)


def pack_segment_header(header: SegmentHeader) -> bytes:
    """Encode the 128-byte first block of a segment file."""
    body = _SEGMENT.pack(SEGMENT_MAGIC, *header[:-2], header.k - 1, header.n - 1) + bytes(_SEGMENT_PAD)
    return body + blake3(body).digest()


def parse_segment_header(raw: bytes) -> SegmentHeader:
    """Decode the first block of a segment file.

    Raises:
        FormatError: it is not a segment, or its first block is damaged.
    """
    if len(raw) < SEGMENT_HEADER_BYTES or raw[:8] != SEGMENT_MAGIC:
        raise FormatError("not a segment file of a volume (bad magic)")
    body, check = raw[: SEGMENT_HEADER_BYTES - 32], raw[SEGMENT_HEADER_BYTES - 32 : SEGMENT_HEADER_BYTES]
    if blake3(body).digest() != check:
        raise FormatError("segment header is damaged")
    header = SegmentHeader(*_SEGMENT.unpack_from(raw)[1:])
    return header._replace(k=header.k + 1, n=header.n + 1)


assert SHARD_KEY_BYTES == 36
