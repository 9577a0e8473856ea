"""The command that shows a pool's audit trail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import json_text, one_line, plural, time_text
from taskworker.cli.times import span_s

if TYPE_CHECKING:
    from taskworker.client.audit import TrailRecord


def audit(
    session: Session,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep showing new records until Ctrl-C.", show_default=False)
    ] = False,
    since: Annotated[
        str, typer.Option(help="Only of this last time, such as 90s, 12h or 7d; default: all.", metavar="TIME")
    ] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no record was changed or removed.", show_default=False)
    ] = False,
) -> None:
    """Show who was refused what, who changed users, rights, secrets, rules or workers, and what operators did.

    Records name ids, users, functions, secrets and workers, but never values or names of files. Operators and auditors
    may read them.

    Examples:
        taskworker audit --since 1d
        taskworker audit --follow --json
        taskworker audit --verify
    """
    from storage.clocks import wall_ms
    from taskworker.client.audit import AuditClient

    with AuditClient(session.pool_address()) as client:
        if verify:
            found = client.verify()
            session.terminal.result(
                document(found),
                f"{plural(found.records, 'record')}, {found.first:,} to {found.last:,}"
                + (": nothing was changed or removed" if not found.problems else ""),
                *(one_line(problem) for problem in found.problems),
            )
            if found.problems:
                raise Failure("the audit trail is not what was written", ExitCode.DATA_LOSS)
            return
        since_ms = wall_ms() - int(span_s(since, "--since") * 1000) if since else 0
        for one in client.records(since_ms=since_ms, follow=follow):
            session.terminal.lines(json_text(document(one)) if session.terminal.as_json else _line(one))


def _line(one: TrailRecord) -> str:
    who = one_line(one.who) or "-"
    token = f" ({one_line(one.token_id)})" if one.token_id else ""
    on = f" {one_line(one.on)}" if one.on else ""
    times = f" ({one.count:,} times)" if one.count > 1 else ""
    peer = one_line(one.peer) or "-"
    return f"{time_text(one.time_ms)} {who}{token} {peer}: {one_line(one.call)}{on}: {one_line(one.outcome)}{times}"
