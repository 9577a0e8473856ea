"""The commands for secrets: set, ls, rm, rotate, grant, revoke, rotate-master; export-key and import-key."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.master_keys import export_key, import_key
from taskworker.cli.session import Session, with_session
from taskworker.cli.streams import check_input
from taskworker.cli.text import one_line, plural

if TYPE_CHECKING:
    from taskworker.client.secrets import SecretGrant, SecretStatus

_VALUE_BYTES_MAX = 64 << 10

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="Secrets, granted to functions.")

SecretName = Annotated[str, typer.Argument(help="The secret's name.", metavar="NAME")]
FunctionName = Annotated[str, typer.Argument(help="The function's name.", metavar="FUNCTION")]


def set_secret(session: Session, name: SecretName) -> None:
    """Store a new secret in the pool. The command asks for its value, or reads it from standard input.

    Examples:
        taskworker secret set api_key
        taskworker secret set api_key < key.txt
    """
    from taskworker.client.secrets import SecretClient

    value = _value(name)
    with SecretClient(session.pool_address()) as client:
        kept = client.set(name, value)
    session.terminal.result(
        document(kept),
        f"secret {kept.name} is stored; no function may use it yet: taskworker secret grant {kept.name} FUNCTION",
    )


def rotate(session: Session, name: SecretName) -> None:
    """Give a secret a new value, in the same way as `set`. Its grants stay; the old value is deleted.

    Examples:
        taskworker secret rotate api_key
    """
    from taskworker.client.secrets import SecretClient

    value = _value(name)
    with SecretClient(session.pool_address()) as client:
        kept = client.rotate(name, value)
    session.terminal.result(document(kept), f"secret {kept.name} has a new value, version {kept.version}")


def _value(name: str) -> str:
    check_input()
    if sys.stdin.isatty():
        typed: str = typer.prompt(
            f"Value of {one_line(name)}", hide_input=True, confirmation_prompt="Repeat the value", err=True
        )
        return typed
    raw = sys.stdin.buffer.read(_VALUE_BYTES_MAX + 3)
    if len(raw) == _VALUE_BYTES_MAX + 3:
        raise Failure(f"a secret has at most {_VALUE_BYTES_MAX:,} bytes, and this one has more", ExitCode.USAGE)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Failure("a secret is text in UTF-8; encode other bytes, for example in base64", ExitCode.USAGE) from error
    # The newline that `echo` and editors append is not part of the value.
    return text.removesuffix("\n").removesuffix("\r")


def ls(session: Session) -> None:
    """List the secrets with their versions, ages, last use and grants, but never a value.

    Examples:
        taskworker secret ls
    """
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        found = client.secrets()
    session.terminal.result([document(one) for one in found], *_lines(found, time.time_ns() // 1_000_000))


def _lines(found: list[SecretStatus], now_ms: int) -> list[str]:
    if not found:
        return ["no secrets yet; store one with `taskworker secret set NAME`"]
    width = max(6, *(len(one.name) for one in found))
    title = f"{'SECRET':{width}}  VERSION  {'AGE':>8}  {'CHANGED':>8}  {'USED':>8}  GRANTED TO"
    return [title, *(_line(one, width, now_ms) for one in found)]


def _line(one: SecretStatus, width: int, now_ms: int) -> str:
    age, changed = _age(now_ms - one.created_ms), _age(now_ms - one.changed_ms)
    used = "never" if one.last_used_ms is None else _age(now_ms - one.last_used_ms)
    grants = ", ".join(map(_grant_text, one.grants)) or "no function"
    grants = "DAMAGED, not used" if one.damaged else one_line(grants)
    return f"{one.name:{width}}  {one.version:>7}  {age:>8}  {changed:>8}  {used:>8}  {grants}"


def _grant_text(grant: SecretGrant) -> str:
    return f"{grant.function} ({' '.join(grant.hosts)})" if grant.hosts else grant.function


def _age(milliseconds: int) -> str:
    seconds = max(0, milliseconds // 1000)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def rm(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="The secret's name.", metavar="NAME")] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Remove all secrets, even those that cannot be read any more.", show_default=False),
    ] = False,
) -> None:
    """Remove a secret and its grants from the pool; or all secrets, for example if the master key is lost.

    Examples:
        taskworker secret rm api_key
        taskworker secret rm --all
    """
    from taskworker.client.secrets import SecretClient

    if everything == (name is not None):
        raise Failure("`taskworker secret rm` needs a NAME, or --all", ExitCode.USAGE)
    with SecretClient(session.pool_address()) as client:
        if name is None:
            client.remove_all()
        else:
            client.remove(name)
    session.terminal.result(
        {"name": name, "removed": True},
        "all secrets are removed" if name is None else f"secret {one_line(name)} is removed",
    )


def grant(
    session: Session,
    name: SecretName,
    function: FunctionName,
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Only in requests to this host (*.example.com: all hosts below it); the function does not see the "
            "secret; repeatable.",
            metavar="HOST",
        ),
    ] = None,
) -> None:
    """Let a function use a secret, from its next `worker.get_secret` or `{{secret:NAME}}` on.

    Examples:
        taskworker secret grant api_key report
        taskworker secret grant api_key report --host api.example.com
    """
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        kept = client.grant(name, function, host or ())
    where = f", only in requests to {', '.join(host)}" if host else ""
    session.terminal.result(document(kept), f"function {one_line(function)} may use secret {kept.name}{where}")


def revoke(session: Session, name: SecretName, function: FunctionName) -> None:
    """Revoke a function's grant of a secret. The function may have kept the value: rotate the secret as well.

    Examples:
        taskworker secret revoke api_key report
    """
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        kept = client.revoke(name, function)
    session.terminal.result(document(kept), f"function {one_line(function)} may no longer use secret {kept.name}")


def rotate_master(session: Session) -> None:
    """Make a new master key and wrap all secrets with it, while they are in use. Copies of the old key become useless.

    Examples:
        taskworker secret rotate-master
    """
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        done = client.rotate_master_key()
    session.terminal.result(
        document(done),
        f"master key {done.key_id} wraps {plural(done.secrets, 'secret')} now",
        "the recovery key of the former one is of no use now: taskworker secret export-key",
    )


app.command("set", cls=Command)(with_session(set_secret))
app.command("ls", cls=Command)(with_session(ls))
app.command("rm", cls=Command)(with_session(rm))
app.command("rotate", cls=Command)(with_session(rotate))
app.command("grant", cls=Command)(with_session(grant))
app.command("revoke", cls=Command)(with_session(revoke))
app.command("rotate-master", cls=Command)(with_session(rotate_master))
app.command("export-key", cls=Command)(with_session(export_key))
app.command("import-key", cls=Command)(with_session(import_key))
