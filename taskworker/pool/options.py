"""The options that a pool is run with, and their defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from storage.sealing.master_keys import MasterKeys
from taskworker.auth.authority import LIFETIME_S
from taskworker.pool.background.auditing import AUDIT_BYTES_PER_S
from taskworker.pool.background.collecting import COLLECT_EVERY_S

_PUSHED_BYTES_MAX = 4 << 20
_CAPACITY_MAX = 1 << 50

GiveKeys = Callable[[bool], MasterKeys | None]
"""Returns the keys. Takes whether to make the first one if there is none; otherwise it may return None."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How to run a pool.

    Attributes:
        lease_s: how long a worker counts as alive after a heartbeat.
        grace_s: how long a silent worker stays in the layout, before its shards are rebuilt on the others.
        margin: objects with fewer than k + ``margin`` shards left are repaired without waiting for ``grace_s``.
        allow_fragile: accept files even if the loss of one worker would make them unreadable.
        tranquility: while users are active, how long background work rests after each object, in
            multiples of the time that it took; 0: no rest.
        collect_every_s: seconds between collects; 0: none are scheduled.
        capacity_max: the most bytes that count of a worker's stated capacity.
        audit_bytes_per_s: rate at which audits fetch random shards from the workers; 0: no audits.
        hot_bytes: memory for small objects that were read lately or pushed just now, which are then not fetched from
            workers; 0: none are kept.
        small_copies_bytes: files up to this size, at most 64 KiB, are kept as n - k + 1 whole copies; 0: none are.
        certificates_s: how long certificates of workers are valid.
        rebuild: id of a pool whose directory is lost. A new pool takes its place, and serves no users until its catalog
            is rebuilt from what the workers hold (:meth:`storage.FileStorage.rebuild`).
        keys: gives the master keys of encrypted files; None: there are none.
        encrypts: whether new files are encrypted; None: as before, and in a new pool if it has keys. What is encrypted
            already can be read in any case. If not, workers of other owners are refused.
        direct: whether clients may read from workers themselves.
        direct_pushes: whether clients may write large files to workers themselves as well, if the pool encrypts and
            ``direct`` is on.
        owner: who owns the pool; without encryption, workers of other owners are refused.
    """

    lease_s: float = 3.0
    grace_s: float = 30.0
    margin: int = 1
    allow_fragile: bool = False
    tranquility: float = 4.0
    collect_every_s: float = COLLECT_EVERY_S
    capacity_max: int = _CAPACITY_MAX
    audit_bytes_per_s: int = AUDIT_BYTES_PER_S
    hot_bytes: int = 32 << 20
    small_copies_bytes: int = 16 << 10
    certificates_s: float = LIFETIME_S
    rebuild: str = ""
    keys: GiveKeys | None = None
    encrypts: bool | None = None
    direct: bool = True
    direct_pushes: bool = True
    owner: str = ""

    @property
    def pushed_bytes(self) -> int:
        """The part of ``hot_bytes`` for what was pushed just now: an eighth, at most 4 MiB."""
        return min(_PUSHED_BYTES_MAX, self.hot_bytes // 8)
