"""Local content in its sealed form, which is made while it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from storage.errors import InvalidArgument
from storage.limits import BytesLike
from storage.sealing.aead import TAG_BYTES
from taskworker.client.sealed.keys import FileKeys
from taskworker.client.sealed.layout import ENTRY_BYTES, PAGE_BYTES, Layout
from taskworker.client.sources import SeekableSource, StreamSource

_CHANGED = "the source was changed while it was read; try again when nobody writes to it"


class SealedContent(SeekableSource):
    """Content that can be read anywhere, sealed. Keeps one block, and 32 bytes for each.

    Args:
        content: the content.
        keys: the keys of the file that it becomes.
        layout: the layout, for the content's size.
        note: the sealed note of the version that it becomes.
    """

    def __init__(self, content: SeekableSource, keys: FileKeys, layout: Layout, note: str) -> None:
        self._content = content
        self._keys = keys
        self._note = note
        self.layout = layout
        self.size = layout.stored_bytes
        self._salts = bytearray(ENTRY_BYTES * layout.blocks)
        self._known = bytearray(layout.blocks)
        self._tail = b""
        self._last: tuple[int, bytes] = (-1, b"")

    def read(self, offset: int, length: int) -> BytesLike:
        """Exactly ``length`` bytes of the sealed form from ``offset``.

        Raises:
            InvalidArgument: the content was changed meanwhile.
        """
        chunk_size, sealed_bytes = self.layout.chunk_size, self.layout.sealed_bytes
        pieces: list[BytesLike] = []
        while length:
            if offset < sealed_bytes:
                index, skip = divmod(offset, chunk_size)
                piece: BytesLike = memoryview(self._block(index))[skip : skip + length]
            else:
                skip = offset - sealed_bytes
                piece = self._pages()[skip : skip + length]
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def salt(self, index: int) -> bytes:
        """The salt of a block, by reading it."""
        return self._salt_of(index, self._plain(index))

    def take_salt(self, index: int, salt: bytes) -> None:
        """Take the salt of a block that is known to be unchanged."""
        self._note_salt(index, salt)

    def require_sha256(self, wanted: str | None) -> None:
        """Read everything, if a hash is given.

        Raises:
            InvalidArgument: the content has another hash.
        """
        if wanted is not None:
            found = hashlib.sha256()
            for block in self._content.blocks():
                found.update(block)
            _require_hash(found.hexdigest(), wanted)

    def _plain(self, index: int) -> BytesLike:
        return self._content.read(index * self.layout.block_bytes, self.layout.length_of(index))

    def _salt_of(self, index: int, plain: BytesLike) -> bytes:
        salt = self._keys.salt(index, plain)
        self._note_salt(index, salt)
        return salt

    def _note_salt(self, index: int, salt: bytes) -> None:
        place = slice(ENTRY_BYTES * index, ENTRY_BYTES * (index + 1))
        if self._tail and self._salts[place] != salt:
            raise InvalidArgument(_CHANGED)
        self._salts[place] = salt
        self._known[index] = 1

    def _block(self, index: int) -> bytes:
        if self._last[0] != index:
            plain = self._plain(index)
            self._last = index, self._keys.sealed(index, self._salt_of(index, plain), plain)
        return self._last[1]

    def _pages(self) -> bytes:
        if not self._tail:
            unknown = self._known.find(0)
            while unknown >= 0:
                self.salt(unknown)
                unknown = self._known.find(0, unknown)
            self._tail = sealed_tail(self._keys, self.layout, self._note, bytes(self._salts))
        return self._tail


def sealed_stream(
    source: StreamSource, keys: FileKeys, chunk_size: int, note: str, sha256: str | None = None
) -> StreamSource:
    """Content that can be read only once, sealed. Keeps one block, and 32 bytes for each.

    Raises (while it is read):
        InvalidArgument: the content has another hash.
    """
    return StreamSource(_sealed_pieces(source, keys, chunk_size, note, sha256))


def _sealed_pieces(
    source: StreamSource, keys: FileKeys, chunk_size: int, note: str, sha256: str | None
) -> Iterator[bytes]:
    salts = bytearray()
    size = 0
    found = hashlib.sha256()
    for index, plain in enumerate(_split(source.blocks(), chunk_size - TAG_BYTES)):
        if sha256 is not None:
            found.update(plain)
        salt = keys.salt(index, plain)
        salts += salt
        size += len(plain)
        yield keys.sealed(index, salt, plain)
    if sha256 is not None:
        _require_hash(found.hexdigest(), sha256)
    yield sealed_tail(keys, Layout(size, chunk_size), note, bytes(salts))


def sealed_tail(keys: FileKeys, layout: Layout, note: str, salts: bytes) -> bytes:
    """All pages, and the footer."""
    levels = [salts]
    while len(levels[-1]) > PAGE_BYTES:
        below = memoryview(levels[-1])
        numbers = range(-(-len(below) // PAGE_BYTES))
        hashes = (
            keys.page_hash(len(levels) - 1, number, below[PAGE_BYTES * number : PAGE_BYTES * (number + 1)])
            for number in numbers
        )
        levels.append(b"".join(hashes))
    return b"".join((*levels, keys.footer(layout, note, levels[-1])))


def _split(pieces: Iterable[BytesLike], length: int) -> Iterator[bytes]:
    """The same bytes in pieces of ``length``; the last one may be shorter."""
    gathered = bytearray()
    for piece in pieces:
        gathered += piece
        while len(gathered) >= length:
            with memoryview(gathered) as view:
                whole = bytes(view[:length])
            yield whole
            del gathered[:length]
    if gathered:
        yield bytes(gathered)


def _require_hash(found: str, wanted: str) -> None:
    if found != wanted.lower():
        raise InvalidArgument(f"the content's SHA-256 is {found}, not {wanted}; nothing was stored")
