"""The command for users' own keys: rotate-own-key."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, plural

if TYPE_CHECKING:
    from taskworker.client.sealed.rotating import Rotated

_SHOWN_MAX = 20


def rotate_own_key(
    session: Session,
    drop_former: Annotated[
        bool,
        typer.Option(
            "--drop-former",
            help="Remove the former keys from the key file, once nothing of the user's on this server needs them.",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Replace your own key, with which files are sealed so that the server cannot read them (--key-file).

    Puts a new key on the first line of the key file, and stores all files that are sealed with former ones anew, with
    their history and shares. If it is interrupted, run it again: a file with several keys gets no further one, and what
    is done is not done again. Files get new ids. Keep a copy of the new key, and give it to all who use the file.

    The former keys stay in the file, as other servers or users may need them, until you say --drop-former. Exit code 1
    if something still needs them.

    Examples:
        taskworker rotate-own-key --key-file ./my-key
        taskworker rotate-own-key --key-file ./my-key --drop-former
    """
    if session.is_embedded():
        raise Failure("this replaces the key of a user of a server; for a store: taskworker rotate-key", ExitCode.USAGE)
    path = session.key_file()
    if path is None:
        raise Failure("say in which file your key is: --key-file FILE", ExitCode.USAGE)
    from taskworker.client import Client
    from taskworker.client.sealed.key_files import with_new_key, without_former
    from taskworker.client.sealed.rotating import OwnKeyRotation

    with closing(Client(session.pool_address(), key=path)) as client:
        OwnKeyRotation.require_offered(client)
    keys = with_new_key(path)
    shown = one_line(str(path))
    session.terminal.note(f"the new key is in {shown}: keep a copy of it")
    with Client(session.pool_address(), key=keys) as client, session.terminal.progress("store", unit="objects") as bar:
        report = OwnKeyRotation(client, session.user).run(bar)
    dropped = drop_former and not report.left
    if dropped:
        without_former(path, {key.id for key in keys.former})
    session.terminal.result(
        document(report) | {"key_file": str(path), "former_keys": 0 if dropped else len(keys.former)},
        f"{plural(report.files, 'file')} with {plural(report.versions, 'version')} stored anew",
        *_left_lines(report),
        _conclusion(report, shown, dropped=dropped),
        f"keep a copy of the key: taskworker secret export-key {shown}",
    )
    if report.left:
        raise typer.Exit(ExitCode.FAILED)


def _left_lines(report: Rotated) -> list[str]:
    lines = [f"  {one_line(one.name)}: {one_line(one.reason)}" for one in report.left[:_SHOWN_MAX]]
    more = len(report.left) - len(lines)
    return [*lines, f"  and {more:,} more"] if more else lines


def _conclusion(report: Rotated, shown: str, *, dropped: bool) -> str:
    if report.left:
        need = "needs" if len(report.left) == 1 else "need"
        files = plural(len(report.left), "file")
        return f"{files} still {need} a former key, which stays in {shown}; run this again later"
    if dropped:
        return f"{shown} has the current key only"
    return f"nothing here needs the former keys; unless another server does, remove them from {shown}: --drop-former"
