"""What the body of a request must be, and whether it was: its length, its signature and its checksums."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from storage.limits import BytesLike
from taskworker.gateways.s3 import checksums
from taskworker.gateways.s3.checksums import Algorithm, Running
from taskworker.gateways.s3.chunked import CODINGS, SIGNED_CHUNKS, UNSIGNED_CHUNKS_TRAILER, ChunkDecoder
from taskworker.gateways.s3.errors import S3Error
from taskworker.gateways.s3.hashing import Beside
from taskworker.gateways.s3.http import Head
from taskworker.gateways.s3.signatures import UNSIGNED, Signed

OBJECT_BYTES_MAX = 50 * 1024**4
"""As with Amazon; a pool's own limit on files may be lower."""
PUT_BYTES_MAX = 5 * 1024**3
"""The largest content of one request; larger objects come in parts. Likewise."""
RANDOM_TAG_MIN = 64 * 1024
"""The MD5 of a content of up to so many bytes costs next to nothing, and is always computed."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a request says about its body.

    Attributes:
        size: bytes of the content; None: not known before its end.
        sha256: of the content, in hexadecimal; None: not given.
        md5: of the content; None: not given.
        coding: how chunks are signed, see :mod:`chunked`; None: the body is the content.
        signed: the signature that those of the chunks follow from.
        checksums: what the content must have, by the algorithm.
        trailing: whose checksum follows the content; None: nobody's.
        wanted: whose checksum is to be computed even if none was given.
        needs_md5: whether a large content's entity tag must be its MD5. That of a small one always is.
    """

    size: int | None = None
    sha256: str | None = None
    md5: bytes | None = None
    coding: str | None = None
    signed: Signed | None = None
    checksums: tuple[tuple[Algorithm, str], ...] = ()
    trailing: Algorithm | None = None
    wanted: tuple[Algorithm, ...] = field(default=())
    needs_md5: bool = True


@dataclass(frozen=True, slots=True)
class Received:
    """What a content was.

    Attributes:
        size: in bytes.
        etag: its MD5, in hexadecimal; or, if that is not needed, 16 random bytes, with a hyphen.
        checksums: in base64, by the algorithm's name.
    """

    size: int
    etag: str
    checksums: dict[str, str]


def expected(head: Head, payload: str, signed: Signed | None, *, needs_md5: bool = True) -> Expected:
    """What a request says about its body.

    Args:
        head: the request.
        payload: the value of ``x-amz-content-sha256``, or what stands for it.
        signed: the signature of the request, if it has one.
        needs_md5: see :class:`Expected`.

    Raises:
        S3Error: it contradicts itself, or is not supported.
    """
    fields = head.fields
    coding = payload if payload in CODINGS else None
    if coding is None and payload != UNSIGNED and not _SHA256.fullmatch(payload):
        if payload.startswith("STREAMING-"):
            raise S3Error("NotImplemented", f"bodies signed as {payload[:64]} are not supported")
        raise S3Error("InvalidArgument", "x-amz-content-sha256 must be a SHA-256 in hexadecimal or UNSIGNED-PAYLOAD")
    size = _size_of(fields, coding)
    given = tuple(
        (found, value) for name, value in fields.items() if (found := checksums.BY_HEADER.get(name)) is not None
    )
    for found, value in given:
        checksums.decoded(value, found.size)
    trailing = _trailing(fields, coding)
    if len(given) + (trailing is not None) > 1:
        raise S3Error("InvalidRequest", "at most one checksum may be given")
    md5 = fields.get("content-md5")
    return Expected(
        size=size,
        sha256=payload if coding is None and payload != UNSIGNED else None,
        md5=None if md5 is None else checksums.decoded(md5, 16, "InvalidDigest"),
        coding=coding,
        signed=signed,
        checksums=given,
        trailing=trailing,
        wanted=_wanted(fields),
        needs_md5=needs_md5,
    )


