"""What travels over a call's channel: frames of one byte of kind, four of length, and that many of payload.

Both sides use this module, and it is bound into the sandbox beside ``inside``: the standard library only. What
comes out of a sandbox is hostile, so a length is judged before anything is read or kept for it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

VERSION = 4
"""Of these frames; the sandbox says it in its hello."""

HEADER = struct.Struct("!BI")
HELLO = struct.Struct("!H")
NUMBER = struct.Struct("!I")
"""Before the content of an ask and of what answers it: the call may have several under way."""
FRAME_BYTES_MAX = 8 << 20
ASK_BYTES_MAX = (5 << 20) + (64 << 10)
"""The arguments of a nested call, and what describes them: 2^20 characters, be they of four bytes, or digits that are
an argument each and have a length of four bytes each."""
ASKS_MAX = 16
"""Asks of one call under way at once."""
ASKS_BYTES_MAX = 17 << 20
"""What those have together: 16 of 1 MiB and what describes them. A worker holds that much for each call."""
ANSWER_BYTES_MAX = FRAME_BYTES_MAX + (64 << 10)
"""A result of a nested call, and what describes it."""
FAILURE_BYTES_MAX = 64 << 10
TYPE_NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 15_000
"""Of a failure: at most four bytes a character, so that type and text fit into `FAILURE_BYTES_MAX`."""


class Kind(IntEnum):
    """What a frame is."""

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
    """The program did, and did not handle it."""
    MEMORY = 1
    RESULT_TOO_LARGE = 2
    ARGUMENTS = 3
    """They are not what the function takes."""
    EXCEPTION = 4
    """The function raised it."""
    RESULT = 5
    """What the function gave cannot be sent."""


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
"""The kinds that go each way, with the bytes that each may have at most."""


class FrameError(ValueError):
    """Bytes that are no frame, or not one that may come now."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    payload: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands in place of a result or an answer."""

    cause: Cause
    type_name: str
    text: str


def encode(kind: Kind, payload: bytes) -> bytes:
    """Give the bytes of a frame.

    Raises:
        FrameError: the payload is larger than a frame of this kind may be.
    """
    limit = FROM_SANDBOX.get(kind) or TO_SANDBOX[kind]
    if len(payload) > limit:
        raise FrameError(f"a {kind.name} frame of {len(payload)} bytes: at most {limit} are allowed")
    return HEADER.pack(kind, len(payload)) + payload


def encode_failure(cause: Cause, type_name: str, text: str, *, number: int | None = None) -> bytes:
    """Give the bytes of a frame that says what went wrong; both texts are cut to what fits.

    Args:
        cause: of the failure.
        type_name: of the error.
        text: of the error.
        number: of the ask that failed; None: the call did.
    """
    name = type_name[:TYPE_NAME_CHARS_MAX].encode(errors="replace")
    head = bytes((cause, len(name) >> 8, len(name) & 255))
    payload = head + name + text[:TEXT_CHARS_MAX].encode(errors="replace")
    if number is None:
        return encode(Kind.FAILURE, payload)
    return encode(Kind.ANSWER_FAILED, NUMBER.pack(number) + payload)


def split_number(payload: bytes) -> tuple[int, bytes]:
    """Read the payload of an ask, or of what answers one: its number, and the content.

    Raises:
        FrameError: it is too short to have a number.
    """
    if len(payload) < NUMBER.size:
        raise FrameError("an ask, or an answer, without its number")
    return NUMBER.unpack_from(payload)[0], payload[NUMBER.size :]


def decode_failure(payload: bytes) -> Failure:
    """Read what `encode_failure` wrote.

    Raises:
        FrameError: it is none.
    """
    if len(payload) < 3:
        raise FrameError("a failure frame without its head")
    size = payload[1] << 8 | payload[2]
    if size > len(payload) - 3:
        raise FrameError("a failure frame whose type name is longer than the frame")
    try:
        return Failure(Cause(payload[0]), payload[3 : 3 + size].decode(), payload[3 + size :].decode())
    except ValueError as error:
        raise FrameError(f"a failure frame that cannot be read: {error}") from None


class FrameDecoder:
    """Makes frames of a stream of bytes.

    Args:
        limits: the kinds that may come, each with the bytes of payload it may have.
    """

    __slots__ = ("_buffer", "_limits")

    def __init__(self, limits: Mapping[Kind, int]) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._buffer += data

    def next(self) -> Frame | None:
        """Give the next whole frame, or None until more bytes come.

        Raises:
            FrameError: what came is no frame, of a kind that may not come, or too large.
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
        """Give kind and length of the frame that is coming, or None until they are known.

        Raises:
            FrameError: what came is no frame, of a kind that may not come, or too large.
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
        """Bytes that came and are of no frame yet."""
        return len(self._buffer)

    def _kind(self, number: int) -> Kind:
        kind = _KINDS.get(number)
        if kind is None:
            raise FrameError(f"a frame of kind {number}, which there is not")
        if kind not in self._limits:
            raise FrameError(f"a {kind.name} frame, which may not come from that side")
        return kind
