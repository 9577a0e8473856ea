"""What the command sync does with directories."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.session import Session
from taskworker.cli.text import pace_text, plural, size_text, visible
from taskworker.cli.trees import fail_if_any, folder_name, problem_shown, without_store

if TYPE_CHECKING:
    from taskworker.folders.rules import Exclusions


def sync_folder(
    session: Session, directory: Path, name: str | None, exclusions: Exclusions, *, dry_run: bool, allow_empty: bool
) -> None:
    """Sync a directory and a folder.

    Raises:
        Failure: some files could not be synced.
    """
    from taskworker.folders.syncing import sync_tree

    if dry_run and not directory.is_dir():
        raise Failure(f"there is no directory '{visible(str(directory))}'", ExitCode.NOT_FOUND)
    done: list[tuple[str, str]] = []

    def told(what: str, path: bytes) -> None:
        shown = path.decode(errors="backslashreplace")
        if dry_run or what == "kept both":
            done.append((what, shown))

    with session.backend(create=not dry_run) as backend:
        started = time.perf_counter()
        with session.terminal.progress(str(directory), unit="objects") as shown:
            report = sync_tree(
                backend.folders(),
                directory,
                folder_name(directory, name),
                place=f"{session.place()}\n{session.user}",
                exclusions=without_store(session, exclusions) if directory.is_dir() else exclusions,
                dry_run=dry_run,
                allow_empty=allow_empty,
                problem=problem_shown(session, directory),
                told=told,
                progress=None if shown is None else lambda files, _size: shown(files, 0),
            )
        pace = pace_text(report.sent_size + report.fetched_size, time.perf_counter() - started)
    document = asdict(report) | {"dry_run": dry_run, "told": [{"what": what, "path": path} for what, path in done]}
    lines = [f"{what}: {visible(path)}" for what, path in done]
    if dry_run:
        lines.append(f"{visible(report.prefix)}: {plural(len(done), 'change')} to make")
    else:
        lines.append(
            f"{visible(report.prefix)}: {report.sent:,} sent ({size_text(report.sent_size)}), "
            f"{report.fetched:,} fetched ({size_text(report.fetched_size)}), {report.deleted_here:,} deleted here, "
            f"{report.deleted_there:,} deleted there ({pace})"
        )
    session.terminal.result(document, *lines)
    fail_if_any(report.failed, "synced")
