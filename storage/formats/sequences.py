"""Reads the commit sequence from the bytes of a version or tombstone, without trusting anything else in them.

With it, a volume knows which of its records is the newest. When that record is asked for, :func:`is_own` checks its
bytes against its key; the caller checks who made it.
"""

from __future__ import annotations

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


# The copies of an object go to all volumes in succession, so it is decoded once. A tuple, so that threads see a pair.
_last: tuple[BytesLike, int] = (b"", 0)


def bears_sequence(key: ShardKey) -> bool:
    """Whether objects of this kind have a sequence."""
    return kind_of(key) in _AT


def sequence_in(key: ShardKey, payload: BytesLike) -> int:
    """The sequence in the bytes of a version or tombstone; 0 if they are malformed."""
    global _last
    known, sequence = _last
    if payload is not known:
        sequence = _decoded(Kind(kind_of(key)), payload)
        if isinstance(payload, bytes):  # other buffers may change
            _last = payload, sequence
    return sequence


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


def _decoded(kind: Kind, payload: BytesLike) -> int:
    try:
        fields: Any = _decode(_decode_object(payload)[0] if kind is Kind.VERSION else payload)
        sequence = fields[_AT[kind]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return 0
    return sequence if type(sequence) is int and 0 < sequence <= SEQUENCE_MAX else 0
