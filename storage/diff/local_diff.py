"""The difference between a version and local content: the chunks that differ, found lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from blake3 import blake3

from storage.diff.manifest_diff import Patch
from storage.limits import BytesLike
from storage.progress import Progress

Changed = Iterable[tuple[int, int]]
"""(offset, length) of the places known to have changed."""


class LocalContent(Protocol):
    """Content that can be read at any position, repeatedly; ``size`` in bytes."""

    size: int

    def read(self, offset: int, length: int) -> BytesLike:
        """Exactly ``length`` bytes from ``offset``."""


class LocalDiff:
    """The chunks of local content that differ from the version's chunk at the same index. Holds one chunk in memory.

    Args:
        size: bytes of the version.
        chunk_size: bytes of the version's chunks; the content is split in the same way.
        known: yields the version's chunk ids in order.
        content: the local content.
        changed: the only places that may differ; None: compare everything.
        progress: called with (bytes compared, bytes in all).
    """

    def __init__(
        self,
        size: int,
        chunk_size: int,
        known: Callable[[], Iterator[bytes]],
        content: LocalContent,
        *,
        changed: Changed | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._size = size
        self._chunk_size = chunk_size
        self._known = known
        self._content = content
        self._changed = changed
        self._progress = progress

    def is_empty(self) -> bool:
        """Whether the content equals the version's; stops at the first difference."""
        return self._content.size == self._size and next(self.names(), None) is None

    def names(self) -> Iterator[Patch]:
        """The changed chunks in order, without data."""
        return (patch for patch, _data in self.changes())

    def changes(self) -> Iterator[tuple[Patch, BytesLike]]:
        """The changed chunks in order, each with its bytes."""
        compared = self._all() if self._changed is None else self._touched(self._changed)
        for index, known in compared:
            data = self.chunk(index)
            chunk_id = blake3(data).digest()
            if chunk_id != known:
                yield Patch(index, chunk_id), data

    def chunk(self, index: int) -> BytesLike:
        """The bytes of a chunk of the local content."""
        start = index * self._chunk_size
        return self._content.read(start, min(self._chunk_size, self._content.size - start))

    def _all(self) -> Iterator[tuple[int, bytes | None]]:
        """(index, the version's chunk id, or None past its end) for all chunks of the local content."""
        known = self._known()
        for index in range(self._chunk_count()):
            yield index, next(known, None)
            if self._progress is not None:
                self._progress(min((index + 1) * self._chunk_size, self._content.size), self._content.size)

    def _touched(self, changed: Changed) -> Iterator[tuple[int, bytes | None]]:
        """The chunks that overlap a change, and those that are added, cut or lengthened by the new size."""
        size, count = self._chunk_size, self._chunk_count()
        touched: set[int] = set()
        for offset, length in changed:
            if length:
                touched.update(range(offset // size, min(count, -(-(offset + length) // size))))
        if self._content.size != self._size:
            shorter = min(self._content.size, self._size)
            touched.update(range(shorter // size, count))
        for index in sorted(touched):
            yield index, None

    def _chunk_count(self) -> int:
        return -(-self._content.size // self._chunk_size)
