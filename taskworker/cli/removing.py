"""The command rm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.documents import version_document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.files import FileReferences
from taskworker.cli.many import SHORT_ID_LENGTH, delete_files, heads_of, namesakes
from taskworker.cli.references import resolve_version
from taskworker.cli.session import Session
from taskworker.cli.text import plural, visible

if TYPE_CHECKING:
    from storage import Version
    from taskworker.cli.backend import Backend

_NAMES_SHOWN = 20


def rm(
    session: Session,
    files: FileReferences,
    version: Annotated[
        str | None,
        typer.Option(
            "--version",
            help="Delete only this version of one file: its id, or the first 4 or more digits.",
            metavar="VERSION",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", "-y", help="Do not ask: an argument that is an id means the file with that id.", show_default=False
        ),
    ] = False,
) -> None:
    """Delete files with all their versions, or one version of a file. `collect` frees their space.

    Asks for confirmation if an argument is the id of one file and the name of another. If the newest version is
    deleted, the one before it is the newest again; if the only one is, the file is deleted.

    Examples:
        taskworker rm report.pdf
        taskworker rm *.tmp
        taskworker rm report.pdf --version 5c1d
    """
    if version is not None:
        _remove_version(session, files, version, yes=yes)
        return
    with session.backend() as backend:
        heads = _to_delete(session, backend, files, yes=yes)
        delete_files(session, backend, heads)
    names = [visible(head.filename) for head in heads[:_NAMES_SHOWN]]
    more = f" and {len(heads) - len(names):,} more" if len(heads) > len(names) else ""
    session.terminal.result(
        [version_document(head) for head in heads], f"deleted {plural(len(heads), 'file')}: {', '.join(names)}{more}"
    )


def _remove_version(session: Session, files: list[str], reference: str, *, yes: bool) -> None:
    """Delete one version of a file."""
    if len(files) != 1:
        raise Failure("--version needs exactly one file", ExitCode.USAGE)
    with session.backend() as backend:
        (head,) = _to_delete(session, backend, files, yes=yes)
        gone = resolve_version(backend, head.file_id, reference)
        now = backend.delete_version(gone.file_id, gone.version_id)
    if now is None:
        then = "it was the only one, so the file is deleted"
    elif gone.version_id == head.version_id:
        then = f"the newest is {now.version_id[:SHORT_ID_LENGTH]} again"
    else:
        then = "the others stay"
    session.terminal.result(
        version_document(gone, head=now.version_id if now is not None else None),
        f"deleted version {gone.version_id[:SHORT_ID_LENGTH]} of {visible(gone.filename)}: {then}",
    )


def _to_delete(session: Session, backend: Backend, files: list[str], *, yes: bool) -> list[Version]:
    """The heads of the files to delete, without duplicates; all are looked up before the first is deleted."""
    heads = heads_of(session, backend, files)
    doubtful = [] if yes else namesakes(backend, heads)
    for head, other in doubtful:
        _ask_which(session, head, other)
    return list({head.file_id: head for head in heads.values()}.values())


def _ask_which(session: Session, head: Version, other: Version) -> None:
    """Ask whether to delete ``head`` by its id, which is also the name of ``other``; refuse if nobody can answer."""
    if not session.terminal.can_ask:
        raise Failure(
            f"{head.file_id} is the id of '{visible(head.filename)}' and the name of another file, so nothing was "
            f"deleted: give --yes to delete the one with that id, or give the other one's id, {other.file_id}",
            ExitCode.USAGE,
        )
    question = f"{head.file_id} is also the name of another file. Delete '{visible(head.filename)}', whose id it is?"
    if not typer.confirm(question, err=True):
        raise Failure(f"nothing was deleted; the other file's id is {other.file_id}")
