"""The reference codec: zfec itself."""

from __future__ import annotations

from collections.abc import Sequence

import zfec  # type: ignore[import-untyped]

from storage.erasure.profile import ErasureProfile
from storage.limits import BytesLike


class ZfecCodec:
    """zfec's (k, n) code (Rizzo's systematic Vandermonde code over GF(2^8), polynomial 0x11d)."""

    name = "zfec"

    def __init__(self, profile: ErasureProfile) -> None:
        self._k, self._n = profile.k, profile.n
        self._encoder = zfec.Encoder(profile.k, profile.n)
        self._decoder = zfec.Decoder(profile.k, profile.n)

    def encode(self, data: BytesLike, shard_length: int, parity: memoryview) -> None:
        """See :class:`storage.erasure.codec.Codec`."""
        view = memoryview(data)
        # zfec takes objects with a contiguous buffer; slices of bytes are what it is tested with.
        blocks = [bytes(view[i * shard_length : (i + 1) * shard_length]) for i in range(self._k)]
        for index, block in enumerate(self._encoder.encode(blocks, list(range(self._k, self._n)))):
            parity[index * shard_length : (index + 1) * shard_length] = block

    def decode(
        self, blocks: Sequence[memoryview], slots: Sequence[int], wanted: Sequence[int], out: Sequence[memoryview]
    ) -> None:
        """See :class:`storage.erasure.codec.Codec`."""
        data = self._decoder.decode([bytes(block) for block in blocks], list(slots))
        for slot, target in zip(wanted, out, strict=True):
            target[:] = data[slot]

    def parity_matrix(self) -> list[bytes]:
        """The n - k rows of k coefficients each, found by encoding the k unit vectors."""
        rows: list[bytes] = self._encoder.encode(self._unit_vectors(), list(range(self._k, self._n)))
        return rows

    def decode_matrix(self, slots: Sequence[int]) -> list[bytes]:
        """For shards in ascending ``slots``, the k rows that turn them into the k data shards."""
        by_slot = dict(zip(slots, self._unit_vectors(), strict=True))
        rows: list[bytes] = self._decoder.decode([by_slot[s] for s in slots], list(slots))
        return rows

    def _unit_vectors(self) -> list[bytes]:
        return [bytes(int(i == j) for j in range(self._k)) for i in range(self._k)]
