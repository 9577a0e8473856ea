"""What workers serve to their pool, and to nobody else."""

from __future__ import annotations

from typing import Any

from storage.errors import PermissionDenied
from taskworker.auth.identity import MemberIdentity, MemberKind
from taskworker.auth.rights import POOL, Principal
from taskworker.rpc.authorization import Guard
from taskworker.services.members import member_of


def pool_only(own: MemberIdentity) -> Guard:
    """Return a guard for the services of a worker: callers must show the certificate of its own pool."""

    def identify(caller: Any) -> Principal:
        member = member_of(caller)
        if member.kind is not MemberKind.POOL or member.pool != own.pool:
            raise PermissionDenied(f"{member.kind} {member.name[:80]} is not the pool of this worker")
        return POOL

    return Guard(identify)
