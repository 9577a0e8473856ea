"""Frames on a call's channel: one byte for the kind, four for the length, then the payload of that length.

Both sides use this module. It is also available in the sandbox, beside ``inside``, so it only imports the standard
library. Bytes from a sandbox may be hostile, so a length is checked before its payload is read or memory is allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

VERSION = 4
"""Version of the frames; the sandbox sends it in its hello."""

HEADER = struct.Struct("!BI")
HELLO = struct.Struct("!H")
NUMBER = struct.Struct("!I")
"""Number before the content of an ask and of its answer, as a call may have several asks under way."""
FRAME_BYTES_MAX = 8 << 20
ASK_BYTES_MAX = (5 << 20) + (64 << 10)
"""The arguments of a nested call and their description. Enough for 2^20 characters: of four bytes each, or as
one-digit arguments with a length field of four bytes each."""
ASKS_MAX = 16
"""How many asks of one call may be under way at the same time."""
ASKS_BYTES_MAX = 17 << 20
"""Bytes of all asks of one call that are under way: 16 of 1 MiB, and their descriptions. A worker holds that much for
each call."""
ANSWER_BYTES_MAX = FRAME_BYTES_MAX + (64 << 10)
"""The result of a nested call, and its description."""
FAILURE_BYTES_MAX = 64 << 10
TYPE_NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 15_000
"""Length of a failure's text. With at most four bytes a character, type name and text fit into `FAILURE_BYTES_MAX`."""


class Kind(IntEnum):
    """Kinds of frames."""

    HELLO = 1
    REQUEST = 2
    RESULT = 3
    FAILURE = 4
    ASK = 5
    ANSWER = 6
    ANSWER_FAILED = 7
    ITEM = 8
    WITHDRAW = 9


_KINDS = {int(kind): kind for kind in Kind}


class Cause(IntEnum):
    """Why a call has no result."""

    RAISED = 0
    """The program failed with an unhandled exception."""
    MEMORY = 1
    RESULT_TOO_LARGE = 2
    ARGUMENTS = 3
    """The arguments do not fit the function."""
    EXCEPTION = 4
    """The function raised an exception."""
    RESULT = 5
    """The returned value cannot be sent."""


FROM_SANDBOX: Mapping[Kind, int] = {
    Kind.HELLO: HELLO.size,
    Kind.RESULT: FRAME_BYTES_MAX,
    Kind.FAILURE: FAILURE_BYTES_MAX,
    Kind.ASK: ASK_BYTES_MAX,
    Kind.ITEM: FRAME_BYTES_MAX,
    Kind.WITHDRAW: NUMBER.size,
}
TO_SANDBOX: Mapping[Kind, int] = {
    Kind.REQUEST: FRAME_BYTES_MAX,
    Kind.ANSWER: ANSWER_BYTES_MAX,
    Kind.ANSWER_FAILED: FAILURE_BYTES_MAX,
}
"""The kinds of frames in each direction, with the largest payload of each in bytes."""


class FrameError(ValueError):
    """The bytes are not a frame, or not one that is allowed here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure in place of a result or an answer."""

    cause: Cause
    type_name: str
    text: str


def encode(kind: Kind, payload: bytes) -> bytes:
    """Return the bytes of a frame.

    Raises:
        FrameError: the payload is too large for a frame of this kind.
    """
    limit = FROM_SANDBOX.get(kind) or TO_SANDBOX[kind]
    if len(payload) > limit:
        raise FrameError(f"a {kind.name} frame of {len(payload)} bytes: at most {limit} are allowed")
    return HEADER.pack(kind, len(payload)) + payload


def encode_failure(cause: Cause, type_name: str, text: str, *, number: int | None = None) -> bytes:
    """Return the bytes of a frame that reports a failure; both texts are cut to their limits.

    Args:
        cause: cause of the failure.
        type_name: name of the error's class.
        text: text of the error.
        number: number of the ask that failed; None: the call itself failed.
    """
    name = type_name[:TYPE_NAME_CHARS_MAX].encode(errors="replace")
    head = bytes((cause, len(name) >> 8, len(name) & 255))
    payload = head + name + text[:TEXT_CHARS_MAX].encode(errors="replace")
    if number is None:
        return encode(Kind.FAILURE, payload)
    return encode(Kind.ANSWER_FAILED, NUMBER.pack(number) + payload)


def split_number(payload: bytes) -> tuple[int, bytes]:
    """Split the payload of an ask or an answer into its number and its content.

    Raises:
        FrameError: the payload is too short to have a number.
    """
    if len(payload) < NUMBER.size:
        raise FrameError("an ask, or an answer, without its number")
    return NUMBER.unpack_from(payload)[0], payload[NUMBER.size :]


def decode_failure(payload: bytes) -> Failure:
    """Decode the payload of a failure frame made by `encode_failure`.

    Raises:
        FrameError: the payload is not a failure.
    """
    if len(payload) < 3:
        raise FrameError("a failure frame without its header")
    size = payload[1] << 8 | payload[2]
    if size > len(payload) - 3:
        raise FrameError("a failure frame whose type name is longer than the frame")
    try:
        return Failure(Cause(payload[0]), payload[3 : 3 + size].decode(), payload[3 + size :].decode())
    except ValueError as error:
        raise FrameError(f"a failure frame that cannot be read: {error}") from None


class FrameDecoder:
    """Splits a stream of bytes into frames.

    Args:
        limits: the allowed kinds, each with its largest payload in bytes.
    """

    __slots__ = ("_buffer", "_limits")

    def __init__(self, limits: Mapping[Kind, int]) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next(self) -> Frame | None:
        """Return the next complete frame; None if more bytes are needed.

        Raises:
            FrameError: the bytes are not a frame, its kind is not allowed, or it is too large.
        """
        head = self.head()
        if head is None:
            return None
        kind, length = head
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        frame = Frame(kind, bytes(memoryview(self._buffer)[HEADER.size : end]))
        del self._buffer[:end]
        return frame

    def head(self) -> tuple[Kind, int] | None:
        """Return kind and length of the next frame; None until its header is complete.

        Raises:
            FrameError: the bytes are not a frame, its kind is not allowed, or it is too large.
        """
        if len(self._buffer) < HEADER.size:
            return None
        number, length = HEADER.unpack_from(self._buffer)
        kind = self._kind(number)
        if length > self._limits[kind]:
            raise FrameError(f"a {kind.name} frame of {length} bytes: at most {self._limits[kind]} are allowed")
        return kind, length

    @property
    def pending(self) -> int:
        """How many bytes have been fed that are not yet part of a returned frame."""
        return len(self._buffer)

    def _kind(self, number: int) -> Kind:
        kind = _KINDS.get(number)
        if kind is None:
            raise FrameError(f"a frame of unknown kind {number}")
        if kind not in self._limits:
            raise FrameError(f"a {kind.name} frame, which is not allowed in this direction")
        return kind
