"""The commit sequence in the bytes of a version or tombstone, read without believing anything else of them.

A volume knows by it which of its records is the newest. Whoever asks for that record checks it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from storage.keys import ID_BYTES, Kind, ShardKey
from storage.limits import BytesLike

SEQUENCE_MAX = (1 << 63) - 1
_AT = {int(Kind.VERSION): 8, int(Kind.TOMBSTONE): 2}
_decode = msgspec.msgpack.Decoder().decode
_decode_object = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode


# The copies of one object go to all volumes one after another: it is decoded once. One tuple, so threads see a pair.
_last: tuple[BytesLike, int] = (b"", 0)


def bears_sequence(key: ShardKey) -> bool:
    """Whether the object is of a kind that has a sequence."""
    return key[ID_BYTES] in _AT


def sequence_in(key: ShardKey, payload: BytesLike) -> int:
    """The sequence in a version's or tombstone's bytes; 0 if they are none."""
    global _last
    known, sequence = _last
    if payload is not known:
        sequence = _decoded(Kind(key[ID_BYTES]), payload)
        if isinstance(payload, bytes):  # others may be written to
            _last = payload, sequence
    return sequence


def _decoded(kind: Kind, payload: BytesLike) -> int:
    try:
        fields: Any = _decode(_decode_object(payload)[0] if kind is Kind.VERSION else payload)
        sequence = fields[_AT[kind]]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError):
        return 0
    return sequence if type(sequence) is int and 0 < sequence <= SEQUENCE_MAX else 0
