"""Writes snapshots, or parts of them, to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage import FileNotFound
from storage.errors import StorageError
from taskworker.folders.entries import Entry, Kind, parts_of
from taskworker.folders.problems import Problem, text_of
from taskworker.folders.restoring import Target
from taskworker.folders.scanning import DEPTH_MAX
from taskworker.folders.snapshots.directories import read_directory
from taskworker.folders.snapshots.reading_ahead import Item, ReadAhead
from taskworker.folders.snapshots.records import Snapshot
from taskworker.folders.snapshots.repository import PACK_BYTES_MAX, Repository

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of their bytes."""

_AHEAD_BYTES_MAX = 16 << 20

LinkKey = tuple[int, int, tuple[bytes, ...]]
Parts = tuple[bytes, ...]


@dataclass(slots=True)
class RestoreReport:
    """What was written to disk.

    Attributes:
        files: regular files.
        size: their bytes.
        others: directories, links and FIFOs.
        failed: files with a problem.
    """

    files: int = 0
    size: int = 0
    others: int = 0
    failed: int = 0


def restore(
    repository: Repository,
    snapshot: Snapshot,
    target: Path,
    *,
    path: bytes = b"",
    privileged: bool = False,
    problem: Problem,
    progress: Progress | None = None,
) -> RestoreReport:
    """Write a snapshot, or what is at a path in it, to a directory.

    Files that are there already are replaced, and others left alone. Nothing outside of the directory is written.

    Args:
        repository: the folder.
        snapshot: one of its snapshots.
        target: the directory; it is made if it does not exist.
        path: only this: what is in a directory goes into ``target``, and a file gets its own name there.
        privileged: whether to restore owners, set-user-ID bits and all extended attributes, which needs root.
        problem: told of each file that could not be restored.
        progress: called as files are restored.

    Raises:
        FileNotFound: the snapshot has no such path.
        FolderDamaged: the snapshot's directories cannot be read up to there.
        OSError: the directory cannot be made.
    """
    entry = entry_at(repository, snapshot, path)
    return _Restoring(repository, problem, progress).run(entry, target, privileged=privileged)


def entry_at(repository: Repository, snapshot: Snapshot, path: bytes) -> Entry:
    """What is at a path in a snapshot.

    Raises:
        FileNotFound: nothing is.
        FolderDamaged: a directory on the way cannot be read.
    """
    entry = snapshot.root
    for name in parts_of(path) if path else ():
        inside = read_directory(entry.content[0], repository.load) if entry.kind is Kind.DIRECTORY else iter(())
        found = next((each for each in inside if each.name == name), None)
        if found is None:
            raise FileNotFound(f"snapshot {snapshot.id[:12]} has no {text_of(path)[:200]!r}")
        entry = found
    return entry


def walk(repository: Repository, entry: Entry, problem: Problem, path: Parts = ()) -> Iterator[tuple[Parts, Entry]]:
    """Everything below an entry with its path; a directory comes before what is in it.

    Args:
        repository: the folder.
        entry: a directory.
        problem: told of directories that cannot be read, or are too deep.
        path: of the entry.
    """
    if len(path) >= DEPTH_MAX:
        problem(b"/".join(path), StorageError(f"more than {DEPTH_MAX} directories in each other are not restored"))
        return
    inside = read_directory(entry.content[0], repository.load)
    while True:
        try:
            each = next(inside, None)
        except StorageError as error:
            problem(b"/".join(path), error)
            return
        if each is None:
            return
        inner = (*path, each.name)
        yield inner, each
        if each.kind is Kind.DIRECTORY:
            yield from walk(repository, each, problem, inner)


@dataclass(slots=True)
class _Restoring:
    repository: Repository
    problem: Problem
    progress: Progress | None
    report: RestoreReport = field(default_factory=RestoreReport, init=False)
    _failed: set[bytes] = field(default_factory=set, init=False)
    _first: dict[LinkKey, Parts] = field(default_factory=dict, init=False)

    def run(self, entry: Entry, target: Path, *, privileged: bool) -> RestoreReport:
        """Do it all."""
        place = Target(target, self._told, privileged=privileged)
        try:
            if entry.kind is Kind.DIRECTORY:
                place.add_directory((), entry)
                with ReadAhead(self._read(entry), _AHEAD_BYTES_MAX) as items:
                    for item in items:
                        if item.entry is not None:
                            self._put(place, item.entry, item)
                        elif item.error is not None:
                            self._told(b"/".join(item.path), item.error)
            else:
                self._put(place, entry, Item((entry.name,), entry))
            place.finish()
        finally:
            place.close()
        self.report.failed = len(self._failed)
        return self.report

    def _told(self, path: bytes, error: Exception) -> None:
        self._failed.add(path)
        self.problem(path, error)

    def _read(self, top: Entry) -> Iterator[Item]:
        """All that is below a directory, with the content of files that fit into memory."""
        told: list[Item] = []

        def problem(path: bytes, error: Exception) -> None:
            told.append(Item(tuple(path.split(b"/")), None, error=error))

        for parts, entry in walk(self.repository, top, problem):
            yield from told
            told.clear()
            try:
                yield Item(parts, entry, self._small(entry))
            except (OSError, StorageError) as error:
                yield Item(parts, entry, error=error)
        yield from told

    def _small(self, entry: Entry) -> bytes | None:
        """The content of a file, if that is one blob that fits into memory."""
        if entry.kind is not Kind.FILE or len(entry.content) != 1:
            return None
        place = self.repository.place_of(entry.content[0])
        if place is None or place.length > PACK_BYTES_MAX:
            return None
        return b"".join(self.repository.content(entry.content[0]))

    def _put(self, place: Target, entry: Entry, item: Item) -> None:
        parts = item.path
        try:
            if item.error is not None:
                raise item.error
            if entry.kind is Kind.DIRECTORY:
                place.add_directory(parts, entry)
            elif entry.kind is Kind.FILE:
                self._put_file(place, entry, item)
            else:
                place.add_other(parts, entry)
        except (OSError, OverflowError, ValueError, StorageError) as error:
            self._told(b"/".join(parts), error)
            return
        if entry.kind is not Kind.FILE:
            self.report.others += 1
            return
        self.report.files += 1
        self.report.size += entry.size
        if self.progress is not None:
            self.progress(self.report.files, self.report.size)

    def _put_file(self, place: Target, entry: Entry, item: Item) -> None:
        parts = item.path
        if entry.hard_links > 1:
            key = (entry.inode, entry.mtime_ns, entry.content)
            first = self._first.get(key)
            if first is not None:
                place.add_link(parts, first)
                return
        place.add_file(parts, entry, self._content(entry) if item.data is None else (item.data,))
        if entry.hard_links > 1:
            self._first[key] = parts

    def _content(self, entry: Entry) -> Iterator[bytes]:
        for blob in entry.content:
            yield from self.repository.content(blob)
