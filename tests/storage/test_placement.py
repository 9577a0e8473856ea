"""Placement: slots are spread evenly, moves are minimal, and tolerated losses are reported correctly."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.fleet.placement import PARTITIONS, FixedLayout, losses_survivable


def _id(partition: int, rest: bytes = bytes(30)) -> bytes:
    return (partition << 6).to_bytes(2, "big") + rest


def test_the_first_ten_bits_decide() -> None:
    layout = FixedLayout(7)
    for partition in (0, 1, 511, 1023):
        expected = layout.volumes(_id(partition), 5)
        assert layout.volumes(((partition << 6) | 63).to_bytes(2, "big") + b"\xff" * 30, 5) == expected


@given(volumes=st.integers(1, 40), n=st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_slots_are_on_different_volumes_while_there_are_enough(volumes: int, n: int) -> None:
    layout = FixedLayout(volumes)
    for partition in range(0, PARTITIONS, 97):
        placed = layout.volumes(_id(partition), n)
        assert len(placed) == n
        counts = Counter(placed)
        assert set(counts) <= set(range(volumes))
        assert max(counts.values()) == -(-n // volumes)


@pytest.mark.parametrize("volumes", [2, 6, 13])
def test_every_volume_gets_its_share_of_every_slot(volumes: int) -> None:
    layout = FixedLayout(volumes)
    for slot in range(min(volumes, 6)):
        counts = Counter(layout.volumes(_id(partition), 6)[slot] for partition in range(PARTITIONS))
        fair = PARTITIONS / volumes
        assert set(counts) == set(range(volumes))
        assert all(fair * 0.6 < count < fair * 1.5 for count in counts.values())


@pytest.mark.parametrize("volumes", [1, 5, 6, 20])
def test_a_new_volume_only_takes(volumes: int) -> None:
    """The old volumes keep their order among themselves; only slots for the new volume move."""
    before, after = FixedLayout(volumes), FixedLayout(volumes + 1)
    for partition in range(PARTITIONS):
        old = before.volumes(_id(partition), volumes)
        new = after.volumes(_id(partition), volumes + 1)
        assert [volume for volume in new if volume != volumes] == list(old)


@given(volumes=st.integers(1, 7), k=st.integers(1, 9), extra=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_losses_survivable(volumes: int, k: int, extra: int) -> None:
    n = k + extra
    layout = FixedLayout(volumes)
    placed = [layout.volumes(_id(partition), n) for partition in range(0, PARTITIONS, 61)]

    def survives(lost: int) -> bool:
        choices = list(combinations(range(volumes), lost))
        return all(sum(volume not in gone for volume in places) >= k for places in placed for gone in choices)

    told = layout.losses_survivable(k, n)
    assert survives(told)
    if n % volumes == 0:  # all volumes hold the same number
        assert not survives(told + 1)


def test_a_layout_needs_a_volume() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FixedLayout(0)


@pytest.mark.parametrize(
    ("holders", "k", "losses"),
    [
        ([0, 1, 2, 3, 4, 5], 4, 2),
        ([0, 1, 2, 3, 4], 4, 1),
        ([0, 1, 2, 3], 4, 0),
        ([0, 1, 2], 4, -1),
        ([], 1, -1),
        ([0, 0, 1, 1, 2, 2], 4, 1),
        ([0, 0, 0, 1, 2, 3], 4, 0),
        ([0, 1, 2], 1, 2),
    ],
)
def test_how_many_stores_an_object_can_do_without(holders: list[int], k: int, losses: int) -> None:
    assert losses_survivable(holders, k) == losses
