"""Commands on many files: one call for all of them, and an outcome for each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskworker.cli.documents import version_document
from taskworker.cli.exits import ExitCode, Failure, exit_code_of
from taskworker.cli.outputs import target_of, write_version
from taskworker.cli.references import no_such_file
from taskworker.cli.session import Session
from taskworker.cli.text import one_line, pace_text, plural, size_text, visible

if TYPE_CHECKING:
    from storage import ErasureProfile, GetOutcome, Version
    from taskworker.cli.backend import Backend

SHORT_ID_LENGTH = 12
_SMALL_BYTES_MAX = 1 << 20
"""Larger files are fetched one by one, in bounded memory."""


class _Failures:
    """The files of a command that failed. They are shown at once, and decide the exit code at the end."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._count = 0
        self._code = ExitCode.FAILED

    def add(self, file: str, error: Exception) -> None:
        """Show why a file failed."""
        if not self._count:
            self._code = exit_code_of(error)
        self._count += 1
        self._session.terminal.error(str(error) if isinstance(error, Failure) else f"{visible(file)}: {error}")

    def raise_any(self, total: int, what: str) -> None:
        """Fail if any file has failed.

        Args:
            total: how many files there were.
            what: what was not done to them, such as "stored".
        """
        if self._count:
            raise Failure(f"{self._count:,} of {plural(total, 'file')} were not {what}", self._code)


def push_files(
    session: Session,
    backend: Backend,
    sources: Sequence[tuple[str, Path]],
    profile: ErasureProfile | None,
    note: str,
    stored: list[dict[str, Any]],
) -> None:
    """Store files in one call. The documents of those that are stored are added to ``stored``.

    Raises:
        Failure: some could not be stored.
    """
    failures = _Failures(session)
    started, done = time.perf_counter(), 0
    with session.terminal.progress(plural(len(sources), "file")) as progress:
        total = sum(path.stat().st_size for _, path in sources)
        for outcome in backend.push_many(sources, profile=profile, note=note):
            version = outcome.version
            if version is None:
                failures.add(outcome.filename, outcome.error or Failure("no outcome"))
                continue
            done += version.size
            stored.append(version_document(version, unchanged=version.unchanged))
            if progress is not None:
                progress(done, total)
            if not session.terminal.as_json:
                session.terminal.lines(
                    f"{visible(version.filename)}: {size_text(version.size)} "
                    f"{'unchanged' if version.unchanged else 'stored'}",
                    f"  file {version.file_id}  version {version.version_id[:SHORT_ID_LENGTH]}",
                )
    if not session.terminal.as_json:
        pace = pace_text(done, time.perf_counter() - started)
        session.terminal.lines(f"{plural(len(stored), 'file')}: {size_text(done)} stored ({pace})")
    failures.raise_any(len(sources), "stored")


def outcomes(backend: Backend, files: Sequence[str], bytes_max: int) -> Iterator[GetOutcome]:
    """The outcome of each file, found by its id, otherwise by its name; those with the form of an id come first."""
    from storage import FileNotFound
    from taskworker.client.references import may_be_id

    names = [file for file in files if not may_be_id(file)]
    ids = [file for file in files if may_be_id(file)]
    for outcome in backend.get_many(ids, bytes_max=bytes_max):
        if isinstance(outcome.error, FileNotFound):
            names.append(outcome.file)
        else:
            yield outcome
    yield from backend.get_many(names, by_name=True, bytes_max=bytes_max)


def heads_of(session: Session, backend: Backend, files: Sequence[str]) -> dict[str, Version]:
    """The heads of files, by the ids or names that were given, in order.

    Raises:
        Failure: there is no such file.
        StorageError: it cannot be looked up.
    """
    from storage import FileNotFound

    found: dict[str, Version] = {}
    with session.terminal.progress("look up", unit="objects") as progress:
        for done, outcome in enumerate(outcomes(backend, files, 0), start=1):
            if isinstance(outcome.error, FileNotFound):
                raise no_such_file(backend, outcome.file)
            if outcome.version is None:
                raise outcome.error or Failure("no outcome")
            found[outcome.file] = outcome.version
            if progress is not None:
                progress(done, len(files))
    return {file: found[file] for file in files}


def namesakes(backend: Backend, heads: dict[str, Version]) -> list[tuple[Version, Version]]:
    """Pairs of a file that was found by its id, and another one whose name is that id."""
    by_id = [reference for reference, head in heads.items() if reference == head.file_id]
    found = backend.get_many(by_id, by_name=True, bytes_max=0)
    return [
        (heads[outcome.file], outcome.version)
        for outcome in found
        if outcome.version is not None and outcome.version.file_id != outcome.file
    ]


def delete_files(session: Session, backend: Backend, heads: Sequence[Version]) -> None:
    """Delete files.

    Raises:
        Failure: some could not be deleted.
    """
    failures = _Failures(session)
    with session.terminal.progress("delete", unit="objects") as progress:
        for outcome in backend.delete_many([head.file_id for head in heads]):
            if outcome.error is not None:
                failures.add(heads[outcome.position].filename, outcome.error)
            if progress is not None:
                progress(outcome.position + 1, len(heads))
    failures.raise_any(len(heads), "deleted")


def get_files(session: Session, backend: Backend, files: Sequence[str], output: str | None) -> None:
    """Fetch files into a directory.

    Raises:
        Failure: some could not be fetched.
    """
    from storage import FileNotFound
    from taskworker.client.local_files import replacing, write_all

    failures = _Failures(session)
    saved: list[dict[str, Any]] = []
    targets: set[Path] = set()
    started, done = time.perf_counter(), 0
    try:
        for outcome in outcomes(backend, files, _SMALL_BYTES_MAX):
            version = outcome.version
            try:
                if isinstance(outcome.error, FileNotFound):
                    raise no_such_file(backend, outcome.file)
                if version is None or outcome.error is not None:
                    raise outcome.error or Failure("no outcome")
                target = target_of(output, version)
                if target in targets:
                    raise Failure(f"{one_line(str(target))} has been written already; get the files one by one with -o")
                with replacing(target) as part:
                    if outcome.data is not None:
                        write_all(part, outcome.data)
                    else:
                        write_version(session, backend, part, version, 0, version.size)
            except Exception as error:
                failures.add(outcome.file, error)
                continue
            targets.add(target)
            done += version.size
            saved.append(version_document(version, output=str(target), start=0, stop=version.size))
            if not session.terminal.as_json:
                session.terminal.lines(f"{one_line(str(target))}: {size_text(version.size)}")
    finally:
        if session.terminal.as_json:
            session.terminal.document(saved)
    if not session.terminal.as_json:
        pace = pace_text(done, time.perf_counter() - started)
        session.terminal.lines(f"{plural(len(saved), 'file')}: {size_text(done)} fetched ({pace})")
    failures.raise_any(len(files), "fetched")
