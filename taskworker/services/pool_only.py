"""What workers serve to their pool, and to nobody else."""

from __future__ import annotations

from functools import partial
from typing import Any

from storage.errors import PermissionDenied
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.rights import POOL, Principal
from taskworker.rpc.admission import Entry, Gate
from taskworker.rpc.authorization import Guard
from taskworker.rpc.member_callers import member_of


def pool_only(own: MemberIdentity) -> Guard:
    """Return a guard for the services of a worker: callers must show the certificate of its own pool."""
    return Guard(partial(_principal_of, own))


def entry_of_pool(own: MemberIdentity, calls: int) -> Entry:
    """Return what refuses calls of anybody but the worker's own pool as they begin.

    Args:
        own: who the worker is.
        calls: how many calls its server admits at once.
    """

    def whose(caller: Any) -> None:
        _principal_of(own, caller)

    return Entry(Gate(calls, f"{calls} calls are under way, as many as this worker allows"), whose)


def _principal_of(own: MemberIdentity, caller: Any) -> Principal:
    member = member_of(caller)
    if member.kind is not MemberKind.POOL or member.pool != own.pool:
        raise PermissionDenied(f"{member.kind} {member.name[:80]} is not the pool of this worker")
    return POOL
