"""Stores each file of a tree under a name of its own, and beside them what else makes up the tree."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from storage import Version
from storage.errors import InvalidArgument, StorageError
from storage.limits import check_filename
from taskworker.folders.contents import CHANGED, SMALL_BYTES_MAX, LargeContent, read_small, settled
from taskworker.folders.entries import Entry, Kind, decode_listing, encode_listing
from taskworker.folders.ports import Content, Files
from taskworker.folders.problems import ChangedWhileRead, FolderDamaged, Problem, Problems, Unstorable
from taskworker.folders.rules import Exclusions
from taskworker.folders.scanning import Found, Scan

Progress = Callable[[int, int], None]
"""Called with the number of files that are done, and of their bytes."""


@dataclass(slots=True)
class PushReport:
    """What a push of a tree did.

    Attributes:
        prefix: of the names of its files; ends with a slash.
        files: regular files of the tree that are stored now.
        size: their bytes.
        stored: how many of them were sent.
        stored_size: their bytes.
        others: directories, links and FIFOs.
        deleted: files that were deleted, as they are not in the tree any more.
        failed: files with a problem.
        skipped: sockets and devices, which are never stored.
    """

    prefix: str
    files: int = 0
    size: int = 0
    stored: int = 0
    stored_size: int = 0
    others: int = 0
    deleted: int = 0
    failed: int = 0
    skipped: int = 0


def folder_name(directory: Path) -> str:
    """The name that a directory's folder has unless it is given another one: the directory's own.

    Raises:
        InvalidArgument: it has none, or it is not UTF-8.
    """
    own = directory.resolve().name
    if not own:
        raise InvalidArgument("the root directory has no name: give the folder one")
    try:
        own.encode()
    except UnicodeEncodeError:
        raise InvalidArgument("the directory's name is not UTF-8: give the folder another one") from None
    return own


def prefix_of(name: str) -> str:
    """The prefix of the names of a folder's files, which is also the name of its listing.

    Raises:
        InvalidArgument: this is no name of a folder.
    """
    prefix = name.rstrip("/") + "/"
    if prefix == "/":
        raise InvalidArgument("the folder's name is empty; give it one with --name")
    check_filename(prefix)
    return prefix


def listing_of(files: Files, prefix: str) -> dict[bytes, Entry] | None:
    """The entries of a folder by path; None if there is no listing, as other programs stored its files.

    Raises:
        FolderDamaged: there is something else under the listing's name.
    """
    found = files.find(prefix)
    if found is None or not found.size:
        return None
    return {entry.name: entry for entry in decode_listing(files.read(found, 0, found.size))}


def push_tree(
    files: Files,
    root: Path,
    name: str,
    *,
    exclusions: Exclusions | None = None,
    xattrs: bool = False,
    delete: bool = False,
    problem: Problem | None = None,
    progress: Progress | None = None,
) -> PushReport:
    """Store a directory tree: the file ``a/b`` under the name ``NAME/a/b``.

    Modes, times, links and empty directories are kept in a file named ``NAME/``. Files that are unchanged since the
    last push, by size, times and inode, are not read again.

    Args:
        files: where to store it.
        root: the directory.
        name: the folder's name.
        exclusions: what to leave out.
        xattrs: whether to keep extended attributes.
        delete: whether to delete files of the folder that are not in the tree.
        problem: told of each file that could not be stored, or was changed while it was read. Default:
            FolderIncomplete is raised once all others are stored.
        progress: called as files are stored.

    Raises:
        InvalidArgument: the name, or a pattern, is malformed.
        FolderIncomplete: some files could not be stored as they are, and ``problem`` was not given.
        OSError: the directory cannot be read.
        StorageError: nothing can be stored at all.
    """
    problems = Problems(problem)
    push = _Push(files, root, prefix_of(name), exclusions or Exclusions(), xattrs, problems, progress)
    report = push.run(delete=delete)
    problems.raise_if_any("stored as they are")
    return report


@dataclass(slots=True)
class _Sent:
    """A file on its way."""

    path: bytes
    entry: Entry
    changed: Exception | None = None


@dataclass(slots=True)
class _Push:
    files: Files
    root: Path
    prefix: str
    exclusions: Exclusions
    xattrs: bool
    problem: Problem
    progress: Progress | None
    report: PushReport = field(init=False)
    _former: dict[bytes, Entry] = field(init=False)
    _heads: dict[bytes, Version] = field(init=False)
    _entries: list[Entry] = field(default_factory=list, init=False)
    _on_way: deque[_Sent] = field(default_factory=deque, init=False)
    _failed: set[bytes] = field(default_factory=set, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self.report = PushReport(self.prefix)

    def run(self, *, delete: bool) -> PushReport:
        """Do it all."""
        try:
            self._former = listing_of(self.files, self.prefix) or {}
        except FolderDamaged as error:
            raise FolderDamaged(
                f"{error}; if '{self.prefix}' is not a folder that was pushed, delete that file or give another name"
            ) from None
        self._heads = {}
        if self._former or delete:
            start = len(self.prefix)
            heads = self.files.heads(self.prefix)
            self._heads = {head.filename[start:].encode(): head for head in heads if len(head.filename) > start}
        scan = Scan(self.root, self.exclusions, self._told, self.xattrs)
        for outcome in self.files.push_many(self._to_send(scan)):
            sent = self._on_way.popleft()
            if outcome.version is None:
                self._told(sent.path, outcome.error or StorageError("it was not stored"))
                continue
            if sent.changed is not None:
                self._told(sent.path, sent.changed)
            self.report.stored += 1
            self.report.stored_size += outcome.version.size
            self._done(sent.path, sent.entry, outcome.version.version_id, outcome.version.size)
        self.report.skipped = scan.skipped
        self.files.push(self.prefix, encode_listing([*self._entries, *self._kept()]))
        if delete:
            self._delete()
        self.report.failed = len(self._failed)
        return self.report

    def _told(self, path: bytes, error: Exception) -> None:
        with self._lock:  # files may be taken in one thread, and outcomes come in another
            self._failed.add(path)
            self.problem(path, error)

    def _done(self, path: bytes, entry: Entry, version_id: str, size: int) -> None:
        content = (bytes.fromhex(version_id),)
        stored = msgspec.structs.replace(entry, name=path, content=content, size=size)
        with self._lock:
            self.report.files += 1
            self.report.size += size
            self._entries.append(stored)
            if self.progress is not None:
                self.progress(self.report.files, self.report.size)

    def _to_send(self, scan: Scan) -> Iterator[tuple[str, Content]]:
        for found in scan.found():
            if found.entry.kind is not Kind.FILE:
                self.report.others += 1
                self._entries.append(msgspec.structs.replace(found.entry, name=found.path))
                continue
            unchanged = self._unchanged(found)
            if unchanged is not None:
                self._done(found.path, found.entry, unchanged.version_id, unchanged.size)
                continue
            try:
                name = self._name_of(found.path)
                entry = found.entry if settled(found.entry) else msgspec.structs.replace(found.entry, ctime_ns=0)
                sent = _Sent(found.path, entry)
                content = self._content(found, sent)
            except (OSError, StorageError) as error:
                self._told(found.path, error)
                continue
            self._on_way.append(sent)
            yield name, content

    def _unchanged(self, found: Found) -> Version | None:
        """The head of a file, if it has the content that the file on disk has."""
        before, head = self._former.get(found.path), self._heads.get(found.path)
        if before is None or head is None or not found.entry.same_on_disk(before):
            return None
        return head if before.content == (bytes.fromhex(head.version_id),) else None

    def _name_of(self, path: bytes) -> str:
        try:
            name = self.prefix + path.decode()
        except UnicodeDecodeError:
            raise Unstorable("its name is not UTF-8, as names in the store must be; rename it") from None
        check_filename(name)
        return name

    def _content(self, found: Found, sent: _Sent) -> Content:
        if found.entry.size <= SMALL_BYTES_MAX:
            data, sent.changed = read_small(found)
            return data

        def ended(_size: int, _digest: bytes, changed: bool) -> None:
            sent.changed = ChangedWhileRead(CHANGED) if changed else None

        return cast(BinaryIO, LargeContent(found, ended))

    def _kept(self) -> list[Entry]:
        """Former entries of files that are in the tree but could not be stored now."""
        entered = {entry.name for entry in self._entries}
        return [self._former[path] for path in self._failed if path in self._former and path not in entered]

    def _delete(self) -> None:
        """Delete files that are not in the tree; not those that could not be read."""
        entered = {entry.name for entry in self._entries if entry.kind is Kind.FILE}
        gone = [head for path, head in self._heads.items() if path not in entered and not self._is_unread(path)]
        for outcome in self.files.delete_many([head.file_id for head in gone]):
            if outcome.error is None:
                self.report.deleted += 1
            else:
                self._told(gone[outcome.position].filename[len(self.prefix) :].encode(), outcome.error)

    def _is_unread(self, path: bytes) -> bool:
        """Whether a file, or a directory that it is in, could not be read."""
        return any(not bad or path == bad or path.startswith(bad + b"/") for bad in self._failed)
