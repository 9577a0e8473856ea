"""The coding ``aws-chunked``: chunks with signatures of their own, and trailers with checksums."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from enum import Enum, auto

from storage.limits import BytesLike
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.signatures import Signed, canonical_trailers, signature

SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CODINGS = frozenset((SIGNED_CHUNKS, SIGNED_CHUNKS_TRAILER, UNSIGNED_CHUNKS_TRAILER))

_LINE_MAX = 4096
_TRAILERS_MAX = 16
_SIZE = re.compile(rb"[0-9a-fA-F]{1,12}")
_EMPTY = hashlib.sha256().hexdigest()
_SIGNATURE = b";chunk-signature="
_TRAILER_SIGNATURE = "x-amz-trailer-signature"


class _At(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    END = auto()


class ChunkDecoder:
    """Takes a body in pieces of any size, and gives the content in it; never keeps more than a line.

    The content of a chunk is given before its signature is known to be right, so nothing may become of it before
    :meth:`finish`.

    Args:
        coding: one of :data:`CODINGS`.
        signed: the signature of the request; None if chunks are not signed.

    Attributes:
        trailers: names, in lower case, and values that followed the content.
    """

    def __init__(self, coding: str, signed: Signed | None) -> None:
        self._is_signed = coding != UNSIGNED_CHUNKS_TRAILER
        self._has_trailer = coding != SIGNED_CHUNKS
        if self._is_signed and signed is None:
            raise S3Error("AccessDenied", "chunks can only be signed in a request that is signed")
        self._signed = signed
        self._previous = signed.signature if signed else ""
        self._given = ""
        self._hash = hashlib.sha256()
        self._line = bytearray()
        self._left = 0
        self._at = _At.SIZE
        self.trailers: list[tuple[str, str]] = []

    def feed(self, data: BytesLike) -> Iterator[memoryview]:
        """The content in the next piece of the body.

        Raises:
            S3Error: the body is malformed, or the signature of a chunk is wrong.
        """
        view = memoryview(data)
        while view:
            if self._at is _At.DATA:
                content, view = view[: self._left], view[self._left :]
                self._left -= len(content)
                if self._is_signed:
                    self._hash.update(content)
                if not self._left:
                    self._at = _At.DATA_END
                yield content
            elif self._at is _At.END:
                raise _malformed("something follows the last chunk")
            else:
                view = self._take_line(view)

    def finish(self) -> None:
        """Note that the body has ended.

        Raises:
            S3Error: it ended early.
        """
        if self._at is not _At.END:
            raise S3Error("IncompleteBody", "the body ended before its last chunk; send it again")

    def _take_line(self, view: memoryview) -> memoryview:
        """Take the rest of a line from the piece, and return what follows it."""
        room = _LINE_MAX - len(self._line)
        head = bytes(view[:room])
        end = head.find(b"\n")
        if end < 0:
            if len(head) == room:
                raise _malformed(f"a line between chunks has more than {_LINE_MAX} bytes")
            self._line += head
            return view[len(head) :]
        self._line += head[: end + 1]
        if not self._line.endswith(b"\r\n"):
            raise _malformed("a line between chunks does not end with CR LF")
        line = bytes(self._line[:-2])
        self._line.clear()
        self._understand(line)
        return view[end + 1 :]

    def _understand(self, line: bytes) -> None:
        if self._at is _At.SIZE:
            self._begin_chunk(line)
        elif self._at is _At.DATA_END:
            if line:
                raise _malformed("a chunk is longer than it says")
            self._end_chunk()
            self._at = _At.SIZE
        elif line:
            self._take_trailer(line)
        else:
            self._end()

    def _begin_chunk(self, line: bytes) -> None:
        size, _, given = line.partition(_SIGNATURE) if self._is_signed else (line, b"", b"")
        if not _SIZE.fullmatch(size):
            raise _malformed("the size of a chunk is no hexadecimal number")
        self._given = given.decode("latin-1")
        self._left = int(size, 16)
        if self._left:
            self._at = _At.DATA
            return
        self._end_chunk()
        self._at = _At.TRAILER

    def _end_chunk(self) -> None:
        if self._signed is None or not self._is_signed:
            return
        self._check(f"{_EMPTY}\n{self._hash.hexdigest()}", "PAYLOAD", self._given)
        self._previous = self._given
        self._hash = hashlib.sha256()

    def _take_trailer(self, line: bytes) -> None:
        name, colon, value = line.partition(b":")
        if not self._has_trailer or not colon or len(self.trailers) == _TRAILERS_MAX:
            raise _malformed("a trailer is malformed, or there are too many, or the request did not announce any")
        try:
            self.trailers.append((name.decode("ascii").strip().lower(), value.decode("ascii").strip()))
        except UnicodeDecodeError:
            raise _malformed("a trailer is not ASCII") from None

    def _end(self) -> None:
        self._at = _At.END
        if not (self._is_signed and self._has_trailer):
            return
        if not self.trailers or self.trailers[-1][0] != _TRAILER_SIGNATURE:
            raise S3Error("SignatureDoesNotMatch", "the trailers are not signed; the last one must be their signature")
        _, given = self.trailers.pop()
        hashed = hashlib.sha256(canonical_trailers(self.trailers).encode()).hexdigest()
        self._check(hashed, "TRAILER", given)

    def _check(self, what: str, kind: str, given: str) -> None:
        assert self._signed is not None, "only signed bodies are checked"
        signed = self._signed
        text = f"AWS4-HMAC-SHA256-{kind}\n{signed.time}\n{signed.scope}\n{self._previous}\n{what}"
        if not hmac.compare_digest(signature(signed.key, text).encode(), given.encode()):
            raise S3Error(
                "SignatureDoesNotMatch", f"the signature of a chunk or trailer is wrong ({kind.lower()}); send it again"
            )


def _malformed(why: str) -> S3Error:
    return S3Error("InvalidRequest", f"the body is not aws-chunked as announced: {why}")
