"""Trees of secrets: one key gives each version a secret of its own, and can be cut back to the secrets of some.

A key is the root of a binary tree of 40 levels. From the seed of a node follow those of its two children, and from
these nothing about the node or the other child. The seeds of the leaves are the secrets. To forget some of them, the
root is replaced by the seeds of the largest subtrees that have none of them: it takes about as many seeds as there are
gaps between those that stay.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from storage.errors import FormatError
from storage.sealing.aead import KEY_BYTES, derived

LEVELS = 40
LEAF_MAX = (1 << LEVELS) - 1
SEED_BYTES = 1 + LEVELS // 8 + KEY_BYTES
"""A seed as it is stored: its level, the first leaf below it, and the seed itself."""

_ROOT = "TaskWorker 2026-11 shredding: root"
_LEFT, _RIGHT = b"\0", b"\1"
_PAGE_LEVELS = 12
_PAGE_BYTES = 1 << _PAGE_LEVELS >> 3
_FULL_PAGE = bytearray(b"\xff" * _PAGE_BYTES)


class Seed(NamedTuple):
    """The seed of a subtree.

    Attributes:
        start: its first leaf.
        level: it has two to the power of this many leaves.
        secret: 32 bytes.
    """

    start: int
    level: int
    secret: bytes

    def children(self) -> tuple[Seed, Seed]:
        """The seeds of both halves."""
        level = self.level - 1
        return (
            Seed(self.start, level, blake3(_LEFT, key=self.secret).digest()),
            Seed(self.start + (1 << level), level, blake3(_RIGHT, key=self.secret).digest()),
        )


class LeafSet:
    """A set of leaves. It takes a bit for each leaf where there are many, and 600 bytes for a lone one."""

    def __init__(self, leaves: Iterable[int] = ()) -> None:
        self._pages: dict[int, bytearray] = {}
        self._sorted: list[int] = []
        self._count = 0
        for leaf in leaves:
            self.add(leaf)

    def __len__(self) -> int:
        return self._count

    def add(self, leaf: int) -> None:
        """Add a leaf."""
        page = self._pages.get(leaf >> _PAGE_LEVELS)
        if page is None:
            page = self._pages[leaf >> _PAGE_LEVELS] = bytearray(_PAGE_BYTES)
        at, bit = (leaf >> 3) % _PAGE_BYTES, 1 << (leaf & 7)
        self._count += not page[at] & bit
        page[at] |= bit

    def has_any(self, start: int, level: int) -> bool:
        """Whether a subtree has one of the leaves."""
        if level < _PAGE_LEVELS:
            return bool(self._bits(start, level))
        if len(self._sorted) != len(self._pages):
            self._sorted = sorted(self._pages)
        first = bisect_left(self._sorted, start >> _PAGE_LEVELS)
        return first < len(self._sorted) and self._sorted[first] < start + (1 << level) >> _PAGE_LEVELS

    def has_all(self, start: int, level: int) -> bool:
        """Whether all leaves of a subtree are in the set."""
        if level < _PAGE_LEVELS:
            return self._bits(start, level) == (1 << (1 << level)) - 1
        if 1 << (level - _PAGE_LEVELS) > len(self._pages):
            return False
        pages = range(start >> _PAGE_LEVELS, start + (1 << level) >> _PAGE_LEVELS)
        return all(self._pages.get(page) == _FULL_PAGE for page in pages)

    def _bits(self, start: int, level: int) -> int:
        """The bits of a subtree within a page."""
        page = self._pages.get(start >> _PAGE_LEVELS)
        if page is None:
            return 0
        at = (start >> 3) % _PAGE_BYTES
        if level >= 3:
            return int.from_bytes(page[at : at + (1 << (level - 3))], "little")
        return page[at] >> (start & 7) & ((1 << (1 << level)) - 1)


class SecretTree:
    """A tree of secrets, or what is left of one. Thread-safe.

    Args:
        seeds: of subtrees that do not overlap, in order.
    """

    __slots__ = ("_levels", "_path", "_secrets", "_starts")

    def __init__(self, seeds: Iterable[Seed]) -> None:
        starts, levels, secrets = array("Q"), bytearray(), bytearray()
        for seed in seeds:
            starts.append(seed.start)
            levels.append(seed.level)
            secrets += seed.secret
        self._starts, self._levels, self._secrets = starts, bytes(levels), bytes(secrets)
        self._path: tuple[int, tuple[bytes, ...]] = 0, ()  # the latest leaf, and the seeds from its subtree's down

    @classmethod
    def whole(cls, key: bytes) -> SecretTree:
        """The tree of a key of 32 bytes."""
        return cls((Seed(0, LEVELS, derived(key, _ROOT)),))

    def __len__(self) -> int:
        """The number of seeds."""
        return len(self._starts)

    def __iter__(self) -> Iterator[Seed]:
        for at, (start, level) in enumerate(zip(self._starts, self._levels, strict=True)):
            yield Seed(start, level, self._secrets[at * KEY_BYTES : (at + 1) * KEY_BYTES])

    def secret(self, leaf: int) -> bytes | None:
        """Return the secret of a leaf; None if it was forgotten. Leaves near the latest one take less time."""
        at = bisect_right(self._starts, leaf) - 1
        if at < 0 or leaf - self._starts[at] >> self._levels[at]:
            return None
        level = self._levels[at]
        latest, path = self._path
        shared = level - (leaf ^ latest).bit_length()
        if not path or shared < 0 or latest - self._starts[at] >> level or latest < self._starts[at]:
            path, shared = (self._secrets[at * KEY_BYTES : (at + 1) * KEY_BYTES],), 0
        seeds = list(path[: shared + 1])
        for below in range(level - shared - 1, -1, -1):
            seeds.append(blake3(_RIGHT if leaf >> below & 1 else _LEFT, key=seeds[-1]).digest())
        self._path = leaf, tuple(seeds)
        return seeds[-1]

    def run(self, start: int, level: int) -> list[bytes]:
        """Return the secrets of all leaves of a subtree, which takes less time than one after the other.

        Args:
            start: its first leaf, a multiple of its number of leaves.
            level: it has two to the power of this many leaves; the tree has to have all of them.
        """
        at = bisect_right(self._starts, start) - 1
        seed = self._secrets[at * KEY_BYTES : (at + 1) * KEY_BYTES]
        for below in range(self._levels[at] - 1, level - 1, -1):
            seed = blake3(_RIGHT if start >> below & 1 else _LEFT, key=seed).digest()
        seeds = [seed]
        for _ in range(level):
            seeds = [blake3(side, key=seed).digest() for seed in seeds for side in (_LEFT, _RIGHT)]
        return seeds

    def covers(self, seed: Seed) -> bool:
        """Whether the tree has all secrets of a subtree."""
        at = bisect_right(self._starts, seed.start) - 1
        return at >= 0 and self._levels[at] >= seed.level and not (seed.start - self._starts[at]) >> self._levels[at]

    def cut_to(self, kept: LeafSet) -> SecretTree:
        """Return what is left of the tree if it forgets all but some secrets."""
        return SecretTree(seed for one in self for seed in _cut(one, kept))


def _cut(seed: Seed, kept: LeafSet) -> Iterator[Seed]:
    if not kept.has_any(seed.start, seed.level):
        return
    if kept.has_all(seed.start, seed.level):
        yield seed
        return
    for child in seed.children():
        yield from _cut(child, kept)


def joined(trees: Iterable[SecretTree]) -> SecretTree:
    """Return one tree that has the secrets of several that are left of the same tree."""
    seeds: list[Seed] = []
    for seed in sorted((seed for tree in trees for seed in tree), key=lambda seed: (seed.start, -seed.level)):
        if not seeds or seed.start >= seeds[-1].start + (1 << seeds[-1].level):
            seeds.append(seed)
    return SecretTree(seeds)


def packed(seeds: Iterable[Seed]) -> bytes:
    """Return seeds as they are stored."""
    return b"".join(bytes([seed.level]) + seed.start.to_bytes(LEVELS // 8, "big") + seed.secret for seed in seeds)


def unpacked(raw: bytes) -> SecretTree:
    """Inverse of :func:`packed`.

    Raises:
        FormatError: they are malformed, overlap, or are out of order.
    """
    if len(raw) % SEED_BYTES:
        raise FormatError("the remains of a shredding key are malformed")
    seeds: list[Seed] = []
    free = 0
    for at in range(0, len(raw), SEED_BYTES):
        level, start = raw[at], int.from_bytes(raw[at + 1 : at + SEED_BYTES - KEY_BYTES], "big")
        if level > LEVELS or start < free or start % (1 << level):
            raise FormatError("the remains of a shredding key are out of order")
        free = start + (1 << level)
        seeds.append(Seed(start, level, raw[at + SEED_BYTES - KEY_BYTES : at + SEED_BYTES]))
    return SecretTree(seeds)
