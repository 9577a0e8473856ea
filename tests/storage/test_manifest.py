"""Manifests compared with plain lists of chunk ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage import ErasureProfile, FormatError
from storage.formats.differences import differing_chunks
from storage.formats.manifest import (
    FAN_OUT,
    HEIGHT_MAX,
    Manifest,
    ManifestBuilder,
    RootNode,
    decode_root,
    edited,
    encode_root,
    height_for,
    object_id,
)
from storage.limits import CHUNK_SIZE_MIN, FILE_SIZE_MAX
from tests.storage.helpers import digest

SIZE = CHUNK_SIZE_MIN
PROFILE = ErasureProfile(4, 6)
BORDERS = (0, 1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 3000)
counts = st.one_of(st.sampled_from(BORDERS), st.integers(0, 3100))
seeds = st.integers(0, 2)


def ids(count: int, seed: int = 0) -> list[bytes]:
    """Return chunk ids; the same seed gives the same first ids."""
    rng = random.Random(seed)
    return [rng.randbytes(32) for _ in range(count)]


class Nodes:
    """Stores nodes in memory, and loads only stored ones."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.loaded: set[bytes] = set()

    def put(self, node_id: bytes, raw: bytes) -> None:
        assert object_id(raw) == node_id
        self.stored[node_id] = raw

    def load(self, node_id: bytes) -> bytes:
        self.loaded.add(node_id)
        return self.stored[node_id]


def build(chunks: Sequence[bytes], nodes: Nodes, last: int = SIZE) -> Manifest:
    """Build a tree from the first chunk to the last."""
    builder = ManifestBuilder(nodes.put)
    for chunk in chunks:
        builder.add(chunk)
    root = builder.root(_size(len(chunks), last), SIZE, PROFILE)
    assert decode_root(encode_root(root)) == root
    return Manifest(root, nodes.load)


def _size(count: int, last: int = SIZE) -> int:
    return (count - 1) * SIZE + last if count else 0


def edit(manifest: Manifest, target: Sequence[bytes], nodes: Nodes) -> Manifest:
    """Make the tree by editing another one, naming only the chunks that differ."""
    old = list(manifest.chunk_ids())
    changes = [(i, chunk) for i, chunk in enumerate(target) if i >= len(old) or old[i] != chunk]
    return Manifest(edited(manifest, _size(len(target)), changes, nodes.put), nodes.load)


