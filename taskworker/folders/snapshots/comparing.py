"""What differs between two snapshots. Directories that are equal are not read."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from taskworker.folders.entries import Entry, Kind
from taskworker.folders.snapshots.directories import read_directory
from taskworker.folders.snapshots.records import Snapshot
from taskworker.folders.snapshots.repository import Repository


class Change(StrEnum):
    """How a path differs."""

    ADDED = "+"
    REMOVED = "-"
    CONTENT = "M"
    """Its content, or the target of the link."""
    KIND = "T"
    """It is something else, such as a directory in place of a file."""
    ATTRIBUTES = "U"
    """Only its mode, owner, times or extended attributes."""


def compare(repository: Repository, before: Snapshot, after: Snapshot) -> Iterator[tuple[Change, bytes, Entry]]:
    """What differs, by path; with the entry of ``after``, or that of ``before`` of what was removed.

    Of a directory that was added or removed, all that is in it is named, too. That the content of a directory changed
    is not said of the directory itself.

    Raises:
        FolderDamaged: a directory cannot be read.
    """
    if _attributes(before.root) != _attributes(after.root):
        yield Change.ATTRIBUTES, b"", after.root
    yield from _inside(repository, before.root, after.root, b"")


def _inside(
    repository: Repository, before: Entry | None, after: Entry | None, path: bytes
) -> Iterator[tuple[Change, bytes, Entry]]:
    if before is not None and after is not None and before.content == after.content:
        return
    olds, news = _entries(repository, before), _entries(repository, after)
    for name in sorted(olds.keys() | news.keys()):
        old, new = olds.get(name), news.get(name)
        inner = path + b"/" + name if path else name
        change = _change(old, new)
        shown = new or old
        assert shown is not None, "the name comes from one of both"
        if change is not None:
            yield change, inner, shown
        old_directory = old if old is not None and old.kind is Kind.DIRECTORY else None
        new_directory = new if new is not None and new.kind is Kind.DIRECTORY else None
        if old_directory is not None or new_directory is not None:
            yield from _inside(repository, old_directory, new_directory, inner)


def _entries(repository: Repository, directory: Entry | None) -> dict[bytes, Entry]:
    if directory is None:
        return {}
    return {entry.name: entry for entry in read_directory(directory.content[0], repository.load)}


def _change(old: Entry | None, new: Entry | None) -> Change | None:
    if old is None:
        return Change.ADDED
    if new is None:
        return Change.REMOVED
    if old.kind is not new.kind:
        return Change.KIND
    if old.kind is not Kind.DIRECTORY and (old.content, old.target) != (new.content, new.target):
        return Change.CONTENT
    return Change.ATTRIBUTES if _attributes(old) != _attributes(new) else None


def _attributes(entry: Entry) -> tuple[object, ...]:
    mtime_ns = 0 if entry.kind is Kind.DIRECTORY else entry.mtime_ns  # that of a directory follows from its names
    return entry.mode, entry.uid, entry.gid, mtime_ns, entry.xattrs
