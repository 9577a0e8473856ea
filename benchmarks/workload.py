"""Contents to store: random, distinct, reproducible and fast to make.

They are generated with BLAKE3's extendable output, which makes several GB/s and can start at any offset.
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
        """Yield the content from its start, in pieces of ``piece_bytes`` (the last one may be shorter)."""
        generator = blake3(self.seed.encode())
        for offset in range(0, self.size, piece_bytes):
            yield generator.digest(min(piece_bytes, self.size - offset), seek=offset)

    def piece(self, index: int, piece_bytes: int = MIB) -> bytes:
        """Return the piece with this index."""
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
    """Return a small content that is distinct for each ``series`` and ``index``."""
    return blake3(f"{series}/{index}".encode()).digest(size)


class Discard(RawIOBase):
    """A binary file that discards everything written to it."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer) -> int:
        """Discard ``data``."""
        return memoryview(data).nbytes


class Digest(Discard):
    """A binary file that only keeps the BLAKE3 of everything written to it."""

    def __init__(self) -> None:
        self.hasher = blake3()

    def write(self, data: ReadableBuffer) -> int:
        """Hash ``data``."""
        self.hasher.update(memoryview(data))
        return super().write(data)
