"""Manifests: the Merkle tree over a version's chunks, and its edits.

A tree has fan-out 1024. The root carries everything needed to read the file; the nodes below it are
content-addressed, so that versions share what did not change. A tree's shape follows from the number
of chunks alone, so equal content gives equal trees.

Children are named by *references*: the id of the object, of 32 bytes; in a sealed file, the hash of the
content, and then the id of the stored object, which is encrypted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from blake3 import blake3

from storage.erasure import ErasureProfile, profile_for
from storage.errors import FormatError
from storage.keys import ID_BYTES
from storage.limits import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, FILE_SIZE_MAX

FAN_OUT = 1024
HEIGHT_MAX = 4
TRANSFORM_IDENTITY = 0
TRANSFORM_SEALED = 1
SEALED_REFERENCE_BYTES = 2 * ID_BYTES
_REFERENCE_BYTES = (ID_BYTES, SEALED_REFERENCE_BYTES)  # by transform
ROOT_FORMAT = 1

LoadNode = Callable[[bytes], bytes]
"""Returns the bytes of the node with this reference, or raises."""
StoreNode = Callable[[bytes, bytes], None]
"""Takes the reference of a new node, and the bytes to store."""
NameNode = Callable[[bytes], tuple[bytes, bytes]]
"""Takes the bytes of a node; returns its reference, and the bytes to store."""

_Height = Annotated[int, msgspec.Meta(ge=0, le=HEIGHT_MAX)]
_Children = Annotated[bytes, msgspec.Meta(max_length=FAN_OUT * SEALED_REFERENCE_BYTES)]


class RootNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Root of a manifest, as a MessagePack array in this order.

    Attributes:
        format: 1.
        size: bytes of the file.
        chunk_size: bytes of every chunk but the last.
        k: shards needed.
        n: shards stored.
        transform: how stored bytes follow from the content; 0: they are the same; 1: they are sealed.
        height: levels of nodes below the root; 0 = ``children`` are chunks.
        children: references of the children, concatenated.
    """

    format: Annotated[int, msgspec.Meta(ge=ROOT_FORMAT, le=ROOT_FORMAT)]
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    chunk_size: Annotated[int, msgspec.Meta(ge=CHUNK_SIZE_MIN, le=CHUNK_SIZE_MAX)]
    k: Annotated[int, msgspec.Meta(ge=1, le=256)]
    n: Annotated[int, msgspec.Meta(ge=1, le=256)]
    transform: Annotated[int, msgspec.Meta(ge=TRANSFORM_IDENTITY, le=TRANSFORM_SEALED)]
    height: _Height
    children: _Children

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)

    @property
    def is_sealed(self) -> bool:
        """Whether nodes and chunks are encrypted."""
        return self.transform == TRANSFORM_SEALED

    @property
    def reference_bytes(self) -> int:
        """Length of the reference of a child."""
        return _REFERENCE_BYTES[self.transform]

    @property
    def profile(self) -> ErasureProfile:
        """The erasure profile of the chunks."""
        return profile_for(self.k, self.n)

    def chunk_length(self, index: int) -> int:
        """Bytes of chunk ``index`` (0…chunk_count-1)."""
        return min(self.chunk_size, self.size - index * self.chunk_size)


class InnerNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node below the root: level (0 = its children are chunks) and the references of its children."""

    level: _Height
    children: _Children


_encoder = msgspec.msgpack.Encoder()
_root_decoder = msgspec.msgpack.Decoder(RootNode)
_node_decoder = msgspec.msgpack.Decoder(InnerNode)


def encode_root(root: RootNode) -> bytes:
    """Canonical bytes of a root."""
    return _encoder.encode(root)


def read_root(raw: bytes) -> RootNode:
    """Read a root from bytes that were checked when they were stored in the catalog.

    Raises:
        FormatError: they are malformed nevertheless.
    """
    try:
        root = _root_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"manifest root is malformed: {error}") from error
    if root.k > root.n or root.height != height_for(root.chunk_count):
        raise FormatError("manifest root contradicts itself (code or height)")
    if len(root.children) != root.reference_bytes * _width(root.chunk_count, root.height):
        raise FormatError("manifest root has the wrong number of children")
    return root


def decode_root(raw: bytes) -> RootNode:
    """Inverse of :func:`encode_root`, checking every bound and the canonical form.

    Raises:
        FormatError: it is not a root that this release understands.
    """
    root = read_root(raw)
    if encode_root(root) != raw:
        raise FormatError("manifest root is not in canonical form")
    return root


def encode_node(level: int, children: bytes) -> bytes:
    """Canonical bytes of an inner node."""
    return _encoder.encode(InnerNode(level, children))


def decode_node(raw: bytes, level: int, reference_bytes: int = ID_BYTES) -> bytes:
    """The children of an inner node, which must be of this level, and have references of this length.

    Raises:
        FormatError: it is malformed, of another level, or has a broken list of children.
    """
    try:
        node = _node_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"manifest node is malformed: {error}") from error
    size = len(node.children)
    if node.level != level or size % reference_bytes or not 0 < size <= FAN_OUT * reference_bytes:
        raise FormatError("manifest node has the wrong level or children")
    return node.children


def object_id(raw: bytes | memoryview) -> bytes:
    """BLAKE3-256 of an object's bytes: its name."""
    return blake3(raw).digest()


