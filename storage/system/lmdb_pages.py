"""Checks the consistency of an LMDB data file's pages, without LMDB.

LMDB writes a changed page to another place, and reuses the former place a few transactions later. So a copy of a file
in use may combine an older header with newer pages. LMDB has no checksums and opens such a copy, but entries are
missing, pages are both in use and free, a write may destroy more, and reading it may end the process with a failed
assertion. So this module reads it first, and checks every offset.

The format is LMDB 0.9's, data version 1 (``mdb.c``: MDB_page, MDB_node, MDB_db, MDB_meta).
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from operator import lt
from pathlib import Path
from typing import NamedTuple

_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, address, map size, free list, main tree, last page, txn
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
_NODE = struct.Struct("<HHHH")
_NUMBER = struct.Struct("<Q")
_RUN = struct.Struct("<I")  # pages of an overflow run, where other pages have lower and upper
_BRANCH, _LEAF, _OVERFLOW = 0x01, 0x02, 0x04
_KINDS = 0x6F  # the flags for the kind of page; others belong to a transaction
_BIG, _SUBTREE = 0x01, 0x02  # flags of a leaf's node: the value is on overflow pages; it is a tree
_NO_PAGE = (1 << 64) - 1
_METAS = 2
_DEPTH_MAX = 32
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 256, 65536
_META_READ_BYTES = _HEADER.size + _META.size


class TornPages(Exception):
    """The pages are inconsistent; the text says which."""


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class _Meta(NamedTuple):
    page_bytes: int
    free: _Tree
    main: _Tree
    last_page: int
    transaction: int


class _Node(NamedTuple):
    """A leaf's entry for a key: flags, length and position of the value."""

    key: bytes
    flags: int
    length: int
    value_at: int


class _Page(NamedTuple):
    """A page of a tree.

    Attributes:
        raw: its bytes.
        places: positions of its nodes.
        keys: keys of its nodes.
        below: numbers of the pages below a branch.
        flagged: which nodes of a leaf have flags.
    """

    raw: bytes
    places: tuple[int, ...]
    keys: list[bytes]
    below: list[int]
    flagged: list[int]

    def node(self, at: int) -> _Node:
        """Return the node at an index of ``places``, on a leaf."""
        low, high, flags, key_length = _NODE.unpack_from(self.raw, self.places[at])
        return _Node(self.keys[at], flags, low | high << 16, self.places[at] + _NODE.size + key_length)


