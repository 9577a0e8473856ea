"""Where fetched files are written to."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, visible

if TYPE_CHECKING:
    from storage import Version
    from taskworker.cli.backend import Backend


def target_of(output: str | None, version: Version) -> Path:
    """Where to write a version, according to -o."""
    if output == "":
        raise Failure("-o is given an empty name: say where to write", ExitCode.USAGE)
    directory = Path(output or "")
    if output is not None and not output.endswith(os.sep) and not directory.is_dir():
        return directory
    name = PurePosixPath(version.filename).name
    if not name:
        raise Failure(
            f"'{visible(version.filename)}' is not the name of a file here: say where to write with -o", ExitCode.USAGE
        )
    target = directory / name
    if output is None and os.path.lexists(target):
        raise Failure(f"{one_line(str(target))} is already here; -o overwrites it or names another place")
    directory.mkdir(parents=True, exist_ok=True)
    return target


def write_version(session: Session, backend: Backend, file: BinaryIO, version: Version, start: int, stop: int) -> None:
    """Write the bytes from ``start`` to ``stop`` of a version."""
    with session.terminal.progress(version.filename) as progress:
        backend.write_to(file, version, start, stop, progress=progress)
