"""Takes snapshots. What is unchanged since the last one is neither read nor stored again."""

from __future__ import annotations

import operator
import os
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from storage.clocks import wall_ms
from storage.errors import StorageError
from storage.limits import check_note
from taskworker.folders.contents import CHANGED, read_small, settled
from taskworker.folders.entries import Entry, Kind
from taskworker.folders.ports import Content, Files
from taskworker.folders.problems import ChangedWhileRead, FolderDamaged, Problem, Problems, text_of
from taskworker.folders.rules import Exclusions
from taskworker.folders.scanning import Found, Scan, Seen
from taskworker.folders.snapshots.directories import read_directory, store_directory
from taskworker.folders.snapshots.directory_cache import DIRECTORIES_MAX, DirectoryCache
from taskworker.folders.snapshots.packing import PACKED_BYTES_MAX, Packer
from taskworker.folders.snapshots.records import Snapshot
from taskworker.folders.snapshots.repository import Repository, add_snapshot

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of their bytes."""

_DIRECTORIES_KEPT = 512
_TEXT_MAX = 4096
_name = operator.attrgetter("name")


@dataclass(slots=True)
class TakeReport:
    """What a snapshot took.

    Attributes:
        folder: the folder's name.
        snapshot: what was stored; None until it is.
        files: regular files.
        size: their bytes.
        read: files that were read, as they were new or changed.
        added: bytes that were stored, as their content was new.
        others: directories, links and FIFOs.
        failed: files with a problem.
        skipped: sockets and devices, which are never taken.
    """

    folder: str
    snapshot: Snapshot | None = None
    files: int = 0
    size: int = 0
    read: int = 0
    added: int = 0
    others: int = 0
    failed: int = 0
    skipped: int = 0


def take_snapshot(
    files: Files,
    root: Path,
    folder: str,
    *,
    exclusions: Exclusions | None = None,
    xattrs: bool = False,
    cache: Path | None = None,
    note: str = "",
    problem: Problem | None = None,
    progress: Progress | None = None,
    now_ms: Callable[[], int] = wall_ms,
) -> TakeReport:
    """Store a directory tree as it is now. What it has in common with earlier snapshots is stored once.

    Args:
        files: where to store it.
        root: the directory.
        folder: the folder's name, whose snapshots share what is equal.
        exclusions: what to leave out.
        xattrs: whether to keep extended attributes.
        cache: a file of this machine in which to note what directories contained, so that the next snapshot with the
            same options takes less time. It may be absent, and may be removed at any time.
        note: free text.
        problem: told of each file that could not be taken, or was changed while it was read. Default:
            FolderIncomplete is raised once the snapshot is stored without them.
        progress: called as files are taken.
        now_ms: the clock, ms since 1970.

    Raises:
        InvalidArgument: the folder's name, or a pattern, is malformed.
        ConflictError: snapshots were forgotten meanwhile; nothing is visible, take it again.
        FolderDamaged: what is stored of the folder cannot be read.
        FolderIncomplete: some files could not be taken as they are, and ``problem`` was not given.
        OSError: the directory cannot be read.
        StorageError: something cannot be stored; nothing is visible.
    """
    check_note(note)
    repository = Repository(files, folder, create=True)
    problems = Problems(problem)
    exclusions = exclusions or Exclusions()
    scan = Scan(root, exclusions, problems, xattrs)
    directories = None if cache is None else DirectoryCache(cache, exclusions, xattrs=xattrs)
    report = _Taking(repository, scan, directories, note, progress, now_ms, now_ms()).run()
    problems.raise_if_any("taken as they are")
    return report


@dataclass(slots=True)
class _Large:
    """A large file that is being stored."""

    path: bytes
    digest: bytes | None = None
    size: int = 0
    changed: bool = False


@dataclass(slots=True)
class _Taking:
    repository: Repository
    scan: Scan
    cache: DirectoryCache | None
    note: str
    progress: Progress | None
    now_ms: Callable[[], int]
    time_ms: int
    report: TakeReport = field(init=False)
    _packer: Packer = field(init=False)
    _former: Former = field(init=False)
    _levels: list[list[Entry]] = field(default_factory=lambda: [[]], init=False)
    _larges: dict[str, _Large] = field(default_factory=dict, init=False)
    _linked: dict[tuple[int, int], Entry] = field(default_factory=dict, init=False)
    _failed: set[bytes] = field(default_factory=set, init=False)
    _seen: dict[bytes, Seen] | None = field(default=None, init=False)
    _unsettled: set[bytes] = field(default_factory=set, init=False)
    _root: Entry | None = field(default=None, init=False)
    _is_same: bool = field(default=False, init=False)
    _problem: Problem = field(init=False)

    def __post_init__(self) -> None:
        self.report = TakeReport(self.repository.folder)
        self._packer = Packer(self.repository)
        snapshots = self.repository.record.snapshots
        seen: Mapping[bytes, Seen] = {}
        if self.cache is not None:
            self._seen = {}
            self.scan.seen = seen = self.cache.load({snapshot.directory for snapshot in snapshots})
            self.scan.same = self._same
            if seen:  # what it names is stored as long as these are
                self.repository.require_indexes()
        self._former = Former(self.repository, snapshots[-1] if snapshots else None, seen)
        self.scan.former = self._former.inside
        self._problem, self.scan.problem = self.scan.problem, self._told

    def run(self) -> TakeReport:
        """Do it all."""
        for outcome in self.repository.files.push_many(self._to_send()):
            large = self._larges.pop(outcome.filename, None)
            if outcome.version is not None:
                self._packer.confirm(outcome.filename, large=large is not None)
                self._packer.checkpoint(self.now_ms())
            elif large is not None and large.digest is None:  # it could not be read: it is not in its directory
                self._told(large.path, outcome.error or StorageError("it was not stored"))
            else:
                raise outcome.error or StorageError("a part of the snapshot was not stored")
        assert self._root is not None, "the root comes last"
        report, packer = self.report, self._packer
        report.added, report.failed = packer.added, len(self._failed)
        report.skipped += self.scan.skipped
        report.snapshot = Snapshot(
            self.time_ms,
            self._root,
            text_of(os.fsencode(socket.gethostname()))[:_TEXT_MAX],
            text_of(os.fsencode(self.scan.root.absolute()))[:_TEXT_MAX],
            report.files,
            report.size,
            report.added,
            report.failed,
            self.note,
        )
        add_snapshot(self.repository, report.snapshot, packer.finish())
        if self.cache is not None and self._seen is not None and not self._is_same:
            self.cache.save(self._root.content[0], self._seen)
        return report

    def _told(self, path: bytes, error: Exception) -> None:
        self._failed.add(path)
        self._look_again(path)
        self._problem(path, error)

    def _look_again(self, path: bytes) -> None:
        """Look at a file or directory again the next time, though nothing shows that it has changed."""
        self._unsettled |= {path, path.rpartition(b"/")[0]}

    # -- entries ---------------------------------------------------------------------------------

    def _to_send(self) -> Iterator[tuple[str, Content]]:
        for found in self.scan.found():
            kind = found.entry.kind
            if found.known and kind is Kind.FILE:
                self._taken(found, found.entry)
                continue
            if kind is Kind.DIRECTORY:
                self._add_directory(found, found.entry if found.known else self._stored(found))
            elif kind is Kind.FILE:
                yield from self._file(found)
            else:
                self.report.others += 1
                self._add(found, found.entry)
            yield from self._packer.waiting()
        self._packer.flush()
        yield from self._packer.waiting()

    def _add(self, found: Found, entry: Entry) -> None:
        """Add an entry to its directory."""
        while len(self._levels) <= found.depth:
            self._levels.append([])
        self._levels[found.depth].append(entry)

    def _add_directory(self, found: Found, entry: Entry) -> None:
        if not found.path:
            self._root, self._is_same = entry, found.known
            return
        self.report.others += 1
        self._add(found, entry)

    def _stored(self, found: Found) -> Entry:
        """Store a directory, and return its entry. All that is in it has been found before."""
        inside = found.depth + 1
        entries: list[Entry] = []
        if inside < len(self._levels):
            entries, self._levels[inside] = self._levels[inside], []
        entries.sort(key=_name)
        former = self._former.read_before(found.path)
        if former is not None and entries == former[0]:
            blob = former[1]
        else:
            blob = store_directory(entries, self._packer.add_directory)
        self._note(found, entries, blob)
        return msgspec.structs.replace(found.entry, content=(blob,))

    def _note(self, found: Found, entries: Sequence[Entry], blob: bytes) -> None:
        """Note a directory, to know it again the next time."""
        if self._seen is None:
            return
        if len(self._seen) >= DIRECTORIES_MAX:
            self._seen = None
            return
        sizes = [entry.size for entry in entries if entry.kind is Kind.FILE]
        self._seen[found.path] = Seen(
            b"" if found.path in self._unsettled else found.look.fingerprint,
            found.look.rules,
            tuple(entry.name for entry in entries if entry.kind is Kind.DIRECTORY),
            blob,
            len(sizes),
            sum(sizes),
            len(entries) - len(sizes),
            found.look.skipped,
        )

    def _same(self, path: bytes, seen: Seen) -> None:
        """Count what is in a directory that is unchanged with all that is below it."""
        report = self.report
        report.files += seen.files
        report.size += seen.size
        report.others += seen.others
        report.skipped += seen.skipped
        if self._seen is not None:
            self._seen[path] = seen
        if self.progress is not None:
            self.progress(report.files, report.size)

    def _file(self, found: Found) -> Iterator[tuple[str, Content]]:
        known = self._linked.get((found.device, found.entry.inode)) if found.entry.hard_links > 1 else None
        if known is not None and found.entry.same_on_disk(known):  # it was read under another name
            self._taken(found, msgspec.structs.replace(found.entry, content=known.content, size=known.size))
            return
        if not settled(found.entry):
            self._look_again(found.path)
        if found.entry.size > PACKED_BYTES_MAX:
            yield from self._large(found)
            return
        try:
            data, changed = read_small(found)
        except (OSError, StorageError) as error:
            self._told(found.path, error)
            return
        if changed is not None:
            self._told(found.path, changed)
        content = (self._packer.add_content(data),) if data else ()
        self.report.read += 1
        self._taken(found, self._with_content(found, content, len(data)))

    def _large(self, found: Found) -> Iterator[tuple[str, Content]]:
        large = _Large(found.path)

        def ended(size: int, digest: bytes, changed: bool) -> None:
            large.size, large.digest, large.changed = size, digest, changed

        try:
            name, content = self._packer.add_large(found, ended)
        except (OSError, StorageError) as error:
            self._told(found.path, error)
            return
        self._larges[name] = large
        yield name, content
        if large.digest is None:  # reading failed, which its outcome says
            self._look_again(found.path)
            return
        if large.changed:
            self._told(found.path, ChangedWhileRead(CHANGED))
        self.report.read += 1
        self._taken(found, self._with_content(found, (large.digest,), large.size))

    def _taken(self, found: Found, entry: Entry) -> None:
        self._add(found, entry)
        if found.entry.hard_links > 1:
            self._linked[found.device, found.entry.inode] = entry
        self.report.files += 1
        self.report.size += entry.size
        if self.progress is not None:
            self.progress(self.report.files, self.report.size)

    def _with_content(self, found: Found, content: tuple[bytes, ...], size: int) -> Entry:
        """An entry with what was read; of what may have changed meanwhile, such that it is read again the next time."""
        ctime_ns = 0 if found.path in self._unsettled else found.entry.ctime_ns
        return msgspec.structs.replace(found.entry, content=content, size=size, ctime_ns=ctime_ns)


class Former:
    """The entries of an earlier snapshot; directories are read as they are asked for.

    What cannot be read counts as not there, so that the files are read and stored anew.

    Args:
        repository: the folder.
        snapshot: the snapshot; None: there is none.
        seen: directories of which it is known without reading the snapshot.
    """

    def __init__(self, repository: Repository, snapshot: Snapshot | None, seen: Mapping[bytes, Seen]) -> None:
        self._repository = repository
        self._root = None if snapshot is None else snapshot.directory
        self._seen = seen
        self._directories: OrderedDict[bytes, tuple[dict[bytes, Entry], bytes | None]] = OrderedDict()

    def inside(self, path: bytes) -> Mapping[bytes, Entry]:
        """What is in a directory, by name; nothing if it was none."""
        return self._read(path)[0]

    def read_before(self, path: bytes) -> tuple[list[Entry], bytes] | None:
        """What is in a directory that was read lately, and the id of that; None if that is unknown."""
        entries, blob = self._directories.get(path, ({}, None))
        return None if blob is None else (list(entries.values()), blob)

    def _read(self, path: bytes) -> tuple[dict[bytes, Entry], bytes | None]:
        found = self._directories.get(path)
        if found is None:
            found = self._directories[path] = self._load(self._id_of(path))
            if len(self._directories) > _DIRECTORIES_KEPT:
                self._directories.popitem(last=False)
        else:
            self._directories.move_to_end(path)
        return found

    def _id_of(self, path: bytes) -> bytes | None:
        seen = self._seen.get(path)
        if seen is not None:
            return seen.content
        if not path:
            return self._root
        directory, _, name = path.rpartition(b"/")
        entry = self._read(directory)[0].get(name)
        return None if entry is None or entry.kind is not Kind.DIRECTORY else entry.content[0]

    def _load(self, blob: bytes | None) -> tuple[dict[bytes, Entry], bytes | None]:
        """What is in a directory, and its id again if all of that is stored."""
        if blob is None:
            return {}, None
        try:
            entries = {each.name: each for each in read_directory(blob, self._repository.load)}
        except FolderDamaged:
            return {}, None
        if self._repository.has_all([each for entry in entries.values() for each in entry.content]):
            return entries, blob
        has = self._repository.has
        return {name: each for name, each in entries.items() if all(map(has, each.content))}, None
