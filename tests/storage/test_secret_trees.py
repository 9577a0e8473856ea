"""Trees of secrets: what is kept stays the same, and nothing else can be made from it."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import FormatError
from storage.sealing.secret_trees import LEAF_MAX, LeafSet, SecretTree, joined, packed, unpacked

KEY = bytes(range(32))
LEAVES = st.one_of(st.integers(0, 40), st.integers(4000, 4200), st.integers(0, LEAF_MAX))


@given(st.lists(st.lists(LEAVES, max_size=30), min_size=1, max_size=3), st.lists(LEAVES, max_size=20))
@settings(max_examples=200, deadline=None)
def test_a_tree_that_is_cut_has_the_secrets_that_are_kept_and_no_others(
    cuts: list[list[int]], asked: list[int]
) -> None:
    whole, tree = SecretTree.whole(KEY), SecretTree.whole(KEY)
    kept = set(cuts[0])
    for cut in cuts:
        tree = tree.cut_to(LeafSet(cut))
        kept &= set(cut)
    assert len(tree) <= len(kept)
    for leaf in [*asked, *(leaf for cut in cuts for leaf in cut)]:
        assert tree.secret(leaf) == (SecretTree.whole(KEY).secret(leaf) if leaf in kept else None)
        assert whole.secret(leaf) is not None
    assert [*unpacked(packed(tree))] == [*tree]
    assert [*joined([tree, tree])] == [*tree]
    assert [*joined([tree, whole])] == [*whole]


def test_a_tree_takes_few_seeds_where_few_were_forgotten() -> None:
    rng = Random(1)
    gone = set(rng.sample(range(100_000), 100))
    tree = SecretTree.whole(KEY).cut_to(LeafSet(leaf for leaf in range(100_000) if leaf not in gone))
    assert len(tree) < 100 * 14
    assert all((tree.secret(leaf) is None) is (leaf in gone) for leaf in rng.sample(range(100_000), 5000))
    assert all(tree.secret(leaf) is None for leaf in gone)
    assert tree.secret(100_000) is None


def test_a_run_has_the_secrets_of_its_leaves() -> None:
    whole = SecretTree.whole(KEY)
    left = whole.cut_to(LeafSet(range(128, 256 + 50)))
    for start, level in ((128, 7), (256, 5), (144, 4), (200, 0)):
        for tree in (whole, left):
            assert tree.run(start, level) == [whole.secret(leaf) for leaf in range(start, start + (1 << level))]


def test_secrets_differ() -> None:
    tree = SecretTree.whole(KEY)
    secrets = {tree.secret(leaf) for leaf in range(3000)} | {
        SecretTree.whole(bytes(32)).secret(leaf) for leaf in range(3000)
    }
    assert len(secrets) == 6000


@given(st.integers(0, 200), st.integers(0, 7))
@settings(deadline=None)
def test_remains_are_in_order(at: int, bit: int) -> None:
    raw = bytearray(packed(SecretTree.whole(KEY).cut_to(LeafSet([1, 2, 5, 6, 7, 9]))))
    raw[at % len(raw)] ^= 1 << bit
    try:
        seeds = [*unpacked(bytes(raw))]
    except FormatError:
        return
    assert all(one.start + (1 << one.level) <= other.start for one, other in pairwise(seeds))


@pytest.mark.parametrize("wrong", [b"x", packed(SecretTree.whole(KEY)) * 2])
def test_malformed_remains_are_refused(wrong: bytes) -> None:
    with pytest.raises(FormatError):
        unpacked(wrong)
