"""Whether enough workers are present for written data to survive the loss of one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from storage.erasure import ErasureProfile
from storage.errors import InsufficientWorkers, StorageError
from storage.fleet.members import Member


def require_enough(
    profile: ErasureProfile,
    members: Sequence[Member],
    there: Sequence[Member],
    full: Collection[int],
    *,
    allow_fragile: bool,
    why_no_space: Callable[[], StorageError],
) -> None:
    """Refuse a write that the loss of a single worker could make unreadable.

    Args:
        profile: the erasure profile of the write.
        members: the members in the layout. Only they take shards; a member that is being drained does not count.
        there: those of them that are online.
        full: slots of those that cannot write.
        allow_fragile: accept the write even so, if any worker can take it.
        why_no_space: returns the error if the reason is lack of space.

    Raises:
        InsufficientWorkers: too few workers are online.
        StorageError: the error from ``why_no_space``.
    """
    if not there:
        raise InsufficientWorkers(f"none of the {len(members)} workers in the layout answers; start them again")
    takers = {member.worker for member in there if member.slot not in full}
    if not takers:
        raise why_no_space()
    if allow_fragile:
        return
    if profile.n == profile.k:
        raise InsufficientWorkers(
            f"a {profile} file would not survive the loss of any worker, however many there are; choose an n above "
            "k, or start the pool with --allow-fragile"
        )
    workers = len({member.worker for member in there})
    if workers > len(takers) and _survives_one(profile, workers) and not _survives_one(profile, len(takers)):
        raise why_no_space()
    if not _survives_one(profile, workers):
        raise InsufficientWorkers(
            f"{workers} of {len(members)} workers {'are' if workers > 1 else 'is'} online: a {profile} file would "
            "not survive the loss of one of them; start more workers, or the pool with --allow-fragile"
        )


def _survives_one(profile: ErasureProfile, workers: int) -> bool:
    """Whether a file spread over this many workers survives the loss of any one of them."""
    return profile.n - -(-profile.n // workers) >= profile.k
