"""Erasure profiles: how many shards an object has, and how many of them restore it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from storage.errors import InvalidArgument
from storage.limits import shown


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
