"""The codec port: what multiplies blocks by a matrix over GF(2^8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from storage.limits import BytesLike


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
