"""The commands for copies of a master key: secret export-key, secret import-key."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.streams import check_input
from taskworker.cli.text import one_line

_TEXT_BYTES_MAX = 4096


def export_key(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(help="A key file (default: that of the running pool).", metavar="KEY_FILE", dir_okay=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write it to this new file, which only you may read, such as one on a stick.",
            metavar="FILE",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Print the master key as a recovery key, for paper. Run it on the pool's machine, as the pool's user.

    The pool's status asks for a copy until this command has made one; with KEY_FILE, the pool is not told. Whoever has
    the recovery key, and the disks of workers, can read all files.

    Examples:
        taskworker secret export-key
        taskworker secret export-key -o /media/stick/recovery-key
        taskworker secret export-key ./key
    """
    from storage.sealing.master_keys import read_key_file
    from storage.sealing.recovery_key import recovery_rows
    from storage.system.private_files import write_private

    if output is not None and os.path.lexists(output):
        raise Failure(f"{one_line(str(output))} is already here; name a new file", ExitCode.CONFLICT)
    key = read_key_file(file or _file_of_pool(session)).current
    key_id, rows = key.id.hex(), recovery_rows(key)
    lines = [
        f"# TaskWorker: recovery key of the master key {key_id}",
        *(f"{number}  {row}" for number, row in enumerate(rows, 1)),
    ]
    if output is not None:
        write_private(output, "".join(f"{line}\n" for line in lines).encode())
        session.terminal.result(
            {"key_id": key_id, "file": str(output)}, f"the recovery key is in {one_line(str(output))}"
        )
    else:
        session.terminal.result({"key_id": key_id, "rows": rows}, *lines)
    if file is None:
        _tell_pool(session, key_id)
    session.terminal.note(
        "\nKeep it apart from the pool and its workers. After a loss:\n  taskworker secret import-key KEY_FILE\n"
    )


def _file_of_pool(session: Session) -> Path:
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        place = client.master_key()
    if not place.file:
        raise Failure(
            "the pool was given its master key in TASKWORKER_MASTER_KEY, and keeps no file: keep a copy of that, or "
            "put it into a file that only you may read, and name the file here",
            ExitCode.USAGE,
        )
    path = Path(place.file)
    if not os.path.lexists(path):
        raise Failure(
            f"the master key is in {one_line(place.file)} on the pool's machine: run this command there", ExitCode.USAGE
        )
    return path


def _tell_pool(session: Session, key_id: str) -> None:
    from taskworker.client.secrets import SecretClient

    with SecretClient(session.pool_address()) as client:
        client.note_master_key_copied(key_id)


def import_key(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The key file to make.", metavar="KEY_FILE", dir_okay=False)],
) -> None:
    """Make a key file from a recovery key, which the command asks for, or reads from standard input.

    The key file is for `taskworker pool --master-key` or `--key-file`; a pool also takes it as `master.key` in its
    directory. A file with another key is not replaced.

    Examples:
        taskworker secret import-key ./pool/master.key
        taskworker secret import-key ./key < /media/stick/recovery-key
    """
    from storage.sealing.master_keys import MasterKeys, read_key_file, write_key_file
    from storage.sealing.recovery_key import key_of_recovery_text

    key = key_of_recovery_text(_recovery_text())
    key_id, shown = key.id.hex(), one_line(str(file))
    if os.path.lexists(file):
        found = read_key_file(file).current.id.hex()
        if found != key_id:
            raise Failure(
                f"{shown} has the key {found}, and the recovery key is that of {key_id}: name another file, or move "
                "this one away",
                ExitCode.CONFLICT,
            )
    else:
        write_key_file(file, MasterKeys(key))
    session.terminal.result({"key_id": key_id, "file": str(file)}, f"{shown} has the master key {key_id}")


def _recovery_text() -> str:
    check_input()
    if sys.stdin.isatty():
        rows = [typer.prompt(f"Row {number}", err=True) for number in range(1, 5)]
        return "\n".join(rows)
    return sys.stdin.buffer.read(_TEXT_BYTES_MAX).decode("utf-8", "replace")
