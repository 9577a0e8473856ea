"""The commands worker token and worker deny: who may join the pool as a worker."""

from __future__ import annotations

from typing import Annotated

import typer

from taskworker.cli.session import Session
from taskworker.cli.text import one_line

WorkerId = Annotated[str, typer.Option("--id", help="The worker's name in the pool.", metavar="NAME")]


def worker_token(
    session: Session,
    worker_id: WorkerId,
    zone: Annotated[str, typer.Option(help="The zone that it joins in (default: it chooses).", metavar="ZONE")] = "",
    owner: Annotated[
        str, typer.Option(help="The owner that its machine counts as (default: it chooses).", metavar="NAME")
    ] = "",
    capacity_max: Annotated[
        int, typer.Option(help="Most that counts of its capacity, in GiB; 0: all.", metavar="GIB", min=0)
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            help="Where the pool reaches it, if that is not where it calls from (address translation).", metavar="HOST"
        ),
    ] = "",
    ttl: Annotated[
        float, typer.Option(help="For how many hours the token can be used.", metavar="HOURS", min=0.001, max=720.0)
    ] = 1.0,
) -> None:
    """Make a token with which a worker can join the pool, once, from any machine that reaches it.

    The worker knows the pool by the token, and the pool the worker: give it to whoever runs that machine in private.
    Works with pools that were started with --join.

    Examples:
        taskworker worker token --id worker_007 --owner ann --zone rack2
        taskworker worker token --id worker_008 --ttl 24
    """
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        token, address = client.new_join_token(
            worker_id, zone=zone, owner=owner, capacity_max=capacity_max << 30, host=host, ttl_s=ttl * 3600
        )
    session.terminal.result({"worker": worker_id, "token": token, "join_address": address}, token)
    session.terminal.note(
        f"\nOn the machine of {one_line(worker_id)}:\n"
        f"  TASKWORKER_JOIN_TOKEN={token} \\\n"
        f"  taskworker worker --pool {address} --id {one_line(worker_id)} --listen 0.0.0.0:50052\n"
    )


def worker_deny(session: Session, worker_id: WorkerId) -> None:
    """Accept a worker's certificates no longer. Its shards are rebuilt on the others, as if it were lost.

    Tokens for it become void. It can join again with a new token.

    Examples:
        taskworker worker deny --id worker_007
    """
    from taskworker.client.pool import PoolClient

    with PoolClient(session.pool_address()) as client:
        client.deny_worker(worker_id)
    session.terminal.result({"worker": worker_id, "denied": True}, f"{one_line(worker_id)} is denied")
