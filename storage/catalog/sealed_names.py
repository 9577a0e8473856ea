"""An ordered index whose pages are sealed: a B+ tree in a table that itself orders nothing.

A database that keeps names in order shows them to whoever reads its file. Here, the database only has numbered pages,
and each is sealed as a whole. A page has the keys and values of a leaf, or the lowest keys and numbers of the pages
below. The tree is that of Comer, "The Ubiquitous B-Tree" (1979): pages are split when they are full, and joined with a
neighbour when they are nearly empty.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Annotated

import msgspec
from cachetools import LRUCache

from storage.errors import FormatError

PAGE_BYTES_MAX = 4000
"""Content of a page. Sealed, it fits into one page of LMDB beside that one's header."""

_JOINED_BYTES_MAX = 3000
_NEARLY_EMPTY_BYTES = 1000
_ENTRY_BYTES = 6  # what an entry's two lengths take in MessagePack, at most
_PAGE_BYTES = 16  # likewise for the page's own
_APPENDED_SHARE = 0.9  # how much of a page stays when keys come in order
_NUMBER_BYTES = 8
_HEADER = bytes(_NUMBER_BYTES)
_DEPTH_MAX = 64
_CACHED_PAGES = 256

Get = Callable[[bytes], bytes | None]
"""Returns the page with this number as it is stored, or None."""

Put = Callable[[bytes, bytes], bytes]
"""Stores a page under a number, and returns it as it is stored."""

Open = Callable[[bytes, bytes], bytes]
"""Takes the number of a page, and the page as it is stored; returns its content, or raises."""


class _Header(msgspec.Struct, frozen=True, array_like=True):
    root: int
    next: int  # the number of the next new page


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    is_leaf: bool
    keys: Annotated[list[bytes], msgspec.Meta(max_length=PAGE_BYTES_MAX)]
    values: Annotated[list[bytes], msgspec.Meta(max_length=PAGE_BYTES_MAX)]


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode
_decode_page = msgspec.msgpack.Decoder(_Stored).decode


class _Page:
    """A page in memory. Those that are shared between transactions must not be changed."""

    __slots__ = ("is_leaf", "keys", "size", "values")

    def __init__(self, is_leaf: bool, keys: list[bytes], values: list[bytes]) -> None:
        self.is_leaf = is_leaf
        self.keys = keys
        self.values = values
        self.size = _PAGE_BYTES + sum(map(len, keys)) + sum(map(len, values)) + _ENTRY_BYTES * len(keys)

    def copy(self) -> _Page:
        return _Page(self.is_leaf, self.keys.copy(), self.values.copy())

    def below(self, key: bytes) -> int:
        """The position of the page below that has a key."""
        return max(0, bisect_right(self.keys, key) - 1)

    def insert(self, at: int, key: bytes, value: bytes) -> None:
        self.keys.insert(at, key)
        self.values.insert(at, value)
        self.size += len(key) + len(value) + _ENTRY_BYTES

    def remove(self, at: int) -> None:
        self.size -= len(self.keys.pop(at)) + len(self.values.pop(at)) + _ENTRY_BYTES

    def split(self, added_at: int) -> _Page:
        """Take the upper part off and return it."""
        share = _APPENDED_SHARE if added_at == len(self.keys) - 1 else 0.5
        left, at = self.size * share, 0
        while at < len(self.keys) - 1 and left > 0:
            left -= len(self.keys[at]) + len(self.values[at]) + _ENTRY_BYTES
            at += 1
        at = max(1, at)
        upper = _Page(self.is_leaf, self.keys[at:], self.values[at:])
        del self.keys[at:], self.values[at:]
        self.size -= upper.size - _PAGE_BYTES
        return upper


class PageCache:
    """The pages that were read or written last, opened and decoded. Thread-safe.

    A page is only used again if the database has the same sealed bytes.
    """

    def __init__(self) -> None:
        self._pages: LRUCache[bytes, tuple[bytes, _Page | _Header]] = LRUCache(_CACHED_PAGES)
        self._lock = threading.Lock()

    def get(self, number: bytes, stored: bytes) -> _Page | _Header | None:
        """Return what was made of these bytes, which must not be changed; None if it is not here."""
        with self._lock:
            kept = self._pages.get(number)
        return kept[1] if kept is not None and kept[0] == stored else None

    def keep(self, number: bytes, stored: bytes, page: _Page | _Header) -> None:
        """Keep what was made of a page, or what a page was made of."""
        with self._lock:
            self._pages[number] = stored, page


