"""Any k of n shards restore the data, and every codec computes the same as zfec."""

from __future__ import annotations

import random
from contextlib import suppress
from itertools import combinations, islice

import pytest
import zfec  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import isal_functions
from storage import ErasureProfile, InvalidArgument
from storage.erasure import ErasureCode, accelerator_name, code_for
from storage.erasure.code import CodecUnavailable
from storage.erasure.isal_codec import IsalCodec
from storage.erasure.zfec_codec import ZfecCodec

WIDE = [
    (1, 1),
    (1, 2),
    (2, 2),
    (2, 3),
    (4, 6),
    (5, 9),
    (10, 30),
    (1, 256),
    (256, 256),
    (255, 256),
    (128, 256),
    (3, 200),
]
SUBSETS_MAX = 40


def _codes(k: int, n: int) -> list[ErasureCode]:
    """Return the code of a profile with every available codec."""
    profile = ErasureProfile(k, n)
    reference = ZfecCodec(profile)
    codes = [ErasureCode(profile, reference)]
    with suppress(CodecUnavailable):
        codes.append(ErasureCode(profile, IsalCodec(profile, reference)))
    return codes


def _padded(data: bytes, k: int) -> tuple[bytes, int]:
    length = -(-len(data) // k)
    return data.ljust(k * length, b"\0"), length


def _shards(code: ErasureCode, data: bytes) -> list[memoryview]:
    padded, length = _padded(data, code.k)
    everything = memoryview(padded + bytes(code.encode(padded, length)))
    return [everything[i * length : (i + 1) * length] for i in range(code.n)]


def _subsets(k: int, n: int) -> list[tuple[int, ...]]:
    """Return all choices of k among n if there are few, otherwise a sample with the extremes."""
    every = list(islice(combinations(range(n), k), SUBSETS_MAX + 1))
    if len(every) <= SUBSETS_MAX:
        return every
    rng = random.Random(k * 1000 + n)
    sampled = [tuple(sorted(rng.sample(range(n), k))) for _ in range(SUBSETS_MAX // 2)]
    return [tuple(range(k)), tuple(range(n - k, n)), *sampled]


def _decoded(code: ErasureCode, shards: list[memoryview], chosen: tuple[int, ...]) -> bytes:
    length = len(shards[0])
    missing = [slot for slot in range(code.k) if slot not in chosen]
    out = {slot: memoryview(bytearray(length)) for slot in missing}
    code.decode_into([shards[slot] for slot in chosen], list(chosen), missing, [out[slot] for slot in missing])
    return b"".join(out[slot] if slot in out else shards[slot] for slot in range(code.k))


@pytest.mark.parametrize(("k", "n"), WIDE)
def test_any_k_shards_restore_the_data(k: int, n: int) -> None:
    data = random.Random(n).randbytes(3 * k + 1 if k > 1 else 77)
    for code in _codes(k, n):
        shards = _shards(code, data)
        for chosen in _subsets(k, n):
            assert _decoded(code, shards, chosen)[: len(data)] == data


@pytest.mark.parametrize(("k", "n"), WIDE)
def test_shards_are_what_zfec_makes(k: int, n: int) -> None:
    data = random.Random(k).randbytes(k * 65)
    pieces = [data[i * 65 : (i + 1) * 65] for i in range(k)]
    truth = zfec.Encoder(k, n).encode(pieces, list(range(n)))
    for code in _codes(k, n):
        assert [bytes(shard) for shard in _shards(code, data)] == truth


@given(data=st.data(), k=st.integers(1, 40), extra=st.integers(0, 20), length=st.integers(1, 400))
@settings(max_examples=100, deadline=None)
def test_any_profile_and_length(data: st.DataObject, k: int, extra: int, length: int) -> None:
    n = k + extra
    original = random.Random(length).randbytes(length)
    chosen = tuple(sorted(data.draw(st.permutations(range(n)))[:k]))
    for code in _codes(k, n):
        assert _decoded(code, _shards(code, original), chosen)[:length] == original


@given(order=st.permutations(range(6)))
@settings(max_examples=40, deadline=None)
def test_blocks_may_come_in_any_order(order: list[int]) -> None:
    original = random.Random(6).randbytes(4 * 33)
    for code in _codes(4, 6):
        assert _decoded(code, _shards(code, original), tuple(order[:4])) == original


def test_one_of_n_is_plain_copies() -> None:
    for code in _codes(1, 5):
        assert [bytes(shard) for shard in _shards(code, b"metadata")] == [b"metadata"] * 5


def test_parity_goes_to_scratch_if_it_fits() -> None:
    code = code_for(ErasureProfile(4, 6))
    scratch = bytearray(100)
    parity = code.encode(bytes(range(80)), 20, scratch)
    assert parity.obj is scratch
    assert bytes(parity) == bytes(code.encode(bytes(range(80)), 20))
    assert code.encode(bytes(400), 100, scratch).obj is not scratch


def test_the_codec_in_use_is_told() -> None:
    profile = ErasureProfile(4, 6)
    assert accelerator_name(profile) == code_for(profile).codec.name
    assert accelerator_name(profile) in {"isa-l", "zfec"}


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 0), (2, 1), (-1, 3), (1, 257), (257, 257)])
def test_impossible_profiles_are_refused(k: int, n: int) -> None:
    with pytest.raises(InvalidArgument, match="must satisfy"):
        ErasureProfile(k, n)


def test_the_declarations_of_isa_l_are_fresh() -> None:
    assert isal_functions.MODULE.read_text() == isal_functions.generated(), "run python scripts/isal_functions.py"
