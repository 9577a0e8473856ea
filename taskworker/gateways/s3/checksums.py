"""Checksums of content: those of S3's headers, MD5 and SHA-256, computed while the content passes."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from awscrt import checksums as crt

from taskworker.gateways.s3.errors import S3Error

FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"


class Running(Protocol):
    """A checksum of what has passed so far."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add what comes next."""

    def digest(self) -> bytes:
        """The checksum."""


class _Crc:
    def __init__(self, compute: Callable[[bytes, int], int], size: int) -> None:
        self._compute = compute
        self._size = size
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = self._compute(data, self._value)  # type: ignore[arg-type]  # it takes any buffer

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A kind of checksum.

    Attributes:
        name: as in ``x-amz-checksum-algorithm``.
        size: bytes of a checksum.
        start: begins to compute one.
        combine: from the values of two contents and the length of the second to that of both; None: not possible.
    """

    name: str
    size: int
    start: Callable[[], Running]
    combine: Callable[[int, int, int], int] | None = None

    @property
    def header(self) -> str:
        """The header, or trailer, that has such a checksum."""
        return f"x-amz-checksum-{self.name.lower()}"

    @property
    def default_type(self) -> str:
        """What the checksum of a multipart object is of, if the caller does not say."""
        return FULL_OBJECT if self.name == "CRC64NVME" else COMPOSITE


ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    one.name: one
    for one in (
        Algorithm("CRC32", 4, lambda: _Crc(crt.crc32, 4), crt.combine_crc32),
        Algorithm("CRC32C", 4, lambda: _Crc(crt.crc32c, 4), crt.combine_crc32c),
        Algorithm("CRC64NVME", 8, lambda: _Crc(crt.crc64nvme, 8), crt.combine_crc64nvme),
        Algorithm("SHA1", 20, lambda: hashlib.sha1(usedforsecurity=False)),
        Algorithm("SHA256", 32, hashlib.sha256),
    )
}
BY_HEADER: Final = {one.header: one for one in ALGORITHMS.values()}


def algorithm(name: str) -> Algorithm:
    """The algorithm of this name.

    Raises:
        S3Error: there is none.
    """
    found = ALGORITHMS.get(name.upper())
    if found is None:
        raise S3Error("InvalidRequest", f"the checksum algorithm must be one of {', '.join(ALGORITHMS)}")
    return found


def decoded(value: str, size: int, problem: str = "InvalidRequest") -> bytes:
    """The bytes of a checksum in base64.

    Raises:
        S3Error: it is not base64, or has another size; ``problem`` is the code.
    """
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != size:
        raise S3Error(problem, f"the checksum is not {size} bytes in base64")
    return raw


def encoded(digest: bytes) -> str:
    """A checksum in base64."""
    return base64.b64encode(digest).decode()


def composite(chosen: Algorithm, parts: Sequence[str]) -> str:
    """The checksum of the checksums of a multipart object's parts, with their number."""
    whole = chosen.start()
    for part in parts:
        whole.update(decoded(part, chosen.size))
    return f"{encoded(whole.digest())}-{len(parts)}"


def combined(chosen: Algorithm, parts: Iterable[tuple[str, int]]) -> str:
    """The checksum of a whole object from those of its parts, each with its size in bytes.

    Raises:
        S3Error: no such checksum follows from those of the parts.
    """
    if chosen.combine is None:
        raise S3Error("InvalidRequest", f"{chosen.name} of a multipart object can only be of type {COMPOSITE}")
    value = 0
    for part, size in parts:
        value = chosen.combine(value, int.from_bytes(decoded(part, chosen.size), "big"), size)
    return encoded(value.to_bytes(chosen.size, "big"))


def multipart_etag(parts: Iterable[str]) -> str:
    """The entity tag of a multipart object from those of its parts: MD5 sums, or what stands for them."""
    whole = hashlib.md5(usedforsecurity=False)
    count = 0
    for part in parts:
        whole.update(bytes.fromhex(part.partition("-")[0]))
        count += 1
    return f"{whole.hexdigest()}-{count}"
