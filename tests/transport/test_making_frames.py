"""Messages of Make and Prove: what one end writes the other reads, and nothing else is taken for a message."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage.keys import Kind, StripeKey, shard_key, stripe_key
from taskworker.transport.frames import KEYS_MAX, OBJECT_BYTES_MAX, FrameError
from taskworker.transport.making_frames import (
    ADDRESS_BYTES_MAX,
    REQUEST_BYTES_MAX,
    STRIPES_MAX,
    MakeOrder,
    Result,
    Source,
    pack_made,
    pack_make,
    pack_prove,
    parse_made,
    parse_make,
    parse_proofs,
    parse_prove,
)

STRIPE = stripe_key(Kind.CHUNK, b"\1" * 32, 4, 6)
ORDER = MakeOrder(STRIPE, 1000, (1, 5), tuple(Source(slot, f"host:{slot}") for slot in (0, 2, 3, 4)))
NONCE = bytes(range(32))


@st.composite
def orders(draw: st.DrawFn) -> MakeOrder:
    n = draw(st.integers(1, 256))
    k = draw(st.integers(1, n))
    kind = draw(st.sampled_from([Kind.CHUNK, Kind.NODE, Kind.VERSION, Kind.TOMBSTONE]))
    stripe = stripe_key(kind, draw(st.binary(min_size=32, max_size=32)), k, n)
    slots = draw(st.sets(st.integers(0, n - 1), min_size=1))
    held = draw(st.permutations(sorted(draw(st.sets(st.integers(0, n - 1), max_size=20)))))
    addresses = st.text(max_size=40).filter(lambda text: text.isprintable())
    sources = tuple(Source(slot, draw(addresses)) for slot in held)
    return MakeOrder(stripe, draw(st.integers(1, OBJECT_BYTES_MAX)), tuple(sorted(slots)), sources)


@given(instance=st.binary(max_size=255), wanted=st.lists(orders(), max_size=5))
def test_a_request_is_read_as_it_was_written(instance: bytes, wanted: list[MakeOrder]) -> None:
    assert parse_make(pack_make(instance, wanted)) == (instance, wanted)


@given(raw=st.binary(max_size=300) | st.binary(max_size=200).map(lambda raw: pack_make(b"", [ORDER]) + raw))
@example(raw=b"")
@example(raw=b"\xff")
@example(raw=b"\0" + STRIPE)
def test_any_bytes_are_a_request_within_bounds_or_refused(raw: bytes) -> None:
    with suppress(FrameError):
        request = parse_make(raw)
        assert pack_make(request.instance, request.orders) == raw
        for order in request.orders:
            assert 0 < order.length <= OBJECT_BYTES_MAX


@given(cut=st.integers(1, len(pack_make(b"me", [ORDER])) - 1))
def test_a_request_that_ends_early_is_refused(cut: int) -> None:
    raw = pack_make(b"me", [ORDER])[:cut]
    if cut != 3:  # then nothing is wanted
        with pytest.raises(FrameError):
            parse_make(raw)


@pytest.mark.parametrize(
    ("order", "text"),
    [
        (ORDER._replace(length=0), "object of 0 bytes"),
        (ORDER._replace(length=OBJECT_BYTES_MAX + 1), "object of"),
        (ORDER._replace(length=(1 << 64) - 1), "object of"),
        (ORDER._replace(slots=(5, 1)), "ascending"),
        (ORDER._replace(slots=(1, 1)), "ascending"),
        (ORDER._replace(slots=(6,)), "ascending"),
        (ORDER._replace(sources=(Source(0, "a:1"), Source(0, "b:1"))), "different slots"),
        (ORDER._replace(sources=(Source(6, "a:1"),)), "different slots"),
        (ORDER._replace(sources=tuple(Source(slot, "a:1") for slot in range(7))), "7 sources"),
        (ORDER._replace(sources=(Source(0, "a" * (ADDRESS_BYTES_MAX + 1)),)), "address"),
        (ORDER._replace(stripe=StripeKey(b"\1" * 32 + bytes([Kind.CHUNK, 5, 3]))), "no key"),
        (ORDER._replace(stripe=StripeKey(b"\1" * 32 + bytes([Kind.MARK, 0, 0])), slots=(0,), sources=()), "no key"),
        (ORDER._replace(stripe=StripeKey(b"\1" * 32 + bytes([99, 3, 5]))), "no key"),
    ],
)
def test_absurd_stripes_are_refused(order: MakeOrder, text: str) -> None:
    with pytest.raises(FrameError, match=text):
        parse_make(pack_make(b"", [order]))


def test_absurd_counts_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(FrameError, match=f"more than {STRIPES_MAX} stripes"):
        parse_make(pack_make(b"", [ORDER] * (STRIPES_MAX + 1)))
    raw = bytes(REQUEST_BYTES_MAX + 1)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="at most"):
            parse_make(raw)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@given(digests=st.lists(st.binary(min_size=32, max_size=32), min_size=2, max_size=2))
def test_what_became_of_a_stripe_is_read_as_it_was_written(digests: list[bytes]) -> None:
    assert parse_made(pack_made(Result.MADE, digests), ORDER) == digests
    for result in set(Result) - {Result.MADE}:
        assert parse_made(pack_made(result), ORDER) is None


@given(raw=st.binary(max_size=100))
def test_any_bytes_are_about_a_stripe_or_refused(raw: bytes) -> None:
    with suppress(FrameError):
        digests = parse_made(raw, ORDER)
        assert digests is None or [len(digest) for digest in digests] == [32, 32]


def test_a_hash_for_each_wanted_shard_is_needed() -> None:
    for raw in (b"", bytes(33), bytes(1 + 3 * 32), b"\1" + bytes(64), bytes([max(Result) + 1])):
        with pytest.raises(FrameError):
            parse_made(raw, ORDER)


def test_proofs_are_read_as_they_were_written() -> None:
    keys = [shard_key(STRIPE, slot) for slot in range(3)]
    assert parse_prove(pack_prove(NONCE, keys)) == (NONCE, keys)
    assert parse_proofs(b"\1" * 32 + bytes(32), 2) == [b"\1" * 32, None]
    for raw in (NONCE[:31], NONCE + keys[0][:35], NONCE + keys[0] * (KEYS_MAX + 1)):
        with pytest.raises(FrameError):
            parse_prove(raw)
    for raw in (b"", bytes(31), bytes(96)):
        with pytest.raises(FrameError):
            parse_proofs(raw, 2)