@given(count=counts)
@settings(max_examples=30, deadline=None)
def test_a_tree_gives_back_its_list(count: int) -> None:
    chunks = ids(count)
    nodes = Nodes()
    manifest = build(chunks, nodes)
    assert manifest.root.chunk_count == count
    assert list(manifest.chunk_ids()) == chunks
    assert set(manifest.node_ids()) == set(nodes.stored)
    for index in {0, count // 2, count - 1} if count else ():
        assert manifest.chunk_id(index) == chunks[index]


@given(count=counts, start=st.integers(0, 3200), stop=st.one_of(st.none(), st.integers(0, 3200)))
@settings(max_examples=40, deadline=None)
def test_any_range(count: int, start: int, stop: int | None) -> None:
    chunks = ids(count)
    assert list(build(chunks, Nodes()).chunk_ids(start, stop)) == chunks[start:stop]


def test_a_range_loads_only_its_leaves() -> None:
    nodes = Nodes()
    manifest = build(ids(5000), nodes)
    list(manifest.chunk_ids(2048, 2050))
    assert len(nodes.loaded) == 1


def test_the_height_follows_from_the_number_of_chunks() -> None:
    for height in range(HEIGHT_MAX + 1):
        assert height_for(FAN_OUT ** (height + 1)) == height
        assert height_for(FAN_OUT ** (height + 1) + 1) == height + 1
    assert height_for(0) == 0
    assert height_for(FILE_SIZE_MAX // CHUNK_SIZE_MIN) <= HEIGHT_MAX


@given(old=counts, new=counts, old_seed=seeds, new_seed=seeds)
@example(old=1024, new=1025, old_seed=0, new_seed=0)
@example(old=1025, new=1024, old_seed=0, new_seed=0)
@example(old=2048, new=2049, old_seed=0, new_seed=0)
@example(old=3000, new=0, old_seed=0, new_seed=0)
@settings(max_examples=60, deadline=None)
def test_an_edited_tree_is_the_tree_built_anew(old: int, new: int, old_seed: int, new_seed: int) -> None:
    nodes = Nodes()
    target = ids(new, new_seed)
    manifest = edit(build(ids(old, old_seed), nodes), target, nodes)
    assert manifest.root == build(target, Nodes()).root
    assert list(manifest.chunk_ids()) == target


@given(
    old=st.integers(1, 3100), new=st.integers(1, 3100), changed=st.sets(st.integers(0, 3099), max_size=5), tail=seeds
)
@settings(max_examples=60, deadline=None)
def test_scattered_changes_with_growth_and_shrinkage(old: int, new: int, changed: set[int], tail: int) -> None:
    nodes = Nodes()
    base = ids(old)
    target = (base + ids(3100, tail + 5))[:new]
    for index in changed:
        if index < new:
            target[index] = digest(target[index])
    manifest = edit(build(base, nodes), target, nodes)
    assert list(manifest.chunk_ids()) == target
    assert manifest.root == build(target, Nodes()).root


def test_an_edit_makes_only_the_nodes_on_touched_paths() -> None:
    nodes = Nodes()
    base = ids(3 * FAN_OUT + 10)
    manifest = build(base, nodes)
    fresh = Nodes()
    nodes.loaded.clear()
    root = edited(manifest, _size(len(base)), [(FAN_OUT + 5, digest(b"new"))], fresh.put)
    assert len(fresh.stored) == 1
    assert len(nodes.loaded) == 1
    assert root.children[:32] == manifest.root.children[:32]


def test_an_old_root_becomes_a_node_of_a_taller_tree() -> None:
    """The root was never stored as a node, but reading the new tree needs it."""
    nodes = Nodes()
    base = ids(FAN_OUT)
    manifest = build(base, nodes)
    assert nodes.stored == {}
    taller = edit(manifest, [*base, digest(b"more")], nodes)
    assert taller.root.height == 1
    assert len(nodes.stored) == 2
    assert list(taller.chunk_ids()) == [*base, digest(b"more")]


def test_an_edit_that_changes_nothing_makes_nothing() -> None:
    nodes = Nodes()
    manifest = build(ids(2000), nodes)
    fresh = Nodes()
    assert edited(manifest, manifest.root.size, [], fresh.put) == manifest.root
    assert fresh.stored == {}


def test_beyond_a_million_chunks() -> None:
    """Three levels: growing and shrinking across 1024² chunks, and a change in the middle."""
    million = FAN_OUT * FAN_OUT
    base = [index.to_bytes(32, "big") for index in range(million - 1)]
    nodes = Nodes()
    manifest = build(base, nodes)
    assert manifest.root.height == 1
    target = [*base, digest(b"1"), digest(b"2"), digest(b"3")]
    changes = [(index, target[index]) for index in range(million - 1, million + 2)]
    taller = Manifest(edited(manifest, _size(million + 2), changes, nodes.put), nodes.load)
    assert taller.root == build(target, nodes).root
    assert taller.root.height == 2
    assert list(differing_chunks(manifest, taller)) == changes
    assert [taller.chunk_id(index) for index, _ in changes] == [chunk for _, chunk in changes]
    middle = Manifest(edited(taller, _size(million + 2), [(500_000, digest(b"m"))], nodes.put), nodes.load)
    assert list(differing_chunks(taller, middle)) == [(500_000, digest(b"m"))]
    assert edited(taller, _size(million - 1), [], nodes.put) == manifest.root
    assert edited(middle, _size(3), [], nodes.put) == build(base[:3], Nodes()).root


@given(old=counts, new=counts, old_seed=seeds, new_seed=seeds, changed=st.sets(st.integers(0, 3099), max_size=4))
@settings(max_examples=60, deadline=None)
def test_differences(old: int, new: int, old_seed: int, new_seed: int, changed: set[int]) -> None:
    before, after = ids(old, old_seed), ids(new, new_seed)
    for index in changed:
        if index < new:
            after[index] = digest(after[index])
    expected = [(i, chunk) for i, chunk in enumerate(after) if i >= old or before[i] != chunk]
    nodes = Nodes()
    assert list(differing_chunks(build(before, nodes), build(after, nodes))) == expected


def test_the_cost_of_a_difference_is_that_of_the_change() -> None:
    nodes = Nodes()
    base = ids(20 * FAN_OUT)
    old = build(base, nodes)
    base[7 * FAN_OUT + 1] = digest(b"x")
    new = build(base, nodes)
    nodes.loaded.clear()
    assert len(list(differing_chunks(old, new))) == 1
    assert len(nodes.loaded) == 2


def test_chunk_lengths() -> None:
    root = build(ids(3), Nodes(), last=5).root
    assert [root.chunk_length(index) for index in range(3)] == [SIZE, SIZE, 5]


@pytest.mark.parametrize("children", [b"", bytes(31), bytes(32 * 1023), bytes(32 * 1025)])
def test_a_node_with_the_wrong_number_of_children_is_found_out(children: bytes) -> None:
    """A lying volume may return a node with the right id that does not fit this tree's shape."""
    from storage.formats.manifest import encode_node

    raw = encode_node(0, children)
    root = RootNode(1, 2 * FAN_OUT * SIZE, SIZE, 4, 6, 0, 1, object_id(raw) * 2)
    manifest = Manifest(root, lambda node_id: raw)
    for read in (lambda: list(manifest.chunk_ids()), lambda: manifest.chunk_id(FAN_OUT - 1)):
        _refused(read)


def _refused(read: Callable[[], object]) -> None:
    with pytest.raises(FormatError):
        read()