def height_for(chunk_count: int) -> int:
    """The number of levels below the root of a tree over this many chunks."""
    height, reach = 0, FAN_OUT
    while chunk_count > reach:
        height, reach = height + 1, reach * FAN_OUT
    return height


def span_of(level: int) -> int:
    """Chunks below one child of a node of ``level``."""
    return int(FAN_OUT**level)


def _width(chunk_count: int, level: int) -> int:
    return -(-chunk_count // span_of(level))


def plain_id(reference: bytes) -> bytes:
    """The hash of the content that a reference names."""
    return reference[:ID_BYTES]


def stored_id(reference: bytes) -> bytes:
    """The id of the stored object that a reference names."""
    return reference[-ID_BYTES:]


def named_by_hash(raw: bytes) -> tuple[bytes, bytes]:
    """Name a node that is stored as it is; see :data:`NameNode`."""
    return object_id(raw), raw


def child_at(children: bytes | bytearray, position: int, size: int) -> bytes:
    """The reference at a position, of ``size`` bytes; empty beyond the end."""
    return bytes(children[position * size : (position + 1) * size])


def _there(children: bytes, position: int, size: int) -> bytes:
    """Like :func:`_child`, for a child that must exist."""
    child = child_at(children, position, size)
    if len(child) != size:
        raise FormatError("manifest node has too few children")
    return child


@dataclass(slots=True)
class ManifestBuilder:
    """Builds a tree from references of chunks in order, passing on nodes as soon as they are full (bounded memory).

    Attributes:
        store_node: takes the nodes.
        name_node: names them.
        transform: see :class:`RootNode`.
        count: how many chunks there are so far.
    """

    store_node: StoreNode
    name_node: NameNode = named_by_hash
    transform: int = TRANSFORM_IDENTITY
    count: int = 0
    _levels: list[bytearray] = field(default_factory=lambda: [bytearray()])

    def add(self, reference: bytes) -> None:
        """Append one chunk."""
        self._push(0, reference)
        self.count += 1

    def _push(self, level: int, child: bytes) -> None:
        if level == len(self._levels):
            self._levels.append(bytearray())
        children = self._levels[level]
        if len(children) == FAN_OUT * _REFERENCE_BYTES[self.transform]:
            self._push(level + 1, self._emit(level))
            children = self._levels[level]
        children += child

    def _emit(self, level: int) -> bytes:
        reference, stored = self.name_node(encode_node(level, bytes(self._levels[level])))
        self.store_node(reference, stored)
        self._levels[level] = bytearray()
        return reference

    def root(self, size: int, chunk_size: int, profile: ErasureProfile) -> RootNode:
        """Emit partial nodes, and return the root."""
        level = 0
        while level < len(self._levels) - 1:  # a push may add a level
            self._push(level + 1, self._emit(level))
            level += 1
        height = height_for(self.count)
        children = bytes(self._levels[height])
        return RootNode(ROOT_FORMAT, size, chunk_size, profile.k, profile.n, self.transform, height, children)


class Manifest:
    """A readable tree: a root and a way to load the nodes below it."""

    __slots__ = ("_load", "_size", "root")

    def __init__(self, root: RootNode, load_node: LoadNode) -> None:
        self.root = root
        self._load = load_node
        self._size = root.reference_bytes

    def reference(self, index: int) -> bytes:
        """Reference of chunk ``index``."""
        return _there(self._leaf(index), index % FAN_OUT, self._size)

    def chunk_id(self, index: int) -> bytes:
        """Hash of the content of chunk ``index``."""
        return plain_id(self.reference(index))

    def references(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """References of chunks start…stop-1, loading one leaf at a time."""
        stop = self.root.chunk_count if stop is None else min(stop, self.root.chunk_count)
        while start < stop:
            leaf = self._leaf(start)
            upto = min(stop, (start // FAN_OUT + 1) * FAN_OUT)
            for index in range(start, upto):
                yield _there(leaf, index % FAN_OUT, self._size)
            start = upto

    def chunk_ids(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Hashes of the contents of chunks start…stop-1, loading one leaf at a time."""
        return map(plain_id, self.references(start, stop))

    def leaves(self) -> Iterator[list[bytes]]:
        """References of all chunks, one leaf at a time."""
        size = self._size
        for start in range(0, self.root.chunk_count, FAN_OUT):
            count = min(FAN_OUT, self.root.chunk_count - start)
            leaf = self._leaf(start)[: count * size]
            if len(leaf) != count * size:
                raise FormatError("manifest node has too few children")
            yield [leaf[at : at + size] for at in range(0, len(leaf), size)]

    def _leaf(self, index: int) -> bytes:
        children = self.root.children
        for level in range(self.root.height, 0, -1):
            children = self.children_of(_there(children, index // span_of(level) % FAN_OUT, self._size), level - 1)
        return children

    def children_of(self, reference: bytes, level: int) -> bytes:
        """Children of a node of this level."""
        return decode_node(self._load(reference), level, self._size)

    def node_ids(self) -> Iterator[bytes]:
        """Ids of all stored nodes below the root."""
        return map(stored_id, self._nodes(self.root.children, self.root.height))

    def _nodes(self, children: bytes, level: int) -> Iterator[bytes]:
        if level == 0:
            return
        for position in range(len(children) // self._size):
            node = child_at(children, position, self._size)
            yield node
            if level > 1:
                yield from self._nodes(self.children_of(node, level - 1), level - 1)


def edited(
    manifest: Manifest,
    size: int,
    chunks: Sequence[tuple[int, bytes]],
    store_node: StoreNode,
    name_node: NameNode = named_by_hash,
) -> RootNode:
    """The root of a tree with some chunks replaced and another size; copies only the changed paths.

    Args:
        manifest: the tree to start from.
        size: new size in bytes.
        chunks: (index, reference), ascending by index, all below the new chunk count.
        store_node: takes the new nodes.
        name_node: names them.
    """
    return _Edit(manifest, size, chunks, store_node, name_node).run()


class _Edit:
    def __init__(
        self,
        manifest: Manifest,
        size: int,
        chunks: Sequence[tuple[int, bytes]],
        store_node: StoreNode,
        name_node: NameNode,
    ) -> None:
        self._manifest = manifest
        self._root = manifest.root
        self._size = size
        self._chunks = chunks
        self._indices = [index for index, _ in chunks]
        self._store = store_node
        self._name = name_node
        self._width = manifest.root.reference_bytes
        self._fresh: dict[bytes, tuple[bytes, bytes]] = {}  # by reference: a node's bytes, and those to store
        self._old_count = self._root.chunk_count
        self._new_count = -(-size // self._root.chunk_size)

    def run(self) -> RootNode:
        height = height_for(self._new_count)
        top = max(height, self._root.height)
        children = self._lifted(top)
        if top > height:
            for level in range(top, height, -1):
                children = self._descend(children, level)
        children = self._edit(children, height, 0)
        root = self._root
        return RootNode(ROOT_FORMAT, self._size, root.chunk_size, root.k, root.n, root.transform, height, children)

    def _lifted(self, top: int) -> bytes:
        """The old root's children, in a tree of greater height."""
        children = self._root.children
        for level in range(self._root.height, top):
            if not children:
                return b""
            raw = encode_node(level, children)
            children, stored = self._name(raw)
            self._fresh[children] = raw, stored
        return children

    def _descend(self, children: bytes, level: int) -> bytes:
        """Descend in a shrunk tree, which lies entirely below the first child of the old top."""
        return self._children(child_at(children, 0, self._width), level - 1) if children else b""

    def _edit(self, old: bytes, level: int, first: int) -> bytes:
        """New children of the node of ``level`` whose first chunk is ``first``."""
        span = span_of(level)
        width = min(FAN_OUT, -(-(self._new_count - first) // span)) if self._new_count > first else 0
        size = self._width
        children = bytearray(old[: width * size])
        touched = self._touched(children, level, first, width)
        if child_at(children, 0, size) in self._fresh and 0 not in touched:
            # The old root becomes an unchanged node of the taller tree, but was never stored as a node.
            for reference, (_, stored) in self._fresh.items():
                self._store(reference, stored)
        for position in touched:
            child = self._newchild_at(bytes(old), level, first, position)
            children[position * size : (position + 1) * size] = child
        return bytes(children)

    def _touched(self, children: bytearray, level: int, first: int, width: int) -> list[int]:
        """Positions whose child changes: it has an edited chunk, is new, or covers another number of chunks."""
        span = span_of(level)
        low, high = bisect_left(self._indices, first), bisect_left(self._indices, first + width * span)
        positions = {(index - first) // span for index in self._indices[low:high]}
        positions.update(range(len(children) // self._width, width))
        if level > 0 and width:
            for count in (self._old_count, self._new_count):
                position = (count - 1 - first) // span
                if 0 <= position < width and self._clipped(count, first + position * span, span) != self._clipped(
                    self._other(count), first + position * span, span
                ):
                    positions.add(position)
        return sorted(positions)

    def _other(self, count: int) -> int:
        return self._old_count if count == self._new_count else self._new_count

    @staticmethod
    def _clipped(count: int, first: int, span: int) -> int:
        return max(0, min(span, count - first))

    def _newchild_at(self, old: bytes, level: int, first: int, position: int) -> bytes:
        if level == 0:
            return self._chunks[bisect_left(self._indices, first + position)][1]
        had = child_at(old, position, self._width)
        below = self._children(had, level - 1) if had else b""
        children = self._edit(below, level - 1, first + position * span_of(level))
        raw = encode_node(level - 1, children)
        if plain_id(had) == object_id(raw) and had not in self._fresh:
            return had  # also if the node was sealed with a former key
        reference, stored = self._name(raw)
        self._store(reference, stored)
        return reference

    def _children(self, node: bytes, level: int) -> bytes:
        fresh = self._fresh.get(node)
        if fresh is None:
            return self._manifest.children_of(node, level)
        return decode_node(fresh[0], level, self._width)
