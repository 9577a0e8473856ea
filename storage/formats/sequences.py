"""Reads the commit sequence from the bytes of a version or tombstone, without trusting anything else in them.

With it, a volume knows which of its records is the newest. When that record is asked for, :func:`is_own` checks its
bytes against its key; the caller checks who made it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from blake3 import blake3

from storage.keys import Kind, ShardKey, kind_of, object_id_of
from storage.limits import BytesLike

SEQUENCE_MAX = (1 << 63) - 1
_AT = {int(Kind.VERSION): 8, int(Kind.TOMBSTONE): 2}
_ROOT_ID_AT = 3
_decode = msgspec.msgpack.Decoder().decode
_decode_object = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode
_REMEMBERED_BYTES_MAX = 4096


def bears_sequence(key: ShardKey) -> bool:
    """Whether objects of this kind have a sequence."""
    return kind_of(key) in _AT


def sequence_in(key: ShardKey, payload: BytesLike) -> int:
    """The sequence in the bytes of a version or tombstone; 0 if they are malformed."""
    if isinstance(payload, bytes) and len(payload) <= _REMEMBERED_BYTES_MAX:
        return _remembered(kind_of(key), payload)
    return _decoded(kind_of(key), payload)


# A commit gives each volume in succession the copies of up to 256 objects, so each of these is decoded once.
@lru_cache(maxsize=256)
def _remembered(kind: int, payload: bytes) -> int:
    return _decoded(kind, payload)


def is_own(key: ShardKey, payload: BytesLike) -> bool:
    """Whether the bytes are those that their key names; other bytes could have any sequence."""
    raw, identifier = bytes(payload), object_id_of(key)
    if sequence_in(key, raw) == 0:
        return False
    if kind_of(key) == Kind.TOMBSTONE:
        return blake3(raw).digest() == identifier
    record, root = _decode_object(raw)
    named = blake3(record).digest() == identifier and blake3(root).digest() == _decode(record)[_ROOT_ID_AT]
    return named and msgspec.msgpack.encode((record, root)) == raw


def _decoded(kind: int, payload: BytesLike) -> int:
    try:
        fields: Any = _decode(_decode_object(payload)[0] if kind == Kind.VERSION else payload)
        sequence = fields[_AT[kind]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return 0
    return sequence if type(sequence) is int and 0 < sequence <= SEQUENCE_MAX else 0
