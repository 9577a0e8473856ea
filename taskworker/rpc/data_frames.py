"""Builds and parses messages that carry file data, with the fewest copies.

``PushPart``, ``GetPart`` and ``GetManyPart`` keep their data in field 2, so a message of nothing but data is a tag, a
length and the bytes. Building it is one join and reading it one slice, where protobuf would copy the
data once more each way. Everything else is left to protobuf; on the wire there is no difference.
"""

from __future__ import annotations

from storage.limits import BytesLike

_DATA_TAG = 0x12  # field 2, length-delimited
_PART_TAG = 0x1A  # field 3, length-delimited
_LENGTH_BYTES_MAX = 5  # of a message gRPC can carry: its length is below 2**32


def data_frame(*pieces: BytesLike) -> bytes:
    """The wire form of a message that holds only the bytes of ``pieces`` as its data; makes one copy."""
    length = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
    return b"".join((_head(_DATA_TAG, length), *pieces))


def part_frame(part: bytes) -> bytes:
    """The wire form of a ``PushManyPart`` that holds only this serialized ``PushPart``."""
    return _head(_PART_TAG, len(part)) + part


def data_of_frame(message: bytes) -> memoryview | None:
    """A view of the data in ``message``, without a copy; None if it holds anything else."""
    if not message or message[0] != _DATA_TAG:
        return None
    length = 0
    for position in range(1, min(len(message), 1 + _LENGTH_BYTES_MAX)):
        byte = message[position]
        length |= (byte & 0x7F) << 7 * (position - 1)
        if byte < 0x80:
            start = position + 1
            return memoryview(message)[start:] if start + length == len(message) else None
    return None


def _head(tag: int, length: int) -> bytes:
    head = bytearray((tag,))
    while length >= 0x80:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
