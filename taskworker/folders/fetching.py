"""Writes a folder whose files are stored under names of their own to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage import FileNotFound, Version
from storage.errors import StorageError
from taskworker.folders.entries import Entry, Kind, parts_of
from taskworker.folders.ports import Files
from taskworker.folders.problems import Problem, Problems
from taskworker.folders.pushing import Progress, listing_of, prefix_of
from taskworker.folders.restoring import Target

_TOGETHER_BYTES_MAX = 1 << 20
"""Larger files are read one by one, in bounded memory."""
_PIECE_BYTES = 1 << 20
_PLAIN_MODE = 0o644
_NS_PER_MS = 1_000_000

LinkKey = tuple[int, int, int, int]


@dataclass(slots=True)
class FetchReport:
    """What was written to disk.

    Attributes:
        prefix: of the names of the files; ends with a slash.
        files: regular files.
        size: their bytes.
        others: directories, links and FIFOs.
        failed: files with a problem.
    """

    prefix: str
    files: int = 0
    size: int = 0
    others: int = 0
    failed: int = 0


def get_tree(
    files: Files,
    name: str,
    target: Path,
    *,
    privileged: bool = False,
    problem: Problem | None = None,
    progress: Progress | None = None,
) -> FetchReport:
    """Write all files whose names start with ``NAME/`` to a directory, with the modes, times and links last pushed.

    Files that are there already are replaced, and others left alone. Nothing outside of the directory is written.

    Args:
        files: where they are stored.
        name: the folder's name.
        target: the directory; it is made if it does not exist.
        privileged: whether to restore owners, set-user-ID bits and all extended attributes, which needs root.
        problem: told of each file that could not be restored. Default: FolderIncomplete is raised once all others are
            restored.
        progress: called as files are restored.

    Raises:
        InvalidArgument: the name is malformed.
        FileNotFound: no file's name starts with this.
        FolderDamaged: the folder's listing is damaged.
        FolderIncomplete: some files could not be restored, and ``problem`` was not given.
    """
    problems = Problems(problem)
    report = _Fetch(files, prefix_of(name), problems, progress).run(target, privileged=privileged)
    problems.raise_if_any("restored as they were")
    return report


@dataclass(slots=True)
class _Fetch:
    files: Files
    prefix: str
    problem: Problem
    progress: Progress | None
    report: FetchReport = field(init=False)
    _failed: set[bytes] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.report = FetchReport(self.prefix)

    def run(self, target: Path, *, privileged: bool) -> FetchReport:
        """Do it all."""
        entries = listing_of(self.files, self.prefix)
        heads = {head.filename[len(self.prefix) :].encode(): head for head in self.files.heads(self.prefix)}
        heads.pop(b"", None)
        if entries is None and not heads:
            raise FileNotFound(f"no file's name starts with {self.prefix[:80]!r}; `taskworker ls` lists yours")
        place = Target(target, self._told, privileged=privileged)
        try:
            self._restore(place, entries or {}, heads)
        finally:
            place.close()
        self.report.failed = len(self._failed)
        return self.report

    def _told(self, path: bytes, error: Exception) -> None:
        self._failed.add(path)
        self.problem(path, error)

    def _restore(self, place: Target, entries: dict[bytes, Entry], heads: dict[bytes, Version]) -> None:
        for path, entry in entries.items():
            if entry.kind is Kind.DIRECTORY:
                self._other(place, path, entry)
        others = {path for path, entry in entries.items() if entry.kind is not Kind.FILE}
        self._restore_files(place, entries, {path: head for path, head in heads.items() if path not in others})
        for path in sorted(others):  # after all files, though none would be written through a link
            if entries[path].kind is not Kind.DIRECTORY:
                self._other(place, path, entries[path])
        place.finish()

    def _other(self, place: Target, path: bytes, entry: Entry) -> None:
        try:
            parts = parts_of(path) if path else ()
            if entry.kind is Kind.DIRECTORY:
                place.add_directory(parts, entry)
            else:
                place.add_other(parts, entry)
        except (OSError, OverflowError, StorageError) as error:
            self._told(path, error)
            return
        self.report.others += 1

    def _restore_files(self, place: Target, entries: dict[bytes, Entry], heads: dict[bytes, Version]) -> None:
        first: dict[LinkKey, tuple[bytes, ...]] = {}
        wanted: dict[str, tuple[bytes, Entry]] = {}
        for path, head in heads.items():
            entry = _entry_of(path, head, entries)
            key = _link_key(entry)
            if key is None or key not in first:
                wanted[head.file_id] = path, entry
                if key is not None:
                    first[key] = tuple(path.split(b"/"))
        for outcome in self.files.get_many(list(wanted), bytes_max=_TOGETHER_BYTES_MAX):
            path, entry = wanted[outcome.file]
            if outcome.version is None:
                self._told(path, outcome.error or StorageError("it was not read"))
            else:
                self._file(place, path, entry, outcome.version, outcome.data)
        for path, head in heads.items():
            if head.file_id not in wanted:
                self._link(place, path, _entry_of(path, head, entries), head, first)

    def _link(
        self,
        place: Target,
        path: bytes,
        entry: Entry,
        head: Version,
        first: dict[LinkKey, tuple[bytes, ...]],
    ) -> None:
        """Restore another name of a file; as a file of its own if the first one could not be restored."""
        key = _link_key(entry)
        assert key is not None, "only links are left out of what is read"
        if b"/".join(first[key]) in self._failed:
            self._file(place, path, entry, head, None)
            return
        try:
            place.add_link(parts_of(path), first[key])
        except (OSError, StorageError) as error:
            self._told(path, error)
            return
        self._count(head.size)

    def _file(self, place: Target, path: bytes, entry: Entry, version: Version, data: bytes | None) -> None:
        try:
            place.add_file(parts_of(path), entry, self._pieces(version) if data is None else (data,))
        except (OSError, OverflowError, StorageError) as error:
            self._told(path, error)
            return
        self._count(version.size)

    def _pieces(self, version: Version) -> Iterator[bytes]:
        with self.files.opened(version) as reader:
            while piece := reader.read(_PIECE_BYTES):
                yield piece

    def _count(self, size: int) -> None:
        self.report.files += 1
        self.report.size += size
        if self.progress is not None:
            self.progress(self.report.files, self.report.size)


def _entry_of(path: bytes, head: Version, entries: dict[bytes, Entry]) -> Entry:
    """What is known of a file: of one that was stored since the folder was pushed, its mode; otherwise a usual one."""
    entry = entries.get(path)
    if entry is not None and entry.content == (bytes.fromhex(head.version_id),):
        return entry
    mtime_ns = head.time_ms * _NS_PER_MS
    mode = entry.mode if entry is not None else _PLAIN_MODE
    return Entry(path, Kind.FILE, mode, os.geteuid(), os.getegid(), mtime_ns, 0, 0, head.size)


def _link_key(entry: Entry) -> LinkKey | None:
    """What all names of one file have in common; None if it has one name only."""
    return (entry.inode, entry.ctime_ns, entry.mtime_ns, entry.size) if entry.hard_links > 1 else None
