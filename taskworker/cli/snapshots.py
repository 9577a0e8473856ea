"""The command that backs up a pool's or store's directory while it is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from taskworker.cli.documents import document
from taskworker.cli.session import Session
from taskworker.cli.text import size_text

_KEY = "master.key"
_CALLS = "calls"


def snapshot(
    session: Session,
    directory: Annotated[Path, typer.Argument(help="The pool's --dir, or an embedded store.", metavar="DIR")],
    target: Annotated[Path, typer.Argument(help="The directory to create; it must not exist yet.", metavar="TARGET")],
    with_key: Annotated[
        bool,
        typer.Option(
            "--with-key",
            help=f"Copy {_KEY}, too. Whoever has both can read the pool's secrets.",
            show_default=False,
        ),
    ] = False,
) -> None:
    """Back up a pool's directory, or an embedded store's catalog, even while it is in use on this machine.

    A copy made by cp, rsync or a backup program is valid only if the pool is stopped. To restore a snapshot, stop the
    pool, replace DIR with a copy of the snapshot, start the pool, and run `taskworker rebuild` if status says that the
    catalog is older than what the workers hold.

    Examples:
        taskworker snapshot ./pool /backups/monday
        taskworker snapshot ./pool /backups/monday --with-key
    """
    from storage.settings import STORE_FILE
    from storage.snapshot import take_snapshot

    files = [STORE_FILE, *([_KEY] if with_key else [])]
    taken = take_snapshot(directory, target, databases=[_CALLS], files=files)
    lines = [f"{taken.path}: {', '.join([*taken.databases, *taken.files])} ({size_text(taken.bytes_used)})"]
    if not with_key and (directory / _KEY).exists():
        lines.append(
            f"{_KEY} is not in it: without it, encrypted files and secrets cannot be read; keep a copy elsewhere"
        )
    session.terminal.result(document(taken), *lines)
