"""The commands about files: push, get, ls, log, stat, revise, rm."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskworker.cli.completion import complete_file
from taskworker.cli.documents import listed_document, version_document
from taskworker.cli.exits import ExitCode, Failure
from taskworker.cli.many import SHORT_ID_LENGTH, get_files, push_files
from taskworker.cli.outputs import target_of, write_version
from taskworker.cli.profile import K, N, profile_of
from taskworker.cli.references import resolve_file, resolve_range, resolve_version
from taskworker.cli.session import Session
from taskworker.cli.streams import check_output, standard_input, standard_output
from taskworker.cli.text import one_line, pace_text, plural, size_text, time_text, visible
from taskworker.cli.trees import (
    Exclude,
    ExcludeCaches,
    ExcludeFrom,
    OneFileSystem,
    Privileged,
    Xattrs,
    exclusions_of,
    get_folder,
    push_folder,
)
from taskworker.client.local_files import copy_stream, replacing

if TYPE_CHECKING:
    from storage import ErasureProfile, Version
    from taskworker.cli.backend import Backend

STANDARD_STREAM = "-"
_ATTRIBUTE_SHOWN_MAX = 80

FileReference = Annotated[
    str,
    typer.Argument(help="A file's id or name.", metavar="ID|NAME", show_default=False, autocompletion=complete_file),
]
FileReferences = Annotated[
    list[str],
    typer.Argument(help="Ids or names of files.", metavar="ID|NAME", show_default=False, autocompletion=complete_file),
]
VersionReference = Annotated[
    str | None,
    typer.Option("--version", help="A version: its id, or the first digits of it.", metavar="VERSION"),
]
Note = Annotated[str, typer.Option(help="A note to store with the version.", metavar="TEXT", show_default=False)]


def push(
    session: Session,
    files: Annotated[
        list[str],
        typer.Argument(help="Files to store, or a directory; - is standard input.", metavar="FILE", show_default=False),
    ],
    name: Annotated[str | None, typer.Option(help="Store under this name, not the file's own.", metavar="NAME")] = None,
    k: K = None,
    n: N = None,
    note: Note = "",
    exclude: Exclude = None,
    exclude_from: ExcludeFrom = None,
    exclude_caches: ExcludeCaches = False,
    one_file_system: OneFileSystem = False,
    xattrs: Xattrs = False,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Of a directory: delete stored files that are not in it any more.", show_default=False
        ),
    ] = False,
) -> None:
    """Store files. If a file of that name exists, it gets a new version, unless the content and --note are the same.

    Of a directory, the file a/b is stored as NAME/a/b. Files that are unchanged since the last push are not read
    again. `taskworker get NAME/` brings all of it back, with modes, times and links. A file .twignore in a directory
    says what to leave out of it, as .gitignore does. See also `taskworker folder`.

    With --k 4 --n 6, any four of six volumes suffice to read the file. If --store names a directory that holds no
    store yet, these two also become the new store's default.

    Examples:
        taskworker push report.pdf
        taskworker push *.csv --note "before the clean-up"
        taskworker push photos
        taskworker push photos --name archive/photos --exclude '*.tmp' --delete
        tar c photos | taskworker push - --name photos.tar
    """
    of_directory = bool(exclude or exclude_from or exclude_caches or one_file_system or xattrs or delete)
    if len(files) == 1 and Path(files[0]).is_dir():
        if k is not None or n is not None or note:
            raise Failure("--k, --n and --note are for single files, not for directories", ExitCode.USAGE)
        excluded = exclusions_of(exclude, exclude_from, caches=exclude_caches, other_file_systems=one_file_system)
        push_folder(session, Path(files[0]), name, excluded, xattrs=xattrs, delete=delete)
        return
    if of_directory:
        raise Failure("these options are for a directory: name one, and nothing else", ExitCode.USAGE)
    sources = _named_sources(files, name)
    profile = profile_of(k, n)
    stored: list[dict[str, Any]] = []
    try:
        with session.backend(create=True, profile=profile) as backend:
            several = [(filename, path) for filename, path in sources if path is not None]
            if len(several) > 1:
                push_files(session, backend, several, profile, note, stored)
                return
            for filename, path in sources:
                version, seconds = _push_one(session, backend, filename, path, profile, note)
                stored.append(version_document(version, unchanged=version.unchanged))
                if not session.terminal.as_json:
                    outcome = "unchanged" if version.unchanged else "stored"
                    pace = pace_text(version.size, seconds)
                    session.terminal.lines(
                        f"{visible(filename)}: {size_text(version.size)} {outcome} ({pace})",
                        f"  file {version.file_id}  version {version.version_id[:SHORT_ID_LENGTH]}",
                    )
    finally:
        if session.terminal.as_json and stored:
            session.terminal.document(stored)


def _named_sources(files: list[str], name: str | None) -> list[tuple[str, Path | None]]:
    """(name to store under, path or None for standard input) of each file, checked before anything is stored."""
    if name is not None and len(files) > 1:
        raise Failure("--name needs a single file", ExitCode.USAGE)
    sources: list[tuple[str, Path | None]] = []
    for file in files:
        if file == STANDARD_STREAM:
            if name is None:
                raise Failure("standard input has no name: give one with --name", ExitCode.USAGE)
            sources.append((name, None))
        else:
            path = existing_file(file)
            sources.append((path.name if name is None else name, path))
    twice = [filename for filename, count in Counter(filename for filename, _ in sources).items() if count > 1]
    if twice:
        raise Failure(f"two files are named '{visible(min(twice))}': store them one by one with --name", ExitCode.USAGE)
    return sources


def existing_file(file: str) -> Path:
    """The path of a local file to read from."""
    path = Path(file)
    if path.is_dir():
        raise Failure(
            f"{one_line(file)} is a directory; `taskworker push DIR` stores one, with nothing else in the same call",
            ExitCode.USAGE,
        )
    if not path.exists():
        raise Failure(f"{one_line(file)}: no such file", ExitCode.USAGE)
    return path


def _push_one(
    session: Session, backend: Backend, filename: str, path: Path | None, profile: ErasureProfile | None, note: str
) -> tuple[Version, float]:
    started = time.perf_counter()
    with session.terminal.progress(filename) as progress, contextlib.ExitStack() as opened:
        source = opened.enter_context(standard_input()) if path is None else path
        version = backend.push(source, filename=filename, profile=profile, note=note, progress=progress)
    return version, time.perf_counter() - started


def get(
    session: Session,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Ids or names of files.", metavar="ID|NAME", show_default=False, autocompletion=complete_file
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Where to write: a file, a directory, DIR/ for a directory to create if needed, or - for standard "
            "output (default: the file's name, here).",
            metavar="OUT",
        ),
    ] = None,
    version: VersionReference = None,
    byte_range: Annotated[
        str | None, typer.Option("--range", help="Only these bytes: A-B (both included), A- or -N.", metavar="A-B")
    ] = None,
    link: Annotated[
        str,
        typer.Option(help="Get the file of this link, see `taskworker link` (env: TASKWORKER_LINK).", metavar="LINK"),
    ] = "",
    privileged: Privileged = False,
) -> None:
    """Get files back, verified. Each output is written as a whole or not at all.

    With -o, a file that already exists is overwritten; without -o, it is not. Several files go into a directory.

    A name that ends with a slash is a folder, and what is in it goes into the directory named by -o.

    Examples:
        taskworker get report.pdf
        taskworker get january.csv february.csv -o year/
        taskworker get report.pdf --version 3f9a21 -o old.pdf
        taskworker get photos.tar -o - | tar x
        taskworker get disk.img --range 0-511 -o sector
        taskworker get report.pdf --user ann
        taskworker get photos/ -o restored
    """
    link = link or ("" if files else os.environ.get("TASKWORKER_LINK", ""))
    if bool(files) == bool(link) or (link and version is not None):
        raise Failure("name a file, or give a --link, without --version", ExitCode.USAGE)
    files = files or []
    if len(files) == 1 and files[0].endswith("/"):
        if version is not None or byte_range is not None:
            raise Failure("--version and --range need a single file, not a folder", ExitCode.USAGE)
        get_folder(session, files[0], output, privileged=privileged)
        return
    if len(files) > 1:
        _check_several(output, version, byte_range)
        with session.backend() as backend:
            get_files(session, backend, files, output)
        return
    to_stdout = output == STANDARD_STREAM
    if to_stdout and session.terminal.as_json:
        raise Failure("--json and -o - both write to standard output: leave one out", ExitCode.USAGE)
    if to_stdout:
        check_output()
    with _linked(session, link) if link else _named(session, files[0], version) as (backend, found):
        start, stop = resolve_range(byte_range, found.size)
        if to_stdout:
            with standard_output() as stdout:
                write_version(session, backend, stdout, found, start, stop)
        else:
            _save(session, backend, found, output, start, stop)


@contextlib.contextmanager
def _named(session: Session, file: str, version: str | None) -> Iterator[tuple[Backend, Version]]:
    with session.backend() as backend:
        yield backend, resolve_version(backend, file, version)


@contextlib.contextmanager
def _linked(session: Session, link: str) -> Iterator[tuple[Backend, Version]]:
    from taskworker.auth.link_tokens import is_link
    from taskworker.cli.remote import remote_backend

    if not is_link(link):
        raise Failure("this is no link: links begin with `twl1.` and have 48 characters", ExitCode.USAGE)
    address = session.pool_address()
    with contextlib.closing(remote_backend(address, "", token=link, key=session.key_file())) as backend:
        yield backend, backend.linked()


def _check_several(output: str | None, version: str | None, byte_range: str | None) -> None:
    if version is not None or byte_range is not None:
        raise Failure("--version and --range need a single file", ExitCode.USAGE)
    if output is not None and not output.endswith(os.sep) and not (output and Path(output).is_dir()):
        raise Failure("several files go into a directory: end -o with a slash to create it", ExitCode.USAGE)


def save_version(session: Session, file_id: str, version_id: str, output: str) -> None:
    """Write a whole version of a file, as `get -o` does."""
    with session.backend() as backend:
        found = backend.stat(file_id, version_id)
        _save(session, backend, found, output, 0, found.size)


def _save(session: Session, backend: Backend, version: Version, output: str | None, start: int, stop: int) -> None:
    started = time.perf_counter()
    target = target_of(output, version)
    with replacing(target) as part:
        write_version(session, backend, part, version, start, stop)
    pace = pace_text(stop - start, time.perf_counter() - started)
    session.terminal.result(
        version_document(version, output=str(target), start=start, stop=stop),
        f"{one_line(str(target))}: {size_text(stop - start)} ({pace})",
    )


def ls(
    session: Session,
    prefix: Annotated[
        str, typer.Argument(help="Only files whose names start with this.", metavar="PREFIX", show_default=False)
    ] = "",
) -> None:
    """List files: size, time of the last change, id, name.

    Examples:
        taskworker ls
        taskworker ls photos/ --json | jq -r .[].file_id
    """
    with session.backend() as backend:
        count = session.terminal.listing(
            f"{'SIZE':>10}  {'CHANGED':19}  {'FILE':32}  NAME",
            (
                (
                    listed_document(head),
                    f"{size_text(head.size):>10}  {time_text(head.time_ms):19}  "
                    f"{head.file_id}  {visible(head.filename)}",
                )
                for head in backend.list_files(prefix)
            ),
        )
    if not count:
        session.terminal.note("no files" if not prefix else f"no file's name starts with '{visible(prefix)}'")


def log(
    session: Session,
    file: FileReference,
    limit: Annotated[int | None, typer.Option(help="Only the newest versions.", min=1, metavar="COUNT")] = None,
) -> None:
    """Show the versions of a file, newest first: id, time, size, note.

    Examples:
        taskworker log report.pdf
        taskworker log report.pdf --limit 3
    """
    with session.backend() as backend:
        head = resolve_file(backend, file)
        versions = backend.history(head.file_id)
        session.terminal.listing(
            f"{'VERSION':{SHORT_ID_LENGTH}}  {'TIME':19}  {'SIZE':>10}  NOTE",
            (
                (
                    version_document(version),
                    f"{version.version_id[:SHORT_ID_LENGTH]}  {time_text(version.time_ms):19}  "
                    f"{size_text(version.size):>10}  {visible(version.note)}".rstrip(),
                )
                for version in itertools.islice(versions, limit)
            ),
        )


def stat(session: Session, file: FileReference, version: VersionReference = None) -> None:
    """Show the details of a file, or of one of its versions.

    Examples:
        taskworker stat report.pdf
        taskworker stat report.pdf --version 3f9a21 --json
    """
    with session.backend() as backend:
        found = resolve_version(backend, file, version)
    facts = {
        "name": visible(found.filename),
        "file": found.file_id,
        "version": found.version_id,
        "parent": found.parent_id or "none, the first version",
        "owner": visible(found.user_id),
        "size": f"{size_text(found.size)} ({found.size:,} bytes)" if found.size >= 1024 else size_text(found.size),
        "chunks": f"{found.chunk_count:,} of {size_text(found.chunk_size)}",
        "profile": f"any {found.profile.k} of {found.profile.n} shards suffice",
        "time": time_text(found.time_ms),
        "sha256": found.sha256 or "",
        "note": visible(found.note),
    }
    session.terminal.result(
        version_document(found, chunk_count=found.chunk_count),
        *(f"{label:8} {fact}" for label, fact in facts.items() if fact),
        *(f"{'has':8} {_attribute_text(name, value)}" for name, value in found.attributes.items()),
    )


def _attribute_text(name: str, value: bytes) -> str:
    """An attribute as a line: its value, if that is a short text, otherwise how many bytes it has."""
    with contextlib.suppress(UnicodeDecodeError):
        if len(value) <= _ATTRIBUTE_SHOWN_MAX:
            return f"{visible(name)} = {visible(value.decode())}"
    return f"{visible(name)}, {plural(len(value), 'byte')}"


def revise(
    session: Session,
    file: FileReference,
    source: Annotated[
        str, typer.Argument(help="The new content; - is standard input.", metavar="FILE", show_default=False)
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Only if this version is still the newest; otherwise exit code 4.", metavar="VERSION"),
    ] = None,
    note: Note = "",
) -> None:
    """Make a local file the newest version of a stored one; only chunks that differ are sent.

    Examples:
        taskworker revise report.pdf draft7.pdf
        taskworker revise report.pdf draft7.pdf --base 3f9a21
    """
    with session.backend() as backend, _spooled(source) as path:
        before = resolve_version(backend, file, base)
        started = time.perf_counter()
        with session.terminal.progress(before.filename) as progress:
            version = backend.revise(before, path, note=note, progress=progress)
    name, short = visible(version.filename), version.version_id[:SHORT_ID_LENGTH]
    line = (
        f"{name}: version {short} ({pace_text(version.size, time.perf_counter() - started)})"
        if version.version_id != before.version_id
        else f"{name}: nothing differs from version {short}"
    )
    session.terminal.result(version_document(version), line)


@contextlib.contextmanager
def _spooled(source: str) -> Iterator[Path]:
    """A path to read from; standard input is first copied to a temporary file."""
    if source != STANDARD_STREAM:
        yield existing_file(source)
        return
    with tempfile.TemporaryDirectory(prefix="taskworker-") as directory:
        spool = Path(directory) / "stdin"
        with standard_input() as stdin, spool.open("wb", buffering=0) as file:
            copy_stream(stdin, file)
        yield spool
