"""The folder in the store as one side of a sync."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import msgspec

from storage import Version
from storage.errors import ConflictError, StorageError
from taskworker.folders.entries import PATH_BYTES_MAX, Entry, Kind, decode_listing, encode_listing, parts_of
from taskworker.folders.ports import Files
from taskworker.folders.problems import Problem, Unstorable
from taskworker.folders.syncing.planning import above_of

DIRECTORY_MODE = 0o755
"""Of directories of which nothing is known but that there are files in them."""
FILE_MODE = 0o644
_TRIES = 10
_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class StoredFolder:
    """What the store has of a folder.

    Attributes:
        entries: by path; the content of a file is the id of its head.
        heads: of the files, by path.
        told: paths with problems, which no sync can do anything about.
    """

    entries: dict[bytes, Entry] = field(default_factory=dict)
    heads: dict[bytes, Version] = field(default_factory=dict)
    told: set[bytes] = field(default_factory=set)
    _listed: Mapping[bytes, Entry] = field(default_factory=dict)

    def listed(self, path: bytes) -> Entry | None:
        """What the folder's listing said of a path."""
        return self._listed.get(path)

    def mode_of(self, path: bytes) -> int | None:
        """The mode of a file or directory; None if it is not known."""
        entry = self.entries.get(path)
        listed = self._listed.get(path)
        if entry is None or listed is None or listed.kind is not entry.kind or listed.content != entry.content:
            return None
        return listed.mode


def read_folder(files: Files, prefix: str, problem: Problem) -> StoredFolder:
    """Read what the store has of a folder.

    Raises:
        FolderDamaged: the folder's listing is damaged.
    """
    listed, _ = read_listing(files, prefix)
    folder = StoredFolder(_listed=listed)
    for path, entry in listed.items():
        if path and entry.kind in (Kind.DIRECTORY, Kind.SYMLINK):
            folder.entries[path] = msgspec.structs.replace(entry, content=())
    for head in files.heads(prefix):
        path = head.filename[len(prefix) :].encode()
        if not path:
            continue
        try:
            parts_of(path)
            if len(path) > PATH_BYTES_MAX:
                raise Unstorable("the path is too long for a file on disk")
        except StorageError as error:
            folder.told.add(path)
            problem(path, error)
            continue
        folder.heads[path] = head
        folder.entries[path] = _file_entry(path, head, listed.get(path))
    _add_directories(folder, problem)
    return folder


def _file_entry(path: bytes, head: Version, listed: Entry | None) -> Entry:
    content = (bytes.fromhex(head.version_id),)
    if listed is not None and listed.content == content:
        return msgspec.structs.replace(listed, size=head.size)
    mode = listed.mode if listed is not None and listed.kind is Kind.FILE else FILE_MODE
    mtime_ns = head.time_ms * _NS_PER_MS
    return Entry(path, Kind.FILE, mode, os.geteuid(), os.getegid(), mtime_ns, 0, 0, head.size, content=content)


def _add_directories(folder: StoredFolder, problem: Problem) -> None:
    """Add the directories that files and links are in, also if no listing names them."""
    for path in list(folder.entries):
        for above in above_of(path):
            there = folder.entries.get(above)
            if there is not None and there.kind is Kind.DIRECTORY:
                break
            if there is not None and there.kind is Kind.FILE:
                del folder.heads[above]
                folder.told.add(above)  # with all below it, on both sides
                problem(above, Unstorable("the store has both a file of this name and files below it; rename one"))
            mtime_ns = folder.entries[path].mtime_ns
            folder.entries[above] = Entry(
                above, Kind.DIRECTORY, DIRECTORY_MODE, os.geteuid(), os.getegid(), mtime_ns, 0, 0
            )


def read_listing(files: Files, prefix: str) -> tuple[dict[bytes, Entry], str | None]:
    """A folder's listing by path, and the id of its version; None if there is none.

    Raises:
        FolderDamaged: it is damaged.
    """
    found = files.find(prefix)
    if found is None:
        return {}, None
    data = files.read(found, 0, found.size) if found.size else b""
    return ({entry.name: entry for entry in decode_listing(data)} if data else {}), found.version_id


def store_listing(
    files: Files,
    prefix: str,
    before: StoredFolder,
    common: Mapping[bytes, Entry],
    *,
    gone: Set[bytes],
    sent: Set[bytes],
) -> set[bytes]:
    """Describe a folder as it is after a sync, on top of what others have changed since it was read.

    Args:
        files: where the folder is.
        prefix: of the names of its files.
        before: the folder as it was read.
        common: what both sides have now, by path.
        gone: paths that were deleted.
        sent: directories and links that are new or other ones now.

    Returns:
        Those of ``sent`` that somebody else has changed as well: theirs stay in the listing.

    Raises:
        ConflictError: others change the listing all the time.
    """
    for _ in range(_TRIES):
        listed, version_id = read_listing(files, prefix)
        changed = {path for path in listed.keys() | common.keys() if _is_changed(before.listed(path), listed.get(path))}
        wanted = {path: entry for path, entry in listed.items() if path not in gone or path in changed}
        for path, entry in common.items():
            if path in changed:
                continue  # by somebody else meanwhile, which the next round sees
            noted = listed.get(path)
            content = entry.content[:1] if entry.kind is Kind.FILE else ()
            if noted is None or not _is_alike(noted, entry, content):
                wanted[path] = msgspec.structs.replace(entry, content=content, xattrs=())
        try:
            if wanted != listed:
                files.push_after(prefix, encode_listing(list(wanted.values())), version_id)
            return changed & sent
        except ConflictError:
            continue  # somebody else's change was made, so all together get on
    raise ConflictError("the folder's listing is changed all the time; sync again later", head="")


def _is_changed(before: Entry | None, noted: Entry | None) -> bool:
    if before is None or noted is None:
        return before is not noted
    return not _is_alike(before, noted, noted.content[:1])


def _is_alike(noted: Entry, entry: Entry, content: tuple[bytes, ...]) -> bool:
    """Whether a listing says of a path what it should, other machines' times and inodes aside."""
    is_same = noted.kind is entry.kind and noted.target == entry.target
    if entry.kind is Kind.SYMLINK:
        return is_same
    if entry.kind is Kind.FILE:
        is_same = is_same and noted.content[:1] == content
    return is_same and noted.mode & 0o777 == entry.mode & 0o777
