"""The server at which a worker takes calls from its pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import grpc

from taskworker.rpc.serving import Server
from taskworker.services.pool_only import entry_of_pool
from taskworker.worker.member import WorkerMember


def calls_server(
    services: Mapping[str, grpc.GenericRpcHandler],
    calls: int,
    member: WorkerMember | None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Server:
    """Return a server of a worker, which has not started. If the worker is a member, only its pool may make calls.

    Args:
        services: what it serves, by full name.
        calls: how many calls it admits at once.
        member: the worker's certificate, if the pool's workers join with tokens.
        clock_s: monotonic seconds.
    """
    entry = None if member is None else entry_of_pool(member.credentials.identity, calls)
    return Server(services, calls=calls, entry=entry, clock_s=clock_s)
