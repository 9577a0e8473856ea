"""Differences between manifests, at a cost that grows with the difference."""

from __future__ import annotations

from collections.abc import Iterator

from storage.formats.manifest import Manifest, child_at, encode_node, object_id, plain_id, span_of, stored_id


def differing_chunks(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes]]:
    """(index, new reference) wherever ``new`` refers to another stored chunk than ``old``.

    The cost grows with the difference.
    """
    return ((index, has) for index, had, has in _differences(old, new) if stored_id(had) != stored_id(has))


def differing_content(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes]]:
    """(index, new reference) wherever the content of ``new`` differs from that of ``old``."""
    return ((index, has) for index, had, has in _differences(old, new) if plain_id(had) != plain_id(has))


def differing_stored(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes, bool]]:
    """Like :func:`differing_chunks`, with whether ``new`` takes space for the chunk besides that of ``old``.

    It does also for the same content under another key. For content that was in clear, and is sealed now, it does not:
    the operator has files sealed, and drops what was before.
    """
    are_sealed = old.root.is_sealed and new.root.is_sealed
    return (
        (index, has, are_sealed or plain_id(had) != plain_id(has))
        for index, had, has in _differences(old, new)
        if stored_id(had) != stored_id(has)
    )


def differing_space(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes]]:
    """(index, new reference) wherever ``new`` takes space besides that of ``old``; see :func:`differing_stored`."""
    return ((index, has) for index, has, takes_space in differing_stored(old, new) if takes_space)


def differing_nodes(old: Manifest, new: Manifest) -> Iterator[bytes]:
    """The references of the nodes of ``new`` that differ from what ``old`` has at the same place."""
    top = max(old.root.height, new.root.height)
    a, b = _Lifted(old, top), _Lifted(new, top)
    yield from _differing_nodes(a, b, a.children, b.children, top)


def _differing_nodes(a: _Lifted, b: _Lifted, old: bytes, new: bytes, level: int) -> Iterator[bytes]:
    for position in range(len(new) // b.width if level and old != new else 0):
        had, has = child_at(old, position, a.width), child_at(new, position, b.width)
        if plain_id(had) == plain_id(has):
            continue
        if not b.is_root(has):
            yield has
        yield from _differing_nodes(a, b, a.below(had, level - 1), b.below(has, level - 1), level - 1)


def _differences(old: Manifest, new: Manifest) -> Iterator[tuple[int, bytes, bytes]]:
    """(index, old reference, new reference) of chunks; those of equal nodes are left out."""
    top = max(old.root.height, new.root.height)
    a, b = _Lifted(old, top), _Lifted(new, top)
    yield from _differing(a, b, a.children, b.children, top, 0)


class _Lifted:
    """A view of a tree as one of greater height, in which its old root is a node."""

    def __init__(self, manifest: Manifest, top: int) -> None:
        self._manifest = manifest
        self._standing: dict[bytes, bytes] = {}
        self.width = manifest.root.reference_bytes
        self.children = manifest.root.children
        for level in range(manifest.root.height, top):
            if not self.children:
                break
            # Nodes are compared by the hash of their content alone.
            reference = object_id(encode_node(level, self.children)).ljust(self.width, b"\0")
            self._standing[reference] = self.children
            self.children = reference

    def is_root(self, node: bytes) -> bool:
        """Whether this node stands for the tree's root, or for one above it."""
        return node in self._standing

    def below(self, node: bytes, level: int) -> bytes:
        if not node:
            return b""
        standing = self._standing.get(node)
        return standing if standing is not None else self._manifest.children_of(node, level)


def _differing(
    a: _Lifted, b: _Lifted, old: bytes, new: bytes, level: int, first: int
) -> Iterator[tuple[int, bytes, bytes]]:
    if old == new:
        return
    for position in range(len(new) // b.width):
        had, has = child_at(old, position, a.width), child_at(new, position, b.width)
        if had == has or (level and plain_id(had) == plain_id(has)):
            continue
        at = first + position * span_of(level)
        if level == 0:
            yield at, had, has
        else:
            yield from _differing(a, b, a.below(had, level - 1), b.below(has, level - 1), level - 1, at)
