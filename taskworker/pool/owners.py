"""Whose workers a pool takes: if it does not encrypt, only those of its own owner."""

from __future__ import annotations

from collections.abc import Iterable

from storage.errors import InvalidArgument
from taskworker.pool.membership import MemberRecord
from taskworker.pool.settings import PoolSettings


class Owners:
    """Decides which owners' workers may be members.

    Args:
        settings: knows whether the pool was told not to encrypt.
        own: the pool's own owner. Workers without an owner are taken for his.
    """

    def __init__(self, settings: PoolSettings, own: str) -> None:
        self._settings = settings
        self._own = own

    def check(self, worker: str, owner: str) -> None:
        """Check that a worker of this owner may be a member.

        Raises:
            InvalidArgument: it may not; the text says why.
        """
        if self._settings.refuses_strangers:
            self._check(worker, owner)

    def check_members(self, records: Iterable[MemberRecord]) -> None:
        """Check that a pool with these members may be told not to encrypt.

        Raises:
            InvalidArgument: one of them is of another owner.
        """
        for record in records:
            self._check(record.worker, record.owner)

    def _check(self, worker: str, owner: str) -> None:
        if owner not in ("", self._own):
            raise InvalidArgument(
                f"worker {worker} is of owner {owner}, who could read what it holds, as this pool does not encrypt "
                f"(--no-encryption): start the pool with --encryption, or with --owner {owner} if the pool is his, too"
            )