class DataFile:
    """The latest committed state of a data file without a writer; see :meth:`opened`.

    Attributes:
        descriptor: descriptor of the open file.
        pages_written: how many pages the file has; later ones were freed before they were written.
        transaction: number of the latest transaction.
    """

    def __init__(self, descriptor: int, meta: _Meta) -> None:
        self.descriptor = descriptor
        self._meta = meta
        self.pages_written = os.fstat(descriptor).st_size // meta.page_bytes
        self.transaction = meta.transaction

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[DataFile | None]:
        """Open the file at a path; None if there is none, or LMDB would not accept it.

        Raises:
            OSError: it cannot be read.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            meta = _newest_meta(descriptor)
            yield None if meta is None else cls(descriptor, meta)
        finally:
            os.close(descriptor)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of a key in the main tree; None if there is none, or it is on overflow pages.

        Raises:
            TornPages: a page on the way to it is damaged.
        """
        number, depth = self._meta.main.root, min(self._meta.main.depth, _DEPTH_MAX)
        for left in range(depth - 1, -1, -1):
            page = self.page(number, leaf=not left)
            if left:
                number = page.below[max(0, bisect_right(page.keys, key, lo=1) - 1)]
            elif key in page.keys:
                node = page.node(page.keys.index(key))
                return None if node.flags else page.raw[node.value_at : node.value_at + node.length]
        return None

    def check(self) -> None:
        """Check that trees and free list are complete, in order, of the right size, and share no page.

        This reads the whole file, and takes a few seconds for a million entries.

        Raises:
            TornPages: they are not.
        """
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        _Check(self, self._meta).run()

    def read(self, number: int, count: int) -> bytes:
        """Read ``count`` pages."""
        if number < _METAS or number + count > min(self._meta.last_page + 1, self.pages_written):
            raise TornPages(f"page {number} is beyond the end")
        return os.pread(self.descriptor, count * self._meta.page_bytes, number * self._meta.page_bytes)

    def page(self, number: int, *, leaf: bool) -> _Page:
        """Read a page of a tree, and check that all its entries lie within it."""
        raw = self.read(number, 1)
        size = len(raw)
        found, _, flags, lower, upper = _HEADER.unpack_from(raw)
        if found != number or flags & _KINDS != (_LEAF if leaf else _BRANCH):
            raise TornPages(f"page {number} has another page's number, or another kind than expected")
        if lower % 2 or not _HEADER.size < lower <= upper <= size:
            raise TornPages(f"page {number} has an invalid list of entries")
        places = struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", raw, _HEADER.size)
        if min(places) < upper or max(places) > size - _NODE.size:
            raise TornPages(f"page {number} has an entry beyond its end")
        keys: list[bytes] = []
        below: list[int] = []
        flagged: list[int] = []
        for at, (low, high, flags, key_length) in enumerate(map(partial(_NODE.unpack_from, raw), places)):
            start = places[at] + _NODE.size
            end = start + key_length
            keys.append(raw[start:end])
            if not leaf:
                below.append(low | high << 16 | flags << 32)
            elif not flags:
                end += low | high << 16
            else:
                flagged.append(at)
                end += _NUMBER.size if flags == _BIG else _TREE.size
                if flags not in (_BIG, _SUBTREE):
                    raise TornPages(f"page {number} has an entry with invalid flags")
            if end > size:
                raise TornPages(f"page {number} has an entry beyond its end")
        return _Page(raw, places, keys, below, flagged)


