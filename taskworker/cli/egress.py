"""The commands for outside APIs: egress allow, deny, rm, ls, log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import json_text, one_line, size_text, time_text

if TYPE_CHECKING:
    from taskworker.client.egress import EgressRecord, EgressRule

app = typer.Typer(
    cls=Group, no_args_is_help=True, help="Allow functions to call outside APIs, and see what they called."
)

FunctionName = Annotated[str, typer.Argument(help="The function's name.", metavar="FUNCTION")]
RuleText = Annotated[
    str,
    typer.Argument(help="host, *.host, host:port or host/prefix, with or without http:// or https://.", metavar="HOST"),
]


def allow(
    session: Session,
    function: FunctionName,
    host: RuleText,
    private: Annotated[
        bool,
        typer.Option("--private", help="The host may be on loopback or in a private network.", show_default=False),
    ] = False,
) -> None:
    """Let a function call an outside host.

    The default port is that of the scheme: 443, or 80. A prefix matches whole segments of the path.

    Examples:
        taskworker egress allow report api.example.com
        taskworker egress allow report https://*.example.com:8443/v1
        taskworker egress allow report billing.internal:8080 --private
    """
    from taskworker.client.egress import EgressClient

    with EgressClient(session.pool_address()) as client:
        rule, changed = client.allow(function, host, private=private)
    how = "may now call" if changed else "could already call"
    session.terminal.result(document(rule) | {"changed": changed}, f"{rule.function} {how} {rule.rule}{_private(rule)}")


def deny(session: Session, function: FunctionName, host: RuleText) -> None:
    """Remove a rule, written as `egress ls` shows it.

    Examples:
        taskworker egress deny report api.example.com
    """
    _take_back(session, function, host)


def rm(session: Session, function: FunctionName) -> None:
    """Remove all rules of a function.

    Examples:
        taskworker egress rm report
    """
    _take_back(session, function, "")


def _take_back(session: Session, function: str, host: str) -> None:
    from taskworker.client.egress import EgressClient

    with EgressClient(session.pool_address()) as client:
        gone = client.deny(function, host)
    if not gone:
        raise Failure(f"{function} has no such rule; `taskworker egress ls` shows all", ExitCode.NOT_FOUND)
    session.terminal.result(
        [document(one) for one in gone],
        f"{one_line(function)} may no longer call {', '.join(one.rule for one in gone)}",
    )


def ls(
    session: Session,
    function: Annotated[str, typer.Argument(help="Only this function.", metavar="FUNCTION")] = "",
) -> None:
    """List which functions may call which hosts.

    Examples:
        taskworker egress ls
    """
    from taskworker.client.egress import EgressClient

    with EgressClient(session.pool_address()) as client:
        rules = client.rules(function)
    width = max((len(one.function) for one in rules), default=0)
    count = session.terminal.listing(
        f"{'FUNCTION':{width}}  HOST",
        ((document(one), f"{one.function:{width}}  {one.rule}{_private(one)}") for one in rules),
    )
    if not count:
        session.terminal.note(
            "no function may call outside hosts; allow one with `taskworker egress allow FUNCTION HOST`"
        )


def log(
    session: Session,
    function: Annotated[str, typer.Argument(help="Only this function.", metavar="FUNCTION")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep showing new lines until Ctrl-C.", show_default=False)
    ] = False,
) -> None:
    """Show which function called which outside host, for which user, and with what outcome.

    Examples:
        taskworker egress log
        taskworker egress log report --follow
    """
    from taskworker.client.egress import EgressClient

    with EgressClient(session.pool_address()) as client:
        for one in client.log(function, follow=follow):
            if session.terminal.as_json:
                session.terminal.lines(json_text(document(one)))
            else:
                session.terminal.lines(_record_line(one))


def _record_line(one: EgressRecord) -> str:
    outcome = str(one.status) if one.outcome == "ok" else f"{one.status or '-'} {one.outcome}"
    who = f"{one_line(one.function)} for {one_line(one.user_id) or '-'}"
    what = f"{one.method} {one_line(one.host) or '-'} {outcome}"
    sizes = f"{size_text(one.sent)} out, {size_text(one.received)} in"
    return f"{time_text(one.time_ms)} {who}: {what}, {sizes}, {one.ms:.0f} ms"


def _private(rule: EgressRule) -> str:
    return "  (private)" if rule.private else ""


for _command in (allow, deny, rm, ls, log):
    app.command(cls=Command)(with_session(_command))
