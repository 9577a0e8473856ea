"""The commands for a server's certificate authority: show, add-next, promote, drop-former."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import one_line

if TYPE_CHECKING:
    from taskworker.client.users import AuthoritiesStatus, AuthorityStatus

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The certificate authority of a pool or server, and how to replace it.",
)

Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Also if some workers do not know of the step before: they then need new tokens to join.",
        show_default=False,
    ),
]


def show(
    session: Session,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="Also write the certificates to this file, for `login --ca-file` and programs in other languages.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Show the authorities that vouch for a server and its workers.

    Examples:
        taskworker authority show
        taskworker authority show --certificates ca.pem
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        found = client.authorities()
    if certificates is not None:
        certificates.write_text("".join(one.certificate for one in found.authorities))
    _tell(session, found)


def add_next(session: Session) -> None:
    """Make a second authority, which everybody shall trust. It issues no certificates yet.

    Workers learn of it within moments. Users do so when they `taskworker context refresh`, or log in again.

    Examples:
        taskworker authority add-next
    """
    _change(session, "add-next", force=False)


def promote(session: Session, force: Force = False) -> None:
    """Let the second authority issue the certificates of workers. The former one stays trusted, and known to users.

    Examples:
        taskworker authority promote
    """
    _change(session, "promote", force=force)


def drop_former(session: Session, force: Force = False) -> None:
    """Trust the former authority no longer. Users who have not learned of the new one must log in again.

    Examples:
        taskworker authority drop-former
    """
    _change(session, "drop-former", force=force)


def _change(session: Session, step: str, *, force: bool) -> None:
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        found = client.change_authority(step, force=force)
    _tell(session, found)


def _tell(session: Session, found: AuthoritiesStatus) -> None:
    session.terminal.result(
        document(found),
        *map(_line, found.authorities),
        *([f"{len(found.waiting)} workers have not learned of the last step yet"] if found.waiting else []),
    )


def _line(one: AuthorityStatus) -> str:
    from datetime import UTC, datetime

    uses = [
        *(["issues certificates of workers"] if one.issues_to_members else []),
        *(["is shown to users"] if one.issues_to_users else []),
    ]
    until = datetime.fromtimestamp(one.expires_ms / 1000, UTC)
    return one_line(f"sha256:{one.fingerprint}  until {until:%Y-%m-%d}  {', '.join(uses) or 'is trusted'}")


app.command("show", cls=Command)(with_session(show))
app.command("add-next", cls=Command)(with_session(add_next))
app.command("promote", cls=Command)(with_session(promote))
app.command("drop-former", cls=Command)(with_session(drop_former))
