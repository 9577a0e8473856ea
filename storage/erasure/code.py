"""Erasure profiles, the codec port, and the choice of a codec.

A chunk of L bytes is cut into k data shards of S = ceil(L / k) bytes (the last padded with zeros);
n - k parity shards of S bytes follow. Any k shards give back the chunk. All codecs produce the bytes
that zfec produces.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from storage.errors import InvalidArgument
from storage.limits import BytesLike, shown


@dataclass(frozen=True, slots=True)
class ErasureProfile:
    """A (k, n) code: any k of n shards restore a chunk; n - k losses are survived.

    Raises:
        InvalidArgument: unless 1 <= k <= n <= 256 (zfec works in GF(2^8)).
    """

    k: int = 4
    n: int = 6

    def __post_init__(self) -> None:
        if type(self.k) is not int or type(self.n) is not int:
            raise InvalidArgument(f"erasure profile {self._shown()}: k and n must be whole numbers (int)")
        if not 1 <= self.k <= self.n <= 256:
            raise InvalidArgument(f"erasure profile {self._shown()}: must satisfy 1 <= k <= n <= 256")

    def _shown(self) -> str:
        return f"{shown(self.k)}-of-{shown(self.n)}"

    def shard_length(self, length: int) -> int:
        """Bytes of each shard of an object of ``length`` bytes."""
        return -(-length // self.k)

    def __str__(self) -> str:
        return f"{self.k}-of-{self.n}"


@lru_cache(maxsize=1024)
def profile_for(k: int, n: int) -> ErasureProfile:
    """The profile (k, n), made and checked once."""
    return ErasureProfile(k, n)


class Codec(Protocol):
    """Multiplies k equally long blocks by a matrix over GF(2^8), as fast as it can."""

    name: str

    def encode(self, data: BytesLike, shard_length: int, parity: memoryview) -> None:
        """Write the n - k parity shards of ``data`` (k * shard_length bytes) one after another into ``parity``."""

    def decode(
        self, blocks: Sequence[memoryview], slots: Sequence[int], wanted: Sequence[int], out: Sequence[memoryview]
    ) -> None:
        """From k ``blocks`` held in distinct ``slots``, compute data shards ``wanted`` (each < k) into ``out``."""


class CodecUnavailable(Exception):
    """This codec cannot work here; the text says why."""


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
