"""Candidates: bundles that are stored to be tried out, before they become versions of functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from storage import FileStorage
from storage.clocks import wall_ms
from storage.errors import FileNotFound
from taskworker.auth.rights import CANDIDATE_OWNER

_CANDIDATE_MS = 600_000
"""Longer than it takes from a candidate's commit to the call that deploys it; older ones are left over."""
_DROPPED_MAX = 100  # at once


def payer_of(owner: str, note: str) -> str:
    """Who is charged for a file: for a candidate, the deployer, who is named in its note."""
    return note if owner == CANDIDATE_OWNER and note else owner


def drop_old_candidates(store: FileStorage, now_ms: Callable[[], int] = wall_ms) -> None:
    """Remove candidates that were never deployed: their client or their pool was killed, or somebody fills the disks.

    Args:
        store: the store that has them.
        now_ms: returns milliseconds since 1970.
    """
    before_ms = now_ms() - _CANDIDATE_MS
    for version in store.list_files(user_id=CANDIDATE_OWNER, limit=_DROPPED_MAX):
        if version.time_ms < before_ms:
            with contextlib.suppress(FileNotFound):  # another call removed it
                store.delete(version.file_id, user_id=CANDIDATE_OWNER)
