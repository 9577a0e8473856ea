"""The commands that share files: share, unshare, shares, and link create, ls and revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.completion import complete_file
from taskworker.cli.documents import document
from taskworker.cli.help import Command, Group
from taskworker.cli.references import resolve_file
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import one_line, time_text, visible
from taskworker.cli.times import span_s

if TYPE_CHECKING:
    from taskworker.client.sharing_calls import Link, Share

Name = Annotated[
    str,
    typer.Argument(
        help="The file's name; ending with /: all files whose names begin with it.",
        metavar="NAME",
        autocompletion=complete_file,
    ),
]
Expires = Annotated[
    str, typer.Option(help="How long it is valid: 30min, 12h, 7d (default: until it is ended).", metavar="TIME")
]

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Links, with which anybody can read a file.",
)


def share(
    session: Session,
    name: Name,
    with_: Annotated[str, typer.Option("--with", help="Who may use it.", metavar="USER")],
    write: Annotated[
        bool, typer.Option("--write", help="Let the user also store versions.", show_default=False)
    ] = False,
    expires: Expires = "",
) -> None:
    """Let another user read a file, or all files with a prefix. The user gets it with --user OWNER.

    Examples:
        taskworker share report.pdf --with bob
        taskworker share reports/ --with bob --write --expires 7d
    """
    from taskworker.client import Client

    with Client(session.pool_address(), key=session.key_file()) as client:
        made = client.share(
            name,
            with_user=with_,
            user_id=session.user,
            write=write,
            ttl_s=span_s(expires, "--expires") if expires else None,
        )
    what = "may read and write" if made.write else "may read"
    session.terminal.result(
        document(made),
        f"{one_line(made.with_user)} {what} {visible(made.name)}{_until(made.expires_ms)}: "
        f"taskworker get --user {one_line(made.owner)} NAME",
    )


def unshare(
    session: Session,
    name: Name,
    with_: Annotated[
        str, typer.Option("--with", help="From whom to take it back (default: from everybody).", metavar="USER")
    ] = "",
) -> None:
    """Take back what was shared under a name.

    Examples:
        taskworker unshare report.pdf --with bob
    """
    from taskworker.client import Client

    with Client(session.pool_address(), key=session.key_file()) as client:
        ended = client.unshare(name, with_user=with_, user_id=session.user)
    session.terminal.result(
        [document(one) for one in ended],
        *(f"{one_line(one.with_user)} may not use {visible(one.name)} any more" for one in ended),
    )


def shares(session: Session) -> None:
    """List what you have shared, and what others have shared with you.

    Examples:
        taskworker shares
    """
    from taskworker.client import Client

    with Client(session.pool_address(), key=session.key_file()) as client:
        found = client.shares(user_id=session.user)
    session.terminal.result(
        {"given": [document(one) for one in found.given], "received": [document(one) for one in found.received]},
        *(f"to {one_line(one.with_user)}: {_what(one)}" for one in found.given),
        *(f"from {one_line(one.owner)}: {_what(one)}" for one in found.received),
    )


def _what(one: Share) -> str:
    return f"{visible(one.name)} ({'read, write' if one.write else 'read'}){_until(one.expires_ms)}"


def _until(expires_ms: int | None) -> str:
    return "" if expires_ms is None else f" until {time_text(expires_ms)}"


def create(
    session: Session,
    file: Annotated[str, typer.Argument(help="The file's name or id.", metavar="NAME", autocompletion=complete_file)],
    version: Annotated[
        str, typer.Option(help="Id of the version that it shows (default: always the newest one).", metavar="ID")
    ] = "",
    expires: Expires = "",
) -> None:
    """Make a link, and print it. The server keeps only a hash: it cannot be shown again.

    Examples:
        taskworker link create report.pdf --expires 7d
        taskworker get --link LINK
    """
    from taskworker.client import Client

    with session.backend() as backend:
        head = resolve_file(backend, file)
    with Client(session.pool_address(), key=session.key_file()) as client:
        made = client.create_link(
            head.file_id,
            user_id=session.user,
            version_id=version or None,
            ttl_s=span_s(expires, "--expires") if expires else None,
        )
    session.terminal.result(document(made.link) | {"link": made.text}, made.text)
    session.terminal.note(f"\nWhoever has it can read {visible(head.filename)}:\n  taskworker get --link LINK\n")


def ls(session: Session) -> None:
    """List your links, but not what makes them valid.

    Examples:
        taskworker link ls
    """
    from taskworker.client import Client

    with Client(session.pool_address(), key=session.key_file()) as client:
        found = client.links(user_id=session.user)
    session.terminal.result([document(one) for one in found], *map(_line, found))


def _line(one: Link) -> str:
    version = f"version {one.version_id[:12]}" if one.version_id else "newest version"
    return one_line(f"{one.link_id}  file {one.file_id}  {version}{_until(one.expires_ms)}")


def revoke(
    session: Session,
    link_id: Annotated[str, typer.Argument(help="The link's id, as `link ls` shows it.", metavar="ID")],
) -> None:
    """End a link at once.

    Examples:
        taskworker link revoke 1f0c2e5b7a90
    """
    from taskworker.client import Client

    with Client(session.pool_address(), key=session.key_file()) as client:
        ended = client.revoke_link(link_id, user_id=session.user)
    session.terminal.result(document(ended), f"link {one_line(ended.link_id)} is revoked")


for _command in (create, ls, revoke):
    app.command(cls=Command)(with_session(_command))
