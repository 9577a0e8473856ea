"""The erasure code of a profile, and the choice of a codec.

A chunk of L bytes is cut into k data shards of S = ceil(L / k) bytes (the last padded with zeros);
n - k parity shards of S bytes follow. Any k shards give back the chunk. All codecs produce the bytes
that zfec produces.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from storage.erasure.codec import Codec, CodecUnavailable
from storage.erasure.profile import ErasureProfile, profile_for
from storage.limits import BytesLike

__all__ = [
    "Codec",
    "CodecUnavailable",
    "ErasureCode",
    "ErasureProfile",
    "accelerator_name",
    "code_for",
    "code_for_key",
    "profile_for",
]


class ErasureCode:
    """One (k, n) code, ready to use from many threads."""

    __slots__ = ("codec", "k", "n", "profile")

    def __init__(self, profile: ErasureProfile, codec: Codec) -> None:
        self.profile = profile
        self.k = profile.k
        self.n = profile.n
        self.codec = codec

    def encode(self, data: BytesLike, shard_length: int, scratch: bytearray | None = None) -> memoryview:
        """The n - k parity shards of ``data`` (at least k * shard_length bytes), one after another.

        ``scratch``, if it is large enough, is what they are written to; a new buffer otherwise.
        """
        length = (self.n - self.k) * shard_length
        if scratch is None or len(scratch) < length:
            scratch = bytearray(length)
        parity = memoryview(scratch)[:length]
        if length:
            self.codec.encode(data, shard_length, parity)
        return parity

    def decode_into(
        self, blocks: Sequence[memoryview], slots: Sequence[int], wanted: Sequence[int], out: Sequence[memoryview]
    ) -> None:
        """Compute the missing data shards ``wanted`` into ``out`` from any k shards."""
        if wanted:
            self.codec.decode(blocks, slots, wanted, out)


@lru_cache(maxsize=64)
def code_for(profile: ErasureProfile) -> ErasureCode:
    """The code of a profile: ISA-L if its bytes equal zfec's for this very profile, zfec otherwise."""
    from storage.erasure.zfec_codec import ZfecCodec

    reference = ZfecCodec(profile)
    try:
        from storage.erasure.isal_codec import IsalCodec

        fast = IsalCodec(profile, reference)
        _self_test(profile, fast, reference)
    except CodecUnavailable:
        return ErasureCode(profile, reference)
    return ErasureCode(profile, fast)


def code_for_key(k: int, n: int) -> ErasureCode:
    """The erasure code of (k, n), cached without building a profile each time."""
    code = _CODES.get((k, n))
    if code is None:
        code = _CODES[k, n] = code_for(ErasureProfile(k, n))
    return code


_CODES: dict[tuple[int, int], ErasureCode] = {}


def accelerator_name(profile: ErasureProfile) -> str:
    """``"isa-l"`` or ``"zfec"``: what computes the code of this profile in this process."""
    return code_for(profile).codec.name


def _self_test(profile: ErasureProfile, fast: Codec, reference: Codec) -> None:
    """Raise CodecUnavailable unless ``fast`` encodes and decodes exactly as ``reference`` does."""
    k, n = profile.k, profile.n
    if n == k:
        return
    rng = random.Random(k * 257 + n)
    length = 97  # odd and longer than a vector register: head, body and tail of the kernels are used
    data = rng.randbytes(k * length)
    ours, theirs = bytearray((n - k) * length), bytearray((n - k) * length)
    fast.encode(data, length, memoryview(ours))
    reference.encode(data, length, memoryview(theirs))
    if ours != theirs:
        raise CodecUnavailable("parity differs from zfec's")
    shards = memoryview(data + bytes(ours))
    slots = sorted(rng.sample(range(n), k))
    wanted = [slot for slot in range(k) if slot not in slots]
    out = [memoryview(bytearray(length)) for _ in wanted]
    fast.decode([shards[s * length : (s + 1) * length] for s in slots], slots, wanted, out)
    for slot, block in zip(wanted, out, strict=True):
        if block != shards[slot * length : (slot + 1) * length]:
            raise CodecUnavailable("decoded data differs from what was encoded")
