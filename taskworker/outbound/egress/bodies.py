"""Reads and decodes bodies of responses within limits, so that a compressed body cannot exhaust memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

from taskworker.errors import ApiLimitExceeded, ApiUnreachable

ACCEPTED = "gzip, deflate"
_PIECE = 64 << 10
_PIECES_AT_ONCE = 8
_MEMBERS_MAX = 1_000


class Decoder(Protocol):
    """Decodes a body, in pieces of at most 64 KiB."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode a part.

        Raises:
            zlib.error: the data is damaged.
        """

    @property
    def complete(self) -> bool:
        """Whether nothing is missing at the end."""


class _Identity:
    complete = True

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Inflate:
    """Decodes gzip, with any number of members, or deflate in either of the two forms that servers send."""

    def __init__(self, window_bits: int | None) -> None:
        self._window_bits = window_bits
        self._inflater = None if window_bits is None else zlib.decompressobj(window_bits)
        self._members = 1
        self._fed = False

    @property
    def complete(self) -> bool:
        return not self._fed or (self._inflater is not None and self._inflater.eof)

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._fed = self._fed or bool(data)
        while data:
            inflater = self._current(data)
            piece = inflater.decompress(data, _PIECE)
            data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if piece:
                yield piece
            elif not inflater.eof and not data:
                return

    def _current(self, data: bytes) -> zlib._Decompress:
        if self._inflater is None:
            wrapped = data[0] & 0x0F == zlib.DEFLATED
            self._inflater = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        elif self._inflater.eof:
            self._members += 1
            if self._window_bits is None or self._members > _MEMBERS_MAX:
                raise zlib.error("data after the end")
            self._inflater = zlib.decompressobj(self._window_bits)
        return self._inflater


def decoder_for(encoding: str, place: str) -> Decoder:
    """The decoder for a Content-Encoding.

    Raises:
        ApiUnreachable: the encoding was not among those requested.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return _Identity()
        case "gzip" | "x-gzip":
            return _Inflate(zlib.MAX_WBITS | 16)
        case "deflate":
            return _Inflate(None)
    raise ApiUnreachable(f"{place} answered in an encoding that was not asked for; only gzip and deflate were")


async def read_body(
    parts: AsyncIterator[bytes], decoder: Decoder, bytes_max: int, hold: Callable[[int], None], place: str
) -> tuple[bytes, int]:
    """Read a body; returns it decoded, and the number of bytes received.

    Args:
        parts: the parts of the body as they arrive.
        decoder: decodes the body.
        bytes_max: limit on the bytes received, and on the decoded bytes.
        hold: called with a number of bytes before they are kept; may raise.
        place: host and port, for error texts.

    Raises:
        ApiLimitExceeded: the body is too large.
        ApiUnreachable: the body is damaged.
    """
    body, received = bytearray(), 0
    try:
        async for part in parts:
            received += len(part)
            _require(received, bytes_max, place)
            for number, piece in enumerate(decoder.feed(part), start=1):
                _require(len(body) + len(piece), bytes_max, place)
                hold(len(piece))
                body += piece
                if number % _PIECES_AT_ONCE == 0:
                    await asyncio.sleep(0)  # a part may decode to a lot: let other tasks run
    except zlib.error:
        raise ApiUnreachable(f"{place} answered with damaged compressed data") from None
    except BaseException:
        body.clear()  # the error's traceback refers to it
        raise
    if not decoder.complete:
        raise ApiUnreachable(f"{place} answered with compressed data that is cut off")
    return bytes(body), received


def _require(length: int, bytes_max: int, place: str) -> None:
    if length > bytes_max:
        raise ApiLimitExceeded(
            f"{place} answered with more than {bytes_max:,} bytes, the limit for one response; ask for less"
        )