def _page_of(raw: bytes) -> _Page:
    try:
        stored = _decode_page(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged() from error
    if len(stored.keys) != len(stored.values) or not (stored.is_leaf or stored.keys):
        raise _damaged()
    return _Page(stored.is_leaf, stored.keys, stored.values)


def _header_of(raw: bytes) -> _Header:
    try:
        return _decode_header(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _damaged() from error


def _damaged() -> FormatError:
    return FormatError("the catalog's index of names is damaged; move the catalog away and rebuild")


class NamesReader:
    """Reads the index in one state of the database.

    Args:
        get: reads a page.
        opener: opens it.
        cache: the pages that were read last.

    All methods raise FormatError if a page is damaged or missing.
    """

    def __init__(self, get: Get, opener: Open, cache: PageCache) -> None:
        self._get = get
        self._open = opener
        self._cache = cache

    def find(self, key: bytes) -> bytes | None:
        """Return the value of a key; None if there is none."""
        number = self._root()
        for _ in range(_DEPTH_MAX):
            page = self._page(number)
            if page.is_leaf:
                at = bisect_left(page.keys, key)
                return page.values[at] if at < len(page.keys) and page.keys[at] == key else None
            number = page.values[page.below(key)]
        raise _damaged()

    def range(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Return up to ``limit`` keys and values with start <= key < stop, in order."""
        found: list[tuple[bytes, bytes]] = []
        waiting: list[tuple[bytes, int]] = [(self._root(), 0)]
        while waiting and len(found) < limit:
            number, depth = waiting.pop()
            if depth > _DEPTH_MAX:
                raise _damaged()
            page = self._page(number)
            if page.is_leaf:
                first = bisect_left(page.keys, start)
                last = len(page.keys) if stop is None else bisect_left(page.keys, stop)
                found += list(zip(page.keys[first:last], page.values[first:last], strict=True))[: limit - len(found)]
                continue
            first = page.below(start)
            last = len(page.keys) if stop is None else max(first + 1, bisect_left(page.keys, stop))
            waiting += [(child, depth + 1) for child in reversed(page.values[first:last])]
        return found

    def _header(self) -> _Header:
        found = self._read(_HEADER)
        assert isinstance(found, _Header), "the header has a number of its own"
        return found

    def _root(self) -> bytes:
        return _number(self._header().root)

    def _page(self, number: bytes) -> _Page:
        found = self._read(number)
        if isinstance(found, _Header):
            raise _damaged()
        return found

    def _read(self, number: bytes) -> _Page | _Header:
        stored = self._get(number)
        if stored is None:
            raise _damaged()
        found = self._cache.get(number, stored)
        if found is None:
            raw = self._open(number, stored)
            found = _header_of(raw) if number == _HEADER else _page_of(raw)
            self._cache.keep(number, stored, found)
        return found


class NamesWriter(NamesReader):
    """Reads and changes the index in a transaction. Call :meth:`flush` at its end."""

    def __init__(self, get: Get, opener: Open, cache: PageCache) -> None:
        super().__init__(get, opener, cache)
        self._changed: dict[bytes, _Page | None] = {}
        self._seen: dict[bytes, _Page] = {}
        self._head: _Header | None = None
        self._head_seen: _Header | None = None

    @classmethod
    def new(cls, get: Get, opener: Open, cache: PageCache) -> NamesWriter:
        """Return the writer of a new index."""
        writer = cls(get, opener, cache)
        writer._head = _Header(1, 2)
        writer._changed[_number(1)] = _Page(True, [], [])
        return writer

    def put(self, key: bytes, value: bytes) -> None:
        """Set a value."""
        root = self._root()
        upper = self._put(root, key, value, 0)
        if upper is not None:
            top = self._added(_Page(False, [b"", upper[0]], [root, upper[1]]))
            self._head = _Header(int.from_bytes(top, "big"), self._header().next)

    def _put(self, number: bytes, key: bytes, value: bytes, depth: int) -> tuple[bytes, bytes] | None:
        """Set a value below a page; if that was split, return the lowest key and the number of its upper part."""
        page = self._page(number)
        if depth > _DEPTH_MAX:
            raise _damaged()
        if page.is_leaf:
            at = bisect_left(page.keys, key)
            if at < len(page.keys) and page.keys[at] == key:
                if page.values[at] != value:
                    page = self._own(number)
                    page.remove(at)
                    page.insert(at, key, value)
                return None
            page = self._own(number)
            page.insert(at, key, value)
        else:
            below = page.below(key)
            added = self._put(page.values[below], key, value, depth + 1)
            if added is None:
                return None
            page, at = self._own(number), below + 1
            page.insert(at, *added)
        if page.size <= PAGE_BYTES_MAX:
            return None
        upper = page.split(at)
        return upper.keys[0], self._added(upper)

    def delete(self, key: bytes) -> bool:
        """Remove a key; return whether it existed."""
        before = root = self._root()
        if not self._delete(root, key, 0):
            return False
        page = self._page(root)
        while not page.is_leaf and len(page.keys) == 1:
            self._changed[root] = None
            root = page.values[0]
            page = self._page(root)
        if root != before:
            self._head = _Header(int.from_bytes(root, "big"), self._header().next)
        return True

    def _delete(self, number: bytes, key: bytes, depth: int) -> bool:
        page = self._page(number)
        if depth > _DEPTH_MAX:
            raise _damaged()
        if page.is_leaf:
            at = bisect_left(page.keys, key)
            if at == len(page.keys) or page.keys[at] != key:
                return False
            self._own(number).remove(at)
            return True
        at = page.below(key)
        if not self._delete(page.values[at], key, depth + 1):
            return False
        if self._page(page.values[at]).size < _NEARLY_EMPTY_BYTES and len(page.keys) > 1:
            self._join(number, min(at, len(page.keys) - 2))
        return True

    def _join(self, number: bytes, at: int) -> None:
        """Join two neighbours below a page, if they fit into one."""
        page = self._page(number)
        lower, upper = page.values[at], page.values[at + 1]
        joined, taken = self._page(lower), self._page(upper)
        if joined.keys and taken.keys and joined.size + taken.size > _JOINED_BYTES_MAX:
            return
        # The first key of an inner page may be lower than all below it, but what is above has the right one.
        keys = taken.keys if taken.is_leaf else [page.keys[at + 1], *taken.keys[1:]]
        self._changed[lower] = _Page(joined.is_leaf, joined.keys + keys, joined.values + taken.values)
        self._changed[upper] = None
        self._own(number).remove(at + 1)

    def flush(self, put: Put, delete: Callable[[bytes], object]) -> None:
        """Write what has changed since the last time."""
        changed, self._changed, self._seen = self._changed, {}, {}
        for number, page in changed.items():
            if page is None:
                delete(number)
            else:
                stored = put(number, _encode(_Stored(page.is_leaf, page.keys, page.values)))
                self._cache.keep(number, stored, page)
        if self._head is not None:
            self._cache.keep(_HEADER, put(_HEADER, _encode(self._head)), self._head)

    def _header(self) -> _Header:
        if self._head is not None:
            return self._head
        if self._head_seen is None:
            self._head_seen = super()._header()
        return self._head_seen

    def _page(self, number: bytes) -> _Page:
        page = self._changed.get(number)
        if page is not None:
            return page
        if number in self._changed:
            raise _damaged()
        page = self._seen.get(number)
        if page is None:
            page = self._seen[number] = super()._page(number)
        return page

    def _own(self, number: bytes) -> _Page:
        """A page that this transaction may change."""
        page = self._page(number)
        if number not in self._changed:
            page = self._changed[number] = page.copy()
        return page

    def _added(self, page: _Page) -> bytes:
        """Give a new page a number."""
        header = self._header()
        number = _number(header.next)
        self._head = _Header(header.root, header.next + 1)
        self._changed[number] = page
        return number


def _number(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")
