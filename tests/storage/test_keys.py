"""Shard keys, and many of them packed in one piece of memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.fleet.placement import PARTITIONS, partition_of, start_of
from storage.keys import Kind, PackedKeys, ShardKey, StripeKey, packed_keys, packed_shard_keys, shard_key, stripe_key


def stripe_of(number: int) -> StripeKey:
    return stripe_key(Kind.CHUNK, number.to_bytes(2, "big") * 16, 4, 6)


STRIPES = [stripe_of(number) for number in range(7)]
KEYS = [shard_key(stripe, 3) for stripe in STRIPES]


def test_packed_keys_are_a_sequence_of_them() -> None:
    packed = PackedKeys(packed_keys(KEYS))
    assert len(packed) == len(KEYS)
    assert list(packed) == KEYS
    assert [packed[at] for at in range(-7, 7)] == [KEYS[at] for at in range(-7, 7)]
    assert KEYS[2] in packed
    assert shard_key(stripe_of(9), 3) not in packed
    assert packed_keys(packed) is packed.packed
    with pytest.raises(IndexError):
        packed[7]


@given(st.slices(len(KEYS)))
def test_any_part_of_packed_keys(part: slice) -> None:
    assert list(PackedKeys(packed_keys(KEYS))[part]) == KEYS[part]


def test_keys_of_one_slot_of_many_stripes() -> None:
    assert packed_shard_keys(STRIPES, 3) == packed_keys(KEYS)
    assert packed_shard_keys(STRIPES[:1], 3) == KEYS[0]
    assert packed_shard_keys([], 3) == b""


@given(st.binary(min_size=32, max_size=32))
def test_where_a_partition_begins(object_id: bytes) -> None:
    partition = partition_of(object_id)
    assert start_of(partition) <= object_id < start_of(partition + 1)


def test_above_the_last_partition_is_no_key() -> None:
    assert start_of(PARTITIONS) > ShardKey(b"\xff" * 32 + bytes((Kind.CHUNK, 0, 0, 0)))