class _Check:
    """One check of all pages.

    Args:
        file: the data file.
        meta: its header.
    """

    def __init__(self, file: DataFile, meta: _Meta) -> None:
        self._file = file
        self._meta = meta
        self._seen = bytearray(min(meta.last_page + 1, file.pages_written))
        self._entries = 0  # in the current tree

    def run(self) -> None:
        trees = self._walk(self._meta.main, "the main tree")
        for name, tree in trees:
            if self._walk(tree, name):
                raise TornPages(f"{name} has a tree in it")
        self._walk_free()

    def _walk(self, tree: _Tree, name: str) -> list[tuple[str, _Tree]]:
        """Check one tree; returns the trees among its entries."""
        below: list[tuple[str, _Tree]] = []
        for page in self._leaves(tree, name, ordered=True):
            for node in map(page.node, page.flagged):
                if node.flags == _SUBTREE:
                    if node.length != _TREE.size:
                        raise TornPages(f"{name} has an entry that is no tree")
                    found = _Tree(*_TREE.unpack_from(page.raw, node.value_at))
                    below.append((f"the tree {node.key.decode(errors='replace')!r}", found))
        return below

    def _walk_free(self) -> None:
        """Check the free list, and that no page in it is in use."""
        for page in self._leaves(self._meta.free, "the free list", ordered=False):
            for node in map(page.node, range(len(page.keys))):
                if len(node.key) != _NUMBER.size or _NUMBER.unpack(node.key)[0] > self._meta.transaction:
                    raise TornPages("the free list has an entry of a later transaction")
                raw = self._value(page, node)
                count = _NUMBER.unpack_from(raw)[0] if len(raw) >= _NUMBER.size else -1
                if not 0 <= count < len(raw) // _NUMBER.size:
                    raise TornPages("the free list has an entry of the wrong length")
                for number in struct.unpack_from(f"<{count}Q", raw, _NUMBER.size):
                    self._take(number, 1)

    def _value(self, page: _Page, node: _Node) -> bytes:
        if node.flags != _BIG:
            return page.raw[node.value_at : node.value_at + node.length]
        (number,) = _NUMBER.unpack_from(page.raw, node.value_at)
        held = self._file.read(number, self._pages_of(node.length))
        return held[_HEADER.size : _HEADER.size + node.length]

    def _pages_of(self, length: int) -> int:
        return (_HEADER.size - 1 + length) // self._meta.page_bytes + 1

    def _leaves(self, tree: _Tree, name: str, *, ordered: bool) -> Iterator[_Page]:
        """Yield the leaves of a tree from left to right, checking all of it on the way."""
        self._entries = 0
        if tree.root != _NO_PAGE:
            if not 1 <= tree.depth <= _DEPTH_MAX:
                raise TornPages(f"{name} has an invalid depth")
            yield from self._below(tree.root, tree.depth, name, b"", None, ordered=ordered)
        if self._entries != tree.entries:
            raise TornPages(f"{name} has {self._entries:,} entries instead of {tree.entries:,}")

    def _below(
        self, number: int, depth: int, name: str, low: bytes, high: bytes | None, *, ordered: bool
    ) -> Iterator[_Page]:
        leaf = depth == 1
        self._take(number, 1)
        page = self._file.page(number, leaf=leaf)
        if ordered:
            self._check_order(page.keys, name, low, high, leaf=leaf)
        if leaf:
            self._entries += len(page.keys)
            for node in map(page.node, page.flagged):
                if node.flags == _BIG:
                    self._take_run(_NUMBER.unpack_from(page.raw, node.value_at)[0], node.length)
            yield page
            return
        for at, below in enumerate(page.below):
            above = page.keys[at + 1] if at + 1 < len(page.keys) else high
            yield from self._below(below, depth - 1, name, page.keys[at] if at else low, above, ordered=ordered)

    def _check_order(self, keys: list[bytes], name: str, low: bytes, high: bytes | None, *, leaf: bool) -> None:
        inner = keys if leaf else keys[1:]  # LMDB keeps no key for the first page below
        if inner and (inner[0] < low or (high is not None and inner[-1] >= high)):
            raise TornPages(f"{name} has entries in the wrong place")
        if not all(map(lt, inner, islice(inner, 1, None))):
            raise TornPages(f"{name} has entries out of order")

    def _take_run(self, number: int, length: int) -> None:
        """Take the pages of a value: as many as it needs, or more if it was longer earlier in the same transaction."""
        header = self._file.read(number, 1)
        found, _, flags, _, _ = _HEADER.unpack_from(header)
        (count,) = _RUN.unpack_from(header, _HEADER.size - _RUN.size)
        if found != number or flags & _KINDS != _OVERFLOW or count < self._pages_of(length):
            raise TornPages(f"page {number} is not the start of the value that an entry refers to")
        self._take(number, count)

    def _take(self, number: int, count: int) -> None:
        if number < _METAS or number + count > self._meta.last_page + 1:
            raise TornPages(f"page {number} is beyond the end")
        if any(self._seen[number : number + count]):
            raise TornPages(f"page {number} is used twice, or is free and used")
        if number + count <= len(self._seen):
            self._seen[number : number + count] = b"\1" * count


def _newest_meta(descriptor: int) -> _Meta | None:
    """Return the later of the two headers; None if LMDB itself would refuse them."""
    first = _meta(os.pread(descriptor, _META_READ_BYTES, 0))
    if first is None or not _PAGE_BYTES_MIN <= first.page_bytes <= _PAGE_BYTES_MAX:
        return None
    second = _meta(os.pread(descriptor, _META_READ_BYTES, first.page_bytes))
    if second is None:
        return None
    return max(first, second, key=lambda meta: meta.transaction)


def _meta(raw: bytes) -> _Meta | None:
    if len(raw) < _META_READ_BYTES:
        return None
    magic, version, _, _, free, main, last_page, transaction = _META.unpack_from(raw, _HEADER.size)
    if magic != _MAGIC or version != _DATA_VERSION:
        return None
    lists = _Tree(*_TREE.unpack(free))
    return _Meta(lists.pad, lists, _Tree(*_TREE.unpack(main)), last_page, transaction)
