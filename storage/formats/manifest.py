"""Manifests: the Merkle tree over a version's chunk ids, its edits and differences.

A tree has fan-out 1024. The root carries everything needed to read the file; the nodes below it are
content-addressed, so that versions share what did not change. A tree's shape follows from the number
of chunks alone, so equal content gives equal trees.
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
_NODE_BYTES = FAN_OUT * ID_BYTES
HEIGHT_MAX = 4
TRANSFORM_IDENTITY = 0
ROOT_FORMAT = 1

LoadNode = Callable[[bytes], bytes]
"""Returns the bytes of the node with this id, or raises."""
StoreNode = Callable[[bytes, bytes], None]
"""Takes (id, bytes) of a new node."""

_Height = Annotated[int, msgspec.Meta(ge=0, le=HEIGHT_MAX)]
_Children = Annotated[bytes, msgspec.Meta(max_length=_NODE_BYTES)]


class RootNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Root of a manifest, as a MessagePack array in this order.

    Attributes:
        format: 1.
        size: bytes of the file.
        chunk_size: bytes of every chunk but the last.
        k: shards needed.
        n: shards stored.
        transform: how chunk bytes follow from content bytes; 0 = identity.
        height: levels of nodes below the root; 0 = ``children`` are chunk ids.
        children: ids (32 bytes each), concatenated.
    """

    format: Annotated[int, msgspec.Meta(ge=ROOT_FORMAT, le=ROOT_FORMAT)]
    size: Annotated[int, msgspec.Meta(ge=0, le=FILE_SIZE_MAX)]
    chunk_size: Annotated[int, msgspec.Meta(ge=CHUNK_SIZE_MIN, le=CHUNK_SIZE_MAX)]
    k: Annotated[int, msgspec.Meta(ge=1, le=256)]
    n: Annotated[int, msgspec.Meta(ge=1, le=256)]
    transform: Annotated[int, msgspec.Meta(ge=TRANSFORM_IDENTITY, le=TRANSFORM_IDENTITY)]
    height: _Height
    children: _Children

    @property
    def chunk_count(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk_size)

    @property
    def profile(self) -> ErasureProfile:
        """The erasure profile of the chunks."""
        return profile_for(self.k, self.n)

    def chunk_length(self, index: int) -> int:
        """Bytes of chunk ``index`` (0…chunk_count-1)."""
        return min(self.chunk_size, self.size - index * self.chunk_size)


