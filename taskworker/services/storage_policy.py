"""What the users of a server may store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from storage import ErasureProfile, FileStorage
from storage.write.quotas import NO_QUOTA, Quota
from taskworker.auth.users import Users
from taskworker.pool.candidates import payer_of

_SHARDS_MAX = 32
_TIMES_MAX = 4


@dataclass(frozen=True, slots=True)
class StoragePolicy:
    """What users may store.

    Attributes:
        quota: what each user may store for whom the operator sets nothing else; it does not count for operators.
        profiles: the erasure profiles that users may choose, beside the store's own; None: all that make at most 32
            shards, and take at most four times a file's size.
    """

    quota: Quota = NO_QUOTA
    profiles: Collection[ErasureProfile] | None = None

    def apply(self, store: FileStorage, users: Users) -> None:
        """Have a store keep to it."""
        policy = store.upkeep.policy
        policy.quota_of = users.quota_of
        policy.payer_of = payer_of
        policy.allows = self._allows
        policy.allowed = (
            f"at most {_SHARDS_MAX} shards, and {_TIMES_MAX} times a file's size"
            if self.profiles is None
            else ", ".join(sorted(str(one) for one in self.profiles)) or "none"
        )

    def _allows(self, profile: ErasureProfile) -> bool:
        if self.profiles is not None:
            return profile in self.profiles
        return profile.n <= _SHARDS_MAX and profile.n <= _TIMES_MAX * profile.k


STORAGE_POLICY = StoragePolicy()
"""Without quotas."""
