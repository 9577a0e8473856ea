"""The commands for users: add, ls, quota, rm, shred, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from taskworker.cli.bounds import count_of
from taskworker.cli.documents import document
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import one_line, plural, size_text

if TYPE_CHECKING:
    from taskworker.client.users import UserStatus

app = typer.Typer(cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="The users of a server.")

UserName = Annotated[str, typer.Argument(help="The user's name, which owns the user's files.", metavar="NAME")]


def add(
    session: Session,
    name: UserName,
    role: Annotated[
        str, typer.Option(help="What the user may do: user, deployer, auditor or operator.", metavar="ROLE")
    ] = "user",
) -> None:
    """Add a user to the server. `taskworker token create` makes a token for it.

    Examples:
        taskworker user add ann
        taskworker user add ci --role deployer
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        added = client.add(name, role)
    session.terminal.result(
        document(added),
        f"{one_line(added.user)} is added, with the role {added.role}; make a token: taskworker token create --user "
        f"{one_line(added.user)}",
    )


def ls(session: Session) -> None:
    """List the server's users, their roles, and what their files take on all volumes together, of what they may take.

    Examples:
        taskworker user ls
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        found = client.users()
    width = max([4, *(len(one_line(one.user)) for one in found)])
    session.terminal.result(
        [document(one) for one in found],
        f"{'USER':{width}}  {'ROLE':8}  STORED",
        *(f"{one_line(one.user):{width}}  {one.role:8}  {_stored(one)}" for one in found),
    )


def quota(
    session: Session,
    name: UserName,
    count: Annotated[
        str,
        typer.Option(
            "--bytes",
            help="Bytes on all volumes together, such as 10GiB; default: the server's; none: no limit.",
            metavar="SIZE",
        ),
    ] = "",
    files: Annotated[
        str, typer.Option(help="Number of files; default: the server's; none: no limit.", metavar="N")
    ] = "",
) -> None:
    """Show or set what a user may store. All versions count, with the profile's overhead, and uploads that go on.

    Examples:
        taskworker user quota ann
        taskworker user quota ann --bytes 10GiB --files 100000
        taskworker user quota ann --bytes none --files default
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        shown = client.set_quota(name, files=_quota("--files", files), bytes_=_quota("--bytes", count))
    session.terminal.result(document(shown), f"{one_line(shown.user)}: {_stored(shown)}")


def _quota(option: str, text: str) -> int | Literal["default", "none"] | None:
    if text in ("default", "none"):
        return "default" if text == "default" else "none"
    return count_of(option, text) if text else None


def _stored(one: UserStatus) -> str:
    of_files = "" if one.files_max is None else f" of {one.files_max:,}"
    of_bytes = "" if one.bytes_max is None else f" of {size_text(one.bytes_max)}"
    going_on = f", and {size_text(one.uncommitted_bytes)} not committed" if one.uncommitted_bytes else ""
    return f"{one.files:,}{of_files} files, {size_text(one.bytes)}{of_bytes}{going_on}"


def rm(session: Session, name: UserName) -> None:
    """Remove a user. Its tokens end at once; its files stay, also for a later user of this name.

    Examples:
        taskworker user rm ann
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        tokens = client.remove(name)
    session.terminal.result(
        {"user": name, "removed": True, "tokens": tokens},
        f"user {one_line(name)} is removed; {plural(tokens, 'token')} ended",
    )


def export(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The file to write; only you can read it.", metavar="FILE")],
) -> None:
    """Write who has access to a file: users, hashes of their tokens and links, what they share, and workers.

    With it, and with copies of authority.pem and the master key, a pool whose directory is lost knows its users and
    workers again. Nobody can log in with it.

    Examples:
        taskworker user export users.json
    """
    from storage.system.private_files import write_private
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        raw = client.export()
    write_private(file, raw)
    session.terminal.result({"file": str(file), "bytes": len(raw)}, f"users are in {one_line(str(file))}")


def restore(
    session: Session,
    file: Annotated[
        Path, typer.Argument(help="A file that `user export` wrote.", metavar="FILE", exists=True, dir_okay=False)
    ],
) -> None:
    """Add what such a file has, except what is there already.

    Examples:
        taskworker user import users.json
    """
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        added = client.restore(file.read_bytes())
    counts = [plural(count, kind.removesuffix("s")) for kind, count in added._asdict().items()]
    session.terminal.result(added._asdict(), f"{', '.join(counts[:-1])} and {counts[-1]} added")


def shred(session: Session, name: UserName) -> None:
    """Destroy the keys of a former user, so that nobody can read what is left of the user's files, on whichever disk.

    Remove the user's files and the user first. The pool's master key is replaced as well, since copies of the keys on
    lost disks are sealed with the former one: destroy all copies of that, such as recovery keys, and export the new
    one. Snapshots of the pool's directory that were made before are of no use afterwards.

    Examples:
        taskworker user rm ann
        taskworker user shred ann
    """
    from taskworker.client.secrets import SecretClient
    from taskworker.client.users import UserClient

    with UserClient(session.pool_address()) as client:
        keys = client.destroy_keys(name)
    session.terminal.note(f"{plural(keys, 'key')} of {one_line(name)} destroyed")
    with SecretClient(session.pool_address()) as secrets:
        key_id = secrets.rotate_master_key().key_id
    session.terminal.result(
        {"user": name, "keys": keys, "master_key_id": key_id},
        f"{plural(keys, 'key')} of {one_line(name)} destroyed, and the master key replaced by {key_id}",
        "destroy all copies of the former master key, and make one of the new: taskworker secret export-key",
    )


app.command("export", cls=Command)(with_session(export))
app.command("import", cls=Command)(with_session(restore))
app.command("add", cls=Command)(with_session(add))
app.command("ls", cls=Command)(with_session(ls))
app.command("quota", cls=Command)(with_session(quota))
app.command("rm", cls=Command)(with_session(rm))
app.command("shred", cls=Command)(with_session(shred))
