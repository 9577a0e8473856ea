"""Where things are in a sealed file: blocks of content, pages that list their salts, and the footer.

A block takes a whole chunk of the stored file, so that a revision changes the chunks whose content changed, and the
last ones. The lowest level of pages has the salts of all blocks; each level above has the hashes of the pages below it,
up to a level of one page, which the footer vouches for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from storage.errors import SealBroken
from storage.limits import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, FILE_SIZE_MAX
from storage.sealing.aead import TAG_BYTES

FORMAT = b"TwSealed"
FOOTER_BYTES = 52
ENTRY_BYTES = 32
PAGE_ENTRIES = 2048
PAGE_BYTES = PAGE_ENTRIES * ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a sealed file.

    Attributes:
        size: bytes of the content.
        chunk_size: bytes of the stored file's chunks.
        entries: the number of entries of each level of pages, the lowest level first.
    """

    size: int
    chunk_size: int
    entries: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", _entries(-(-self.size // self.block_bytes)))

    @property
    def block_bytes(self) -> int:
        """Bytes of content in each block but the last."""
        return self.chunk_size - TAG_BYTES

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.entries[0]

    @property
    def sealed_bytes(self) -> int:
        """Bytes of all blocks as they are stored, before the pages."""
        return self.size + TAG_BYTES * self.blocks

    @property
    def root_at(self) -> int:
        """Where the page of the highest level begins."""
        return self.page_at(len(self.entries) - 1, 0)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the whole stored file."""
        return self.sealed_bytes + _tail_bytes(self.entries)

    @property
    def sealed_chunks(self) -> int:
        """Number of chunks of the stored file that have nothing but a block."""
        return self.sealed_bytes // self.chunk_size

    @property
    def chunks(self) -> int:
        """Number of chunks of the stored file."""
        return -(-self.stored_bytes // self.chunk_size)

    def page_at(self, level: int, number: int) -> int:
        """Where a page begins."""
        return self.sealed_bytes + ENTRY_BYTES * sum(self.entries[:level]) + PAGE_BYTES * number

    def page_bytes(self, level: int, number: int) -> int:
        """Bytes of a page."""
        return ENTRY_BYTES * min(PAGE_ENTRIES, self.entries[level] - PAGE_ENTRIES * number)

    def length_of(self, index: int) -> int:
        """Bytes of content in a block."""
        return min(self.block_bytes, self.size - index * self.block_bytes)


def layout_of(stored_bytes: int, chunk_size: int) -> Layout:
    """The layout of a stored file of this size.

    Raises:
        SealBroken: no sealed file has this size.
    """
    if CHUNK_SIZE_MIN <= chunk_size <= CHUNK_SIZE_MAX and FOOTER_BYTES <= stored_bytes <= FILE_SIZE_MAX:
        # The smallest number of blocks that is large enough is the right one, if any is.
        least, most = 0, stored_bytes // chunk_size + 1
        while least < most:
            blocks = (least + most) // 2
            if blocks * chunk_size + _tail_bytes(_entries(blocks)) >= stored_bytes:
                most = blocks
            else:
                least = blocks + 1
        size = stored_bytes - TAG_BYTES * least - _tail_bytes(_entries(least))
        if size >= 0:
            layout = Layout(size, chunk_size)
            if layout.stored_bytes == stored_bytes:
                return layout
    raise SealBroken(f"no sealed file has {stored_bytes} bytes in chunks of {chunk_size}; it was cut, or changed")


def _entries(blocks: int) -> tuple[int, ...]:
    entries = [blocks]
    while entries[-1] > PAGE_ENTRIES:
        entries.append(-(-entries[-1] // PAGE_ENTRIES))
    return tuple(entries)


def _tail_bytes(entries: tuple[int, ...]) -> int:
    return ENTRY_BYTES * sum(entries) + FOOTER_BYTES
