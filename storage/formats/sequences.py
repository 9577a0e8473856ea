"""The commit sequence in the bytes of a version or tombstone, read without believing anything else of them.

A volume knows by it which of its records is the newest. Whether a record that says so is what was stored, as far as
its own key tells, is looked at when it is asked for: see :func:`is_own`. Who made it, whoever asks checks.
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


# The copies of one object go to all volumes one after another: it is decoded once. One tuple, so threads see a pair.
_last: tuple[BytesLike, int] = (b"", 0)


def bears_sequence(key: ShardKey) -> bool:
    """Whether the object is of a kind that has a sequence."""
    return kind_of(key) in _AT


def sequence_in(key: ShardKey, payload: BytesLike) -> int:
    """The sequence in a version's or tombstone's bytes; 0 if they are none."""
    global _last
    known, sequence = _last
    if payload is not known:
        sequence = _decoded(Kind(kind_of(key)), payload)
        if isinstance(payload, bytes):  # others may be written to
            _last = payload, sequence
    return sequence


def is_own(key: ShardKey, payload: BytesLike) -> bool:
    """Whether bytes with a sequence are those that their key names: others may tell any sequence."""
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