class InnerNode(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node below the root: level (0 = its children are chunks) and children ids."""

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
    if len(root.children) != ID_BYTES * _width(root.chunk_count, root.height):
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


def decode_node(raw: bytes, level: int) -> bytes:
    """The children of an inner node, which must be of this level.

    Raises:
        FormatError: it is malformed, of another level, or has a broken list of children.
    """
    try:
        node = _node_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"manifest node is malformed: {error}") from error
    if node.level != level or len(node.children) % ID_BYTES or not node.children:
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


def _span(level: int) -> int:
    """Chunks below one child of a node of ``level``."""
    return int(FAN_OUT**level)


def _width(chunk_count: int, level: int) -> int:
    return -(-chunk_count // _span(level))


def _child(children: bytes | bytearray, position: int) -> bytes:
    return bytes(children[position * ID_BYTES : (position + 1) * ID_BYTES])


def _there(children: bytes, position: int) -> bytes:
    """Like :func:`_child`, for a child that must exist."""
    child = _child(children, position)
    if len(child) != ID_BYTES:
        raise FormatError("manifest node has too few children")
    return child


@dataclass(slots=True)
class ManifestBuilder:
    """Builds a tree from chunk ids in order, passing on nodes as soon as they are full (bounded memory)."""

    store_node: StoreNode
    count: int = 0
    _levels: list[bytearray] = field(default_factory=lambda: [bytearray()])

    def add(self, chunk_id: bytes) -> None:
        """Append one chunk id."""
        self._push(0, chunk_id)
        self.count += 1

    @property
    def newest(self) -> bytes:
        """Concatenated ids of the last chunks, which are in no node passed on yet."""
        return bytes(self._levels[0])

    def _push(self, level: int, child: bytes) -> None:
        if level == len(self._levels):
            self._levels.append(bytearray())
        children = self._levels[level]
        if len(children) == _NODE_BYTES:
            self._push(level + 1, self._emit(level))
            children = self._levels[level]
        children += child

    def _emit(self, level: int) -> bytes:
        raw = encode_node(level, bytes(self._levels[level]))
        identifier = object_id(raw)
        self.store_node(identifier, raw)
        self._levels[level] = bytearray()
        return identifier

    def root(self, size: int, chunk_size: int, profile: ErasureProfile) -> RootNode:
        """Emit partial nodes, and return the root."""
        level = 0
        while level < len(self._levels) - 1:  # a push may add a level
            self._push(level + 1, self._emit(level))
            level += 1
        height = height_for(self.count)
        children = bytes(self._levels[height])
        return RootNode(ROOT_FORMAT, size, chunk_size, profile.k, profile.n, TRANSFORM_IDENTITY, height, children)


class Manifest:
    """A readable tree: a root and a way to load the nodes below it."""

    __slots__ = ("_load", "root")

    def __init__(self, root: RootNode, load_node: LoadNode) -> None:
        self.root = root
        self._load = load_node

    def chunk_id(self, index: int) -> bytes:
        """Id of chunk ``index``."""
        children = self.root.children
        for level in range(self.root.height, 0, -1):
            children = self.children_of(_there(children, index // _span(level) % FAN_OUT), level - 1)
        return _there(children, index % FAN_OUT)

    def chunk_ids(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Ids of chunks start…stop-1, loading one leaf at a time."""
        stop = self.root.chunk_count if stop is None else min(stop, self.root.chunk_count)
        while start < stop:
            leaf = self._leaf(start)
            upto = min(stop, (start // FAN_OUT + 1) * FAN_OUT)
            for index in range(start, upto):
                yield _there(leaf, index % FAN_OUT)
            start = upto

    def leaves(self) -> Iterator[list[bytes]]:
        """Ids of all chunks, one leaf at a time."""
        for start in range(0, self.root.chunk_count, FAN_OUT):
            count = min(FAN_OUT, self.root.chunk_count - start)
            leaf = self._leaf(start)[: count * ID_BYTES]
            if len(leaf) != count * ID_BYTES:
                raise FormatError("manifest node has too few children")
            yield [leaf[at : at + ID_BYTES] for at in range(0, len(leaf), ID_BYTES)]

    def _leaf(self, index: int) -> bytes:
        children = self.root.children
        for level in range(self.root.height, 0, -1):
            children = self.children_of(_there(children, index // _span(level) % FAN_OUT), level - 1)
        return children

    def children_of(self, node_id: bytes, level: int) -> bytes:
        """Children of a node of this level."""
        return decode_node(self._load(node_id), level)

    def node_ids(self) -> Iterator[bytes]:
        """Ids of all nodes below the root."""
        yield from self._node_ids(self.root.children, self.root.height)

    def _node_ids(self, children: bytes, level: int) -> Iterator[bytes]:
        if level == 0:
            return
        for position in range(len(children) // ID_BYTES):
            node_id = _child(children, position)
            yield node_id
            if level > 1:
                yield from self._node_ids(self.children_of(node_id, level - 1), level - 1)


def edited(manifest: Manifest, size: int, chunks: Sequence[tuple[int, bytes]], store_node: StoreNode) -> RootNode:
    """The root of a tree with some chunks replaced and another size; copies only the changed paths.

    Args:
        manifest: the tree to start from.
        size: new size in bytes.
        chunks: (index, chunk id), ascending by index, all below the new chunk count.
        store_node: takes the new nodes.
    """
    return _Edit(manifest, size, chunks, store_node).run()


class _Edit:
    def __init__(
        self, manifest: Manifest, size: int, chunks: Sequence[tuple[int, bytes]], store_node: StoreNode
    ) -> None:
        self._manifest = manifest
        self._root = manifest.root
        self._size = size
        self._chunks = chunks
        self._indices = [index for index, _ in chunks]
        self._store = store_node
        self._fresh: dict[bytes, bytes] = {}
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
            identifier = object_id(raw)
            self._fresh[identifier] = raw
            children = identifier
        return children

    def _descend(self, children: bytes, level: int) -> bytes:
        """Descend in a shrunk tree, which lies entirely below the first child of the old top."""
        return self._children(_child(children, 0), level - 1) if children else b""

    def _edit(self, old: bytes, level: int, first: int) -> bytes:
        """New children of the node of ``level`` whose first chunk is ``first``."""
        span = _span(level)
        width = min(FAN_OUT, -(-(self._new_count - first) // span)) if self._new_count > first else 0
        children = bytearray(old[: width * ID_BYTES])
        touched = self._touched(children, level, first, width)
        if _child(children, 0) in self._fresh and 0 not in touched:
            # The old root becomes an unchanged node of the taller tree, but was never stored as a node.
            for identifier, raw in self._fresh.items():
                self._store(identifier, raw)
        for position in touched:
            child = self._new_child(bytes(old), level, first, position)
            children[position * ID_BYTES : (position + 1) * ID_BYTES] = child
        return bytes(children)

    def _touched(self, children: bytearray, level: int, first: int, width: int) -> list[int]:
        """Positions whose child changes: it has an edited chunk, is new, or covers another number of chunks."""
        span = _span(level)
        low, high = bisect_left(self._indices, first), bisect_left(self._indices, first + width * span)
        positions = {(index - first) // span for index in self._indices[low:high]}
        positions.update(range(len(children) // ID_BYTES, width))
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

    def _new_child(self, old: bytes, level: int, first: int, position: int) -> bytes:
        if level == 0:
            return self._chunks[bisect_left(self._indices, first + position)][1]
        had = _child(old, position)
        below = self._children(had, level - 1) if had else b""
        children = self._edit(below, level - 1, first + position * _span(level))
        raw = encode_node(level - 1, children)
        identifier = object_id(raw)
        if identifier != had or identifier in self._fresh:
            self._store(identifier, raw)
        return identifier

    def _children(self, node_id: bytes, level: int) -> bytes:
        raw = self._fresh.get(node_id)
        return decode_node(raw, level) if raw is not None else self._manifest.children_of(node_id, level)


def differing_chunks(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes]]:
    """(index, new chunk id) wherever ``new`` differs from ``old``; the cost grows with the difference."""
    top = max(old.root.height, new.root.height)
    a, b = _Lifted(old, top), _Lifted(new, top)
    yield from _differing(a, b, a.children, b.children, top, 0)


class _Lifted:
    """A view of a tree as one of greater height, in which its old root is a node."""

    def __init__(self, manifest: Manifest, top: int) -> None:
        self._manifest = manifest
        self._standing: dict[bytes, bytes] = {}
        self.children = manifest.root.children
        for level in range(manifest.root.height, top):
            if not self.children:
                break
            identifier = object_id(encode_node(level, self.children))
            self._standing[identifier] = self.children
            self.children = identifier

    def below(self, node_id: bytes, level: int) -> bytes:
        if not node_id:
            return b""
        standing = self._standing.get(node_id)
        return standing if standing is not None else self._manifest.children_of(node_id, level)


def _differing(a: _Lifted, b: _Lifted, old: bytes, new: bytes, level: int, first: int) -> Iterator[tuple[int, bytes]]:
    if old == new:
        return
    for position in range(len(new) // ID_BYTES):
        had, has = _child(old, position), _child(new, position)
        if had == has:
            continue
        at = first + position * _span(level)
        if level == 0:
            yield at, has
        else:
            yield from _differing(a, b, a.below(had, level - 1), b.below(has, level - 1), level - 1, at)
