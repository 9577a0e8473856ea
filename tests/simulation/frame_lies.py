"""Frames that no sound worker sends."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from taskworker.transport.wire.framing import HEADER_BYTES, Kind, pack_header, unpack_header

_OTHER_CALL = 1 << 31


def garbage(frame: bytes, rng: Random) -> bytes:
    """Random bytes in the place of a frame."""
    return rng.randbytes(max(HEADER_BYTES, len(frame)))


def unasked(frame: bytes, rng: Random) -> bytes:
    """An answer to a call that was not made, before a frame."""
    header = unpack_header(frame)
    lie = rng.randbytes(rng.choice((0, 1, 36)))
    return pack_header(Kind.ANSWER, header.call ^ _OTHER_CALL, len(lie), flags=1) + lie + frame


def longer(frame: bytes, rng: Random) -> bytes:
    """The frame with a byte too many."""
    header = unpack_header(frame)
    return _again(frame, header.length + 1) + frame[HEADER_BYTES:] + rng.randbytes(1)


def shorter(frame: bytes, rng: Random) -> bytes:
    """The frame without its last byte; if it has none, one that claims to have some."""
    header = unpack_header(frame)
    if not header.length:
        return longer(frame, rng)
    return _again(frame, header.length - 1) + frame[HEADER_BYTES:-1]


def endless(frame: bytes, rng: Random) -> bytes:
    """The frame with a header that announces far too much."""
    return _again(frame, rng.choice((1 << 26, (1 << 32) - 1))) + frame[HEADER_BYTES:]


def of_wrong_kind(frame: bytes, rng: Random) -> bytes:
    """The frame as one of those that only callers send."""
    header = unpack_header(frame)
    kind = rng.choice((Kind.CALL, Kind.CANCEL, Kind.MORE))
    return pack_header(kind, header.call, header.length, flags=header.flags) + frame[HEADER_BYTES:]


def _again(frame: bytes, length: int) -> bytes:
    header = unpack_header(frame)
    return pack_header(Kind(header.kind), header.call, length, flags=header.flags)


FRAME_LIES: tuple[Callable[[bytes, Random], bytes], ...] = (garbage, unasked, longer, shorter, endless, of_wrong_kind)


def told_wrongly(frame: bytes | bytearray, rng: Random) -> bytes:
    """What a liar sends in the place of a frame."""
    return rng.choice(FRAME_LIES)(bytes(frame), rng)
