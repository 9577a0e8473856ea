"""Contents to store: random, distinct, reproducible and quick to make.

BLAKE3's extendable output serves as generator: it makes several GB/s and can start at any offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from benchmarks.measure import MIB

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

USER = "benchmark"


@dataclass(frozen=True, slots=True)
class RandomContent:
    """``size`` random bytes, the same for the same ``seed``."""

    seed: str
    size: int

    def pieces(self, piece_bytes: int = MIB) -> Iterator[bytes]:
        """The content from its start, in pieces of ``piece_bytes`` (the last one shorter)."""
        generator = blake3(self.seed.encode())
        for offset in range(0, self.size, piece_bytes):
            yield generator.digest(min(piece_bytes, self.size - offset), seek=offset)

    def piece(self, index: int, piece_bytes: int = MIB) -> bytes:
        """One piece alone."""
        offset = index * piece_bytes
        return blake3(self.seed.encode()).digest(min(piece_bytes, self.size - offset), seek=offset)

    def digest(self) -> bytes:
        """BLAKE3 of the whole content."""
        hasher = blake3()
        for piece in self.pieces():
            hasher.update(piece)
        return hasher.digest()

    def write_to(self, path: Path) -> Path:
        """Write the content to ``path``; the pages stay in the page cache."""
        with path.open("wb") as file:
            for piece in self.pieces():
                file.write(piece)
        return path


def small_content(series: str, index: int, size: int) -> bytes:
    """A small content, distinct for each ``series`` and ``index``."""
    return blake3(f"{series}/{index}".encode()).digest(size)


class Discard(RawIOBase):
    """Takes bytes and forgets them."""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Take all of ``data``."""
        return memoryview(data).nbytes


class Digest(Discard):
    """Takes bytes and keeps their BLAKE3."""

    def __init__(self) -> None:
        self.hasher = blake3()

    def write(self, data: ReadableBuffer) -> int:
        """Take all of ``data`` and hash it."""
        self.hasher.update(memoryview(data))
        return super().write(data)