class Body:
    """Takes a body in pieces, gives its content, and checks at the end that it is what was announced.

    Args:
        announced: what the request says about it.
    """

    def __init__(self, announced: Expected) -> None:
        self._announced = announced
        self._decoder = ChunkDecoder(announced.coding, announced.signed) if announced.coding else None
        is_large = announced.size is None or announced.size > RANDOM_TAG_MIN
        needs_md5 = announced.needs_md5 or announced.md5 is not None or not is_large
        self._md5 = hashlib.md5(usedforsecurity=False) if needs_md5 else None
        self._sha256 = hashlib.sha256() if announced.sha256 is not None else None
        chosen = {one.name: one for one, _ in announced.checksums} | {one.name: one for one in announced.wanted}
        if announced.trailing is not None:
            chosen[announced.trailing.name] = announced.trailing
        self._running: dict[str, Running] = {name: one.start() for name, one in chosen.items()}
        chosen_sums = (self._md5, self._sha256, *self._running.values())
        self._sums = Beside([one for one in chosen_sums if one is not None])
        self._size = 0

    def feed(self, data: BytesLike) -> Iterator[memoryview]:
        """The content in the next piece of the body.

        Raises:
            S3Error: it is longer than announced, malformed, or signed wrongly.
        """
        for content in (memoryview(data),) if self._decoder is None else self._decoder.feed(data):
            self._size += len(content)
            self._check_not_longer()
            if content:
                self._sums.update(content)
                yield content

    def finish(self) -> Received:
        """Note that the body has ended, and return what it was.

        Raises:
            S3Error: it was not what was announced.
        """
        announced = self._announced
        if self._decoder is not None:
            self._decoder.finish()
        if announced.size is not None and self._size != announced.size:
            raise S3Error("IncompleteBody", f"{self._size} of {announced.size} bytes came; send the request again")
        self._sums.finish()
        if self._sha256 is not None and self._sha256.hexdigest() != announced.sha256:
            raise S3Error("XAmzContentSHA256Mismatch", "the body does not have the SHA-256 that was signed")
        if announced.md5 is not None and self._md5 is not None and self._md5.digest() != announced.md5:
            raise S3Error("BadDigest", "the body does not have the MD5 that the request says; send it again")
        sums = {name: checksums.encoded(one.digest()) for name, one in self._running.items()}
        for algorithm, value in (*announced.checksums, *self._trailers()):
            if sums[algorithm.name] != value:
                raise S3Error("BadDigest", f"the body does not have the {algorithm.name} given; send it again")
        etag = f"{os.urandom(16).hex()}-1" if self._md5 is None else self._md5.hexdigest()
        return Received(self._size, etag, sums)

    def _trailers(self) -> Iterator[tuple[Algorithm, str]]:
        trailing = self._announced.trailing
        given = dict(self._decoder.trailers) if self._decoder is not None else {}
        if set(given) != ({trailing.header} if trailing is not None else set()):
            raise S3Error("InvalidRequest", "the trailers are not those that x-amz-trailer announced")
        if trailing is not None:
            checksums.decoded(given[trailing.header], trailing.size)
            yield trailing, given[trailing.header]

    def _check_not_longer(self) -> None:
        most = PUT_BYTES_MAX if self._announced.size is None else self._announced.size
        if self._size > most:
            raise S3Error("IncompleteBody", f"the body is longer than the {most} bytes announced or allowed")


def _size_of(fields: dict[str, str], coding: str | None) -> int | None:
    name = "x-amz-decoded-content-length" if coding is not None else "content-length"
    value = fields.get(name)
    if value is None:
        if coding is not None or "transfer-encoding" not in fields:
            raise S3Error("MissingContentLength", f"the request has no header {name}")
        return None
    if not _COUNT.fullmatch(value):
        raise S3Error("InvalidArgument", f"the header {name} is no number of bytes")
    if int(value) > PUT_BYTES_MAX:
        raise S3Error("EntityTooLarge", f"one request may have at most {PUT_BYTES_MAX} bytes; send the object in parts")
    return int(value)


def _trailing(fields: dict[str, str], coding: str | None) -> Algorithm | None:
    name = fields.get("x-amz-trailer")
    if name is None:
        if coding == UNSIGNED_CHUNKS_TRAILER:
            raise S3Error("InvalidRequest", "the request announces a trailer, but x-amz-trailer does not say which")
        return None
    if coding is None or coding == SIGNED_CHUNKS:
        raise S3Error("InvalidRequest", "trailers need x-amz-content-sha256 to be STREAMING-…-TRAILER")
    found = checksums.BY_HEADER.get(name.strip().lower())
    if found is None:
        raise S3Error("InvalidRequest", f"x-amz-trailer must be one of {', '.join(checksums.BY_HEADER)}")
    return found


def _wanted(fields: dict[str, str]) -> tuple[Algorithm, ...]:
    name = fields.get("x-amz-sdk-checksum-algorithm") or fields.get("x-amz-checksum-algorithm")
    return () if name is None else (checksums.algorithm(name),)
