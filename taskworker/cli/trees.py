"""Whole directory trees on the command line: what push and get do with directories."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, pace_text, plural, size_text, visible

if TYPE_CHECKING:
    from taskworker.folders.rules import Exclusions

Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        help="Of a directory: leave out what matches, by the rules of .gitignore; can be repeated.",
        metavar="PATTERN",
    ),
]
ExcludeFrom = Annotated[
    list[Path] | None,
    typer.Option(
        "--exclude-from", help="Likewise, with the patterns in a file; can be repeated.", metavar="FILE", dir_okay=False
    ),
]
ExcludeCaches = Annotated[
    bool,
    typer.Option(
        "--exclude-caches",
        help="Of a directory: leave out what is in directories with a CACHEDIR.TAG.",
        show_default=False,
    ),
]
OneFileSystem = Annotated[
    bool,
    typer.Option(
        "--one-file-system",
        help="Of a directory: leave out what is on other file systems.",
        show_default=False,
    ),
]
Xattrs = Annotated[bool, typer.Option("--xattrs", help="Of a directory: keep extended attributes.", show_default=False)]
Privileged = Annotated[
    bool,
    typer.Option(
        "--privileged",
        help="Of a directory: restore owners, set-user-ID bits and all extended attributes, too; only root can. Use it "
        "only for folders that you trust.",
        show_default=False,
    ),
]


def exclusions_of(
    exclude: list[str] | None,
    exclude_from: list[Path] | None,
    *,
    caches: bool,
    other_file_systems: bool,
) -> Exclusions:
    """What the options of a command leave out.

    Raises:
        InvalidArgument: a file of patterns is too large.
        OSError: it cannot be read.
    """
    from taskworker.folders.rules import Exclusions, patterns_in

    patterns = [*(exclude or ())]
    for path in exclude_from or ():
        patterns += patterns_in(path)
    return Exclusions(tuple(patterns), caches, other_file_systems)


def folder_name(directory: Path, name: str | None) -> str:
    """The name under which a directory is stored: the one that is given, otherwise its own."""
    if name is not None:
        return name
    from storage.errors import InvalidArgument
    from taskworker.folders.pushing import folder_name as own_name

    try:
        return own_name(directory)
    except InvalidArgument as error:
        raise Failure(f"{error} with --name", ExitCode.USAGE) from None


def push_folder(
    session: Session, directory: Path, name: str | None, exclusions: Exclusions, *, xattrs: bool, delete: bool
) -> None:
    """Store a directory tree.

    Raises:
        Failure: some files could not be stored.
    """
    from taskworker.folders import push_tree

    with session.backend(create=True) as backend:
        exclusions = without_store(session, exclusions)
        started = time.perf_counter()
        with folder_progress(session, directory, exclusions) as progress:
            report = push_tree(
                backend.folders(),
                directory,
                folder_name(directory, name),
                exclusions=exclusions,
                xattrs=xattrs,
                delete=delete,
                problem=problem_shown(session, directory),
                progress=progress,
            )
    pace = pace_text(report.size, time.perf_counter() - started)
    lines = [
        f"{visible(report.prefix)}: {plural(report.files, 'file')}, {size_text(report.size)} ({pace})",
        f"  {report.stored:,} sent ({size_text(report.stored_size)}), {report.files - report.stored:,} unchanged"
        + (f", {report.deleted:,} deleted" if delete else ""),
    ]
    if report.skipped:
        lines.append(f"  {plural(report.skipped, 'special file')} left out: sockets and devices")
    session.terminal.result(asdict(report), *lines)
    fail_if_any(report.failed, "stored as it is")


def get_folder(session: Session, name: str, output: str | None, *, privileged: bool) -> None:
    """Write a folder to a directory.

    Raises:
        Failure: some files could not be restored.
    """
    from taskworker.folders import get_tree

    target = folder_target(name, output, privileged=privileged)
    with session.backend() as backend:
        started = time.perf_counter()
        with session.terminal.progress(name, unit="objects") as shown:
            report = get_tree(
                backend.folders(),
                name,
                target,
                privileged=privileged,
                problem=problem_shown(session, target),
                progress=None if shown is None else lambda files, _size: shown(files, 0),
            )
    pace = pace_text(report.size, time.perf_counter() - started)
    session.terminal.result(
        asdict(report) | {"output": str(target)},
        f"{one_line(str(target))}: {plural(report.files, 'file')}, {size_text(report.size)} ({pace})",
    )
    fail_if_any(report.failed, "restored as it was")


def folder_target(name: str, output: str | None, *, privileged: bool) -> Path:
    """The directory to write a folder to: the one that is given, otherwise one of its name, which must not exist."""
    if privileged and os.geteuid() != 0:
        raise Failure("--privileged needs root: only root may give files to others", ExitCode.USAGE)
    if output in ("", "-"):
        raise Failure("a folder goes into a directory: name it with -o", ExitCode.USAGE)
    if output is not None:
        return Path(output)
    target = Path(name.rstrip("/").rpartition("/")[2])
    if os.path.lexists(target):
        raise Failure(f"{one_line(str(target))} is already here; -o writes into it or names another place")
    return target


def problem_shown(session: Session, directory: Path) -> Callable[[bytes, Exception], None]:
    """Shows what is wrong with a file of a directory."""

    def show(path: bytes, error: Exception) -> None:
        file = os.fsencode(directory) + b"/" + path if path else os.fsencode(directory)
        said = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        session.terminal.error(f"{file.decode(errors='backslashreplace')}: {said}")

    return show


def fail_if_any(count: int, what: str) -> None:
    """Fail if there were files with problems.

    Args:
        count: how many.
        what: what was not done to each, such as "restored".

    Raises:
        Failure: there were.
    """
    if count:
        raise Failure(f"{plural(count, 'file')} could not be {what}; all others were")


@contextlib.contextmanager
def folder_progress(
    session: Session, directory: Path, exclusions: Exclusions
) -> Iterator[Callable[[int, int], None] | None]:
    """Show files, bytes, rate and time left; what there is to do is counted meanwhile."""
    from taskworker.folders.entries import Kind
    from taskworker.folders.scanning import Scan

    with session.terminal.folder_progress(str(directory)) as shown:
        if shown is None:
            yield None
            return
        ended = threading.Event()
        counted = [0, 0]

        def count() -> None:
            with contextlib.suppress(Exception):  # the push itself tells of every problem
                for found in Scan(directory, exclusions, lambda path, error: None).found():
                    if found.entry.kind is Kind.FILE:
                        counted[0] += 1
                        counted[1] += found.entry.size
                    if ended.is_set():
                        return

        counting = threading.Thread(target=count, name="count-files", daemon=True)
        counting.start()
        try:
            yield lambda files, size: shown(files, size, counted[0], counted[1])
        finally:
            ended.set()
            counting.join()


def without_store(session: Session, exclusions: Exclusions) -> Exclusions:
    """The same, and the open embedded store: a folder does not contain the store that it goes to."""
    if not session.is_embedded():
        return exclusions
    status = session.store_path().stat()
    return replace(exclusions, paths=exclusions.paths | {(status.st_dev, status.st_ino)})
