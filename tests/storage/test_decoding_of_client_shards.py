"""Objects of which a client wrote the shards itself: what is tried to read them."""

from __future__ import annotations

import random
from collections.abc import Collection

import pytest
from blake3 import blake3

from storage.keys import Kind, StripeKey, slot_of, split_stripe_key, stripe_key
from storage.stripes import decoding
from storage.stripes.decoding import Survivors, solve
from storage.stripes.encoding import Encoder

K, N, SIZE = 8, 14, 800


def shards_of(data: bytes) -> tuple[StripeKey, Survivors]:
    stripe = stripe_key(Kind.CHUNK, blake3(data).digest(), K, N)
    shards = Encoder().shards_of(stripe, data, len(data))
    return stripe, Survivors({slot_of(one.key): memoryview(bytes(one.payload)) for one in shards}, len(data))


@pytest.mark.parametrize(
    ("wrong", "of_client", "most", "is_read"),
    [
        (range(N), range(N), 1, False),  # nothing of it is right
        (range(N), range(1, N), 101, False),
        ([13], range(N), 1, True),
        ([0], range(1, N), 1, True),  # a store has something else than the client wrote
        (range(6), range(6), 1, True),  # the pool wrote the others again
    ],
)
def test_little_is_tried(
    monkeypatch: pytest.MonkeyPatch, wrong: Collection[int], of_client: Collection[int], most: int, *, is_read: bool
) -> None:
    data = random.Random(1).randbytes(SIZE)
    stripe, survivors = shards_of(data)
    survivors.payloads.update({slot: memoryview(bytes(SIZE // K)) for slot in wrong})
    tried, decode = list[object](), decoding._decode

    def counted(*given: object) -> memoryview:
        tried.append(given)
        return decode(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "_decode", counted)
    found = solve(split_stripe_key(stripe), survivors, of_client)
    assert len(tried) <= most
    assert (None if found is None else bytes(found)) == (data if is_read else None)
