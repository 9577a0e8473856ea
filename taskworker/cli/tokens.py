"""The commands for tokens of users: create, ls, revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import one_line
from taskworker.cli.times import span_s

if TYPE_CHECKING:
    from taskworker.client.users import TokenStatus

app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="Tokens, which users show to a server."
)


def create(
    session: Session,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What the token is limited to: files:read[:PREFIX], files:write[:PREFIX], call[:FUNCTION], "
            "deploy[:PREFIX], audit, join, gateway or operate; repeatable (default: all that the user may do; with "
            "--s3: files:read and files:write).",
            metavar="SCOPE",
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(help="How long it is valid: 30min, 12h, 90d (default: until revoked).", metavar="TIME")
    ] = "",
    label: Annotated[str, typer.Option(help="What it is for, shown in `token ls`.", metavar="TEXT")] = "",
    s3: Annotated[
        bool, typer.Option("--s3", help="Make an access key for S3: an id, and a secret to sign requests with.")
    ] = False,
) -> None:
    """Make a token of the user given by --user, and print it. The server keeps only a hash: it cannot be shown again.

    Of an access key (--s3), which needs a pool, the secret is kept too, sealed with the pool's master key, since
    signatures cannot be checked without it. A gateway gets it with a token of an operator with --scope gateway.

    Examples:
        taskworker token create --user ann --expires 90d
        taskworker token create --user ann --scope files:read:reports/ --label "report viewer"
        taskworker token create --user ann --s3 --scope files:read:backups/ --scope files:write:backups/
    """
    from taskworker.client.users import UserClient

    of = session.settings.user
    if not of:
        raise Failure("whose token? give --user NAME", ExitCode.USAGE)
    ttl_s = span_s(expires, "--expires") if expires else None
    with UserClient(session.pool_address()) as client:
        if s3:
            key = client.create_access_key(of, scopes=scope or (), ttl_s=ttl_s, label=label)
            lines = (f"access key id      {key.access_key_id}", f"secret access key  {key.secret}")
            session.terminal.result(document(key), *lines)
            session.terminal.note(f"\nGive them to {one_line(of)} in private; the secret is not shown again.")
            return
        text, made = client.create_token(of, scopes=scope or (), ttl_s=ttl_s, label=label)
    session.terminal.result(document(made) | {"token": text}, text)
    session.terminal.note(f"\nGive it to {one_line(of)} in private; to keep it:\n  taskworker login ADDR\n")


def ls(session: Session) -> None:
    """List all tokens and access keys, or those of --user: what they are limited to, and when they were last used.

    Examples:
        taskworker token ls
        taskworker token ls --user ann
    """
    from storage.clocks import wall_ms
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        found = client.tokens(session.settings.user or "")
    now_ms = wall_ms()
    session.terminal.result([document(one) for one in found], *(_line(one, now_ms) for one in found))


def _line(one: TokenStatus, now_ms: int) -> str:
    if one.revoked_ms is not None:
        state = "revoked"
    elif one.expires_ms is not None and one.expires_ms <= now_ms:
        state = "expired"
    else:
        state = "valid" if one.expires_ms is None else f"valid for {(one.expires_ms - now_ms) // 3_600_000} h"
    used = "never used" if one.used_ms is None else f"used {(now_ms - one.used_ms) // 60_000} min ago"
    limits = " ".join(one.scopes) or "all rights"
    kind = f"S3 key {one.access_key_id}  " if one.access_key_id else ""
    return one_line(
        f"{one.token_id}  {one.user}  {state}  {kind}{used}  {limits}{f'  {one.label}' if one.label else ''}"
    )


def revoke(
    session: Session,
    token_id: Annotated[str, typer.Argument(help="The token's id, as `token ls` shows it.", metavar="ID")],
) -> None:
    """End a token at once.

    Examples:
        taskworker token revoke 1f0c2e5b7a90
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        ended = client.revoke(token_id)
    session.terminal.result(document(ended), f"token {ended.token_id} of {one_line(ended.user)} is revoked")


app.command("create", cls=Command)(with_session(create))
app.command("ls", cls=Command)(with_session(ls))
app.command("revoke", cls=Command)(with_session(revoke))
