"""The commands about snapshots of folders.

They are a group, as ``snapshot`` and ``forget`` by themselves are about the catalog of a store, and about workers.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.help import Command, Group
from taskworker.cli.session import Session, with_session
from taskworker.cli.text import one_line, pace_text, plural, size_text, time_text, visible
from taskworker.cli.trees import (
    Exclude,
    ExcludeCaches,
    ExcludeFrom,
    OneFileSystem,
    Privileged,
    Xattrs,
    exclusions_of,
    fail_if_any,
    folder_name,
    folder_progress,
    folder_target,
    problem_shown,
    without_store,
)

if TYPE_CHECKING:
    from taskworker.folders.entries import Entry
    from taskworker.folders.snapshots import Snapshot

app = typer.Typer(
    cls=Group, no_args_is_help=True, rich_markup_mode="rich", help="Snapshots of folders, which share what is equal."
)

_SHORT_ID_LENGTH = 12
_KINDS = {0: "-", 1: "d", 2: "l", 3: "p"}

Folder = Annotated[str, typer.Argument(help="The folder's name.", metavar="NAME", show_default=False)]
SnapshotId = Annotated[
    str,
    typer.Argument(
        help="The first digits of the snapshot's id (default: the newest).", metavar="SNAPSHOT", show_default=False
    ),
]
PathInside = Annotated[
    str | None, typer.Argument(help="Only this path of the snapshot.", metavar="PATH", show_default=False)
]


def take(
    session: Session,
    directory: Annotated[
        Path, typer.Argument(help="The directory.", metavar="DIR", exists=True, file_okay=False, show_default=False)
    ],
    name: Annotated[
        str | None, typer.Option(help="The folder's name, not the directory's own.", metavar="NAME")
    ] = None,
    exclude: Exclude = None,
    exclude_from: ExcludeFrom = None,
    exclude_caches: ExcludeCaches = False,
    one_file_system: OneFileSystem = False,
    xattrs: Xattrs = False,
    note: Annotated[str, typer.Option(help="A note to store with it.", metavar="TEXT", show_default=False)] = "",
) -> None:
    """Take a snapshot of a directory. What it has in common with earlier ones is neither read nor stored again.

    A file .twignore in a directory says what to leave out of it, as .gitignore does.

    Examples:
        taskworker folder snapshot photos
        taskworker folder snapshot /home/ann --name home --exclude-caches --one-file-system
    """
    from taskworker.folders.snapshots import take_snapshot
    from taskworker.folders.snapshots.directory_cache import cache_path

    exclusions = exclusions_of(exclude, exclude_from, caches=exclude_caches, other_file_systems=one_file_system)
    folder = folder_name(directory, name).rstrip("/")
    with session.backend(create=True) as backend:
        exclusions = without_store(session, exclusions)
        started = time.perf_counter()
        with folder_progress(session, directory, exclusions) as progress:
            report = take_snapshot(
                backend.folders(),
                directory,
                folder,
                exclusions=exclusions,
                xattrs=xattrs,
                cache=cache_path(directory, session.place(), session.user, folder),
                note=note,
                problem=problem_shown(session, directory),
                progress=progress,
            )
    assert report.snapshot is not None, "it was stored"
    pace = pace_text(report.size, time.perf_counter() - started)
    document = {name: value for name, value in asdict(report).items() if name != "snapshot"}
    lines = [
        f"{visible(folder)}: snapshot {report.snapshot.id[:_SHORT_ID_LENGTH]}, {plural(report.files, 'file')}, "
        f"{size_text(report.size)} ({pace})",
        f"  {report.read:,} read, {report.files - report.read:,} unchanged; {size_text(report.added)} added",
    ]
    if report.skipped:
        lines.append(f"  {plural(report.skipped, 'special file')} left out: sockets and devices")
    session.terminal.result(document | {"snapshot": _document(report.snapshot)}, *lines)
    fail_if_any(report.failed, "taken as it is")


def list_folders(session: Session) -> None:
    """List the folders of which there are snapshots.

    Examples:
        taskworker folder list
    """
    from taskworker.folders.snapshots import folder_names

    with session.backend() as backend:
        count = session.terminal.listing(
            "FOLDER", (({"folder": name}, visible(name)) for name in folder_names(backend.folders()))
        )
    if not count:
        session.terminal.note("no folders; `taskworker folder snapshot DIR` makes one")


def snapshots(session: Session, folder: Folder) -> None:
    """List the snapshots of a folder, the newest first.

    Examples:
        taskworker folder snapshots photos
    """
    from taskworker.folders.snapshots import Repository

    with session.backend() as backend:
        record = Repository(backend.folders(), folder).record
    session.terminal.listing(
        f"{'SNAPSHOT':{_SHORT_ID_LENGTH}}  {'TIME':19}  {'FILES':>10}  {'SIZE':>10}  {'ADDED':>10}  FROM",
        (
            (
                _document(each),
                f"{each.id[:_SHORT_ID_LENGTH]}  {time_text(each.time_ms):19}  {each.files:>10,}  "
                f"{size_text(each.size):>10}  {size_text(each.added):>10}  "
                f"{visible(f'{each.host}:{each.path}')}  {visible(each.note)}".rstrip(),
            )
            for each in reversed(record.snapshots)
        ),
    )


def ls(session: Session, folder: Folder, snapshot: SnapshotId = "latest", path: PathInside = None) -> None:
    """List what is in a snapshot: mode, size, time, path.

    Examples:
        taskworker folder ls photos
        taskworker folder ls photos 3f9a21 2026/spring
    """
    from taskworker.folders.entries import Kind
    from taskworker.folders.snapshots import Repository
    from taskworker.folders.snapshots.restoring import entry_at, walk

    inside = _path_bytes(path)
    problems = []

    def told(at: bytes, error: Exception) -> None:
        problems.append(at)
        session.terminal.error(f"{at.decode(errors='backslashreplace')}: {error}")

    with session.backend() as backend:
        repository = Repository(backend.folders(), folder)
        top = entry_at(repository, repository.snapshot(snapshot), inside)
        parts = tuple(inside.split(b"/")) if inside else ()
        found = walk(repository, top, told, parts) if top.kind is Kind.DIRECTORY else iter([(parts, top)])
        session.terminal.listing(
            f"{'MODE':5}  {'SIZE':>10}  {'CHANGED':19}  PATH", (_row(b"/".join(at), entry) for at, entry in found)
        )
    fail_if_any(len(problems), "listed")


def restore(
    session: Session,
    folder: Folder,
    snapshot: SnapshotId = "latest",
    path: PathInside = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", help="The directory to write to (default: one of the folder's name, here).", metavar="DIR"
        ),
    ] = None,
    privileged: Privileged = False,
) -> None:
    """Restore a snapshot, or a part of it. Files that are there are replaced; nothing else in the directory is touched.

    Examples:
        taskworker folder restore photos -o restored
        taskworker folder restore photos 3f9a21 2026/spring -o spring
    """
    from taskworker.folders.snapshots import Repository
    from taskworker.folders.snapshots import restore as restore_snapshot

    inside = _path_bytes(path)
    target = folder_target(folder, output, privileged=privileged)
    with session.backend() as backend:
        repository = Repository(backend.folders(), folder)
        chosen = repository.snapshot(snapshot)
        started = time.perf_counter()
        with session.terminal.folder_progress(folder) as shown:
            report = restore_snapshot(
                repository,
                chosen,
                target,
                path=inside,
                privileged=privileged,
                problem=problem_shown(session, target),
                progress=None if shown is None else lambda files, size: shown(files, size, chosen.files, chosen.size),
            )
    pace = pace_text(report.size, time.perf_counter() - started)
    session.terminal.result(
        asdict(report) | {"output": str(target), "snapshot": chosen.id},
        f"{one_line(str(target))}: {plural(report.files, 'file')}, {size_text(report.size)} ({pace})",
    )
    fail_if_any(report.failed, "restored as it was")


def diff(
    session: Session,
    folder: Folder,
    before: Annotated[
        str, typer.Argument(help="The earlier snapshot: the first digits of its id, or latest.", metavar="BEFORE")
    ],
    after: Annotated[
        str,
        typer.Argument(help="The later one (default: the newest).", metavar="AFTER", show_default=False),
    ] = "latest",
) -> None:
    """Show what differs between two snapshots: + added, - removed, M content, T another kind, U only attributes.

    Examples:
        taskworker folder diff photos 3f9a21 latest
    """
    from taskworker.folders.snapshots import Repository, compare

    with session.backend() as backend:
        repository = Repository(backend.folders(), folder)
        old, new = repository.snapshot(before), repository.snapshot(after)
        session.terminal.listing(
            "   PATH",
            (
                (
                    {"change": change.name.lower(), "path": path.decode(errors="backslashreplace")},
                    f"{change.value}  {visible(os.fsdecode(path) or '.')}",
                )
                for change, path, _ in compare(repository, old, new)
            ),
        )


def forget(
    session: Session,
    folder: Folder,
    forgotten: Annotated[
        list[str] | None,
        typer.Argument(help="Forget these, instead of keeping some by rules.", metavar="SNAPSHOT", show_default=False),
    ] = None,
    keep_last: Annotated[int, typer.Option(help="Keep the newest.", min=0, metavar="COUNT", show_default=False)] = 0,
    keep_daily: Annotated[
        int, typer.Option(help="Keep the newest of each of the last days.", min=0, metavar="COUNT", show_default=False)
    ] = 0,
    keep_weekly: Annotated[
        int, typer.Option(help="Likewise, of weeks.", min=0, metavar="COUNT", show_default=False)
    ] = 0,
    keep_monthly: Annotated[
        int, typer.Option(help="Likewise, of months.", min=0, metavar="COUNT", show_default=False)
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.", show_default=False)
    ] = False,
) -> None:
    """Forget snapshots, and delete what only they needed. `taskworker collect` then frees the space.

    A snapshot that one of the rules keeps is kept.

    Examples:
        taskworker folder forget photos --keep-daily 7 --keep-weekly 4 --dry-run
        taskworker folder forget photos 3f9a21
    """
    from taskworker.folders.snapshots import Keep, Repository
    from taskworker.folders.snapshots import forget as forget_snapshots

    keep = Keep(keep_last, keep_daily, keep_weekly, keep_monthly)
    if bool(forgotten) == (keep != Keep()):
        raise Failure("name snapshots to forget, or say with --keep-last and the like which to keep", ExitCode.USAGE)
    with session.backend() as backend:
        repository = Repository(backend.folders(), folder)
        if forgotten:
            ids = {repository.snapshot(each).id for each in forgotten}
            kept = [each for each in repository.record.snapshots if each.id not in ids]
        else:
            kept = keep.kept(repository.record.snapshots)
        report = forget_snapshots(repository, kept, dry_run=dry_run)
    would = "would be " if dry_run else ""
    lines = [
        *(f"{would}forgotten: {each.id[:_SHORT_ID_LENGTH]}  {time_text(each.time_ms)}" for each in report.forgotten),
        f"{visible(folder)}: {plural(len(report.forgotten), 'snapshot')} {would}forgotten, {len(report.kept):,} kept",
    ]
    if report.deleted:
        lines.append(
            f"  {size_text(report.deleted_size)} deleted, {size_text(report.rewritten_size)} of it written anew"
        )
    document = asdict(report) | {
        "kept": [_document(each) for each in report.kept],
        "forgotten": [_document(each) for each in report.forgotten],
        "dry_run": dry_run,
    }
    session.terminal.result(document, *lines)


def _path_bytes(path: str | None) -> bytes:
    return os.fsencode(path).strip(b"/") if path is not None else b""


def _document(snapshot: Snapshot) -> dict[str, object]:
    return {
        "id": snapshot.id,
        "time_ms": snapshot.time_ms,
        "host": snapshot.host,
        "path": snapshot.path,
        "files": snapshot.files,
        "size": snapshot.size,
        "added": snapshot.added,
        "failed": snapshot.failed,
        "note": snapshot.note,
    }


def _row(path: bytes, entry: Entry) -> tuple[dict[str, object], str]:
    shown = path.decode(errors="backslashreplace")
    target = entry.target.decode(errors="backslashreplace")
    document: dict[str, object] = {
        "path": shown,
        "kind": entry.kind.name.lower(),
        "mode": f"{entry.mode:04o}",
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }
    if target:
        document["target"] = target
    arrow = f" -> {visible(os.fsdecode(entry.target))}" if target else ""
    return document, (
        f"{_KINDS[entry.kind]}{entry.mode:04o}  {size_text(entry.size):>10}  "
        f"{time_text(entry.mtime_ns // 1_000_000):19}  {visible(os.fsdecode(path))}{arrow}"
    )


for _name, _function in (
    ("snapshot", take),
    ("list", list_folders),
    ("snapshots", snapshots),
    ("ls", ls),
    ("restore", restore),
    ("diff", diff),
    ("forget", forget),
):
    app.command(_name, cls=Command)(with_session(_function))
