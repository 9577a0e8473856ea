"""Verified reading of a sealed version: what a pool returns is believed only if the user's key vouches for it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Generator, Iterator

from storage import Version
from storage.errors import SealBroken
from storage.limits import BytesLike
from taskworker.client.sealed.content import SealedContent
from taskworker.client.sealed.keys import FileKeys
from taskworker.client.sealed.layout import ENTRY_BYTES, FOOTER_BYTES, PAGE_ENTRIES, Layout
from taskworker.client.sources import SeekableSource

RawRange = Callable[[int, int], Iterator[BytesLike]]
"""(offset, length) → the bytes of that range of the stored file."""


class SealedVersion:
    """A sealed version whose footer is verified. Its content is read in any order, in bounded memory. Not thread-safe.

    Attributes:
        stored: the version as the pool knows it.
        version: the version as its user knows it.

    Args:
        keys: the keys of the file.
        layout: its layout, from what the pool says of its size.
        stored: see above.
        version: see above.
        note: the sealed note that the pool shows.
        fetch: reads the stored file.

    Raises:
        SealBroken: it is not what was stored.
    """

    def __init__(
        self, keys: FileKeys, layout: Layout, *, stored: Version, version: Version, note: str, fetch: RawRange
    ) -> None:
        self.stored = stored
        self.version = version
        self.layout = layout
        self._keys = keys
        self._fetch = fetch
        tail = self._raw(layout.root_at, layout.stored_bytes - layout.root_at)
        root_page, footer = tail[:-FOOTER_BYTES], tail[-FOOTER_BYTES:]
        keys.check_footer(layout, note, root_page, footer)
        self._top = len(layout.entries) - 1
        self._pages: dict[int, tuple[int, bytes]] = {self._top: (0, root_page)}  # of each level, the page last read

    def sealed_like(self, content: SeekableSource, note: str) -> SealedContent:
        """Local content, sealed as another version of this file."""
        return SealedContent(content, self._keys, Layout(content.size, self.layout.chunk_size), note)

    def content(self, offset: int, length: int) -> Generator[memoryview, None, None]:
        """The content from ``offset`` on, verified; a range beyond the end is cut."""
        stop = min(offset + length, self.layout.size)
        if offset >= stop:
            return
        block_bytes = self.layout.block_bytes
        first, last = offset // block_bytes, (stop - 1) // block_bytes
        for index, block in self.blocks(first, last + 1):
            start = index * block_bytes
            yield memoryview(block)[max(0, offset - start) : stop - start]

    def blocks(self, first: int, stop: int) -> Generator[tuple[int, bytes], None, None]:
        """The blocks from ``first`` to before ``stop``, verified, with their indexes."""
        chunk_size = self.layout.chunk_size
        end = min(stop * chunk_size, self.layout.sealed_bytes)
        raw = _Chunks(self._fetch(first * chunk_size, end - first * chunk_size))
        for index in range(first, stop):
            sealed = raw.take(min(chunk_size, end - index * chunk_size))
            yield index, self._keys.opened(index, self.salt(index), sealed)

    def salt(self, index: int) -> bytes:
        """The verified salt of a block."""
        return self._entry(0, index)

    def _entry(self, level: int, index: int) -> bytes:
        number, place = divmod(index, PAGE_ENTRIES)
        page = self._page(level, number)
        return page[ENTRY_BYTES * place : ENTRY_BYTES * (place + 1)]

    def _page(self, level: int, number: int) -> bytes:
        have = self._pages.get(level)
        if have is not None and have[0] == number:
            return have[1]
        page = self._raw(self.layout.page_at(level, number), self.layout.page_bytes(level, number))
        if not hmac.compare_digest(self._keys.page_hash(level, number, page), self._entry(level + 1, number)):
            raise SealBroken("the file is not what was stored: its list of blocks was changed")
        self._pages[level] = number, page
        return page

    def _raw(self, offset: int, length: int) -> bytes:
        return bytes(_Chunks(self._fetch(offset, length)).take(length))


class _Chunks:
    """Takes pieces of any length from a stream of pieces."""

    def __init__(self, pieces: Iterator[BytesLike]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def take(self, length: int) -> BytesLike:
        """The next ``length`` bytes.

        Raises:
            SealBroken: there are fewer.
        """
        if len(self._rest) >= length:
            taken, self._rest = self._rest[:length], self._rest[length:]
            return taken
        out = bytearray(length)
        done = 0
        while done < length:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    raise SealBroken(f"the pool returned {done} of {length} bytes")
            count = min(len(self._rest), length - done)
            out[done : done + count] = self._rest[:count]
            self._rest = self._rest[count:]
            done += count
        return out
