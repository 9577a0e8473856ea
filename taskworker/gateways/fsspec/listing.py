"""What files and directories there are. Directories are the prefixes of names, up to a slash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from storage import Version
from taskworker.gateways.fsspec.files import Files
from taskworker.gateways.fsspec.paths import below, has_path

Info = dict[str, Any]

_PAGE = 500
_PEEK = 16
_LAST_CHARACTER = "\U0010ffff"
_SKIPPED_BYTES_MAX = 400
"""Names are ordered by their first 440 bytes only, so that none may be skipped by longer ones."""


def file_info(version: Version) -> Info:
    """A file, as fsspec describes it."""
    return {
        "name": version.filename,
        "size": version.size,
        "type": "file",
        "mtime": version.time_ms / 1000,
        "file_id": version.file_id,
        "version_id": version.version_id,
        "parent_id": version.parent_id,
        "sha256": version.sha256,
        "note": version.note,
    }


def directory_info(path: str) -> Info:
    """A directory, as fsspec describes it."""
    return {"name": path, "size": 0, "type": "directory"}


@dataclass(slots=True)
class Children:
    """What is in a directory.

    Attributes:
        entries: files and directories, by path.
        exists: whether there is such a directory.
    """

    entries: dict[str, Info] = field(default_factory=dict)
    exists: bool = False

    def add(self, version: Version, directory: str) -> None:
        """Note a file that is anywhere in the directory."""
        self.exists = True
        start = len(below(directory))
        end = version.filename.find("/", start)
        if end >= 0:
            path = version.filename[:end]
            self.entries.setdefault(path, directory_info(path))
        elif len(version.filename) > start:  # otherwise it is a mark of the directory itself
            self._add_file(version)

    def _add_file(self, version: Version) -> None:
        # A file and a directory may have the same path. The directory is listed, since all else is below it.
        self.entries.setdefault(version.filename, file_info(version))


def files_below(files: Files, directory: str, page_size: int = _PAGE) -> Iterator[Version]:
    """All files in a directory and those in it, by name, also marks of directories: names that end with a slash."""
    after: str | None = None
    while True:
        page = files.page(below(directory), after, page_size)
        yield from (version for version in page if has_path(version.filename))
        if len(page) < page_size:
            return
        after = page[-1].filename


def is_directory(files: Files, path: str) -> bool:
    """Whether any file is in the directory; the root is there always."""
    return not path or next(files_below(files, path, _PEEK), None) is not None


def children(files: Files, directory: str) -> Children:
    """What is in a directory. Of each directory in it, no more than a page of files is looked at."""
    found = Children(exists=not directory)
    after: str | None = None
    while True:
        page = files.page(below(directory), after, _PAGE)
        for version in page:
            if has_path(version.filename):
                found.add(version, directory)
        if len(page) < _PAGE:
            return found
        after = _past(page[-1].filename, directory)


def _past(name: str, directory: str) -> str:
    """What to continue after, so that the rest of the directory that ``name`` is in is skipped."""
    end = name.find("/", len(below(directory)))
    beyond = name[: end + 1] + _LAST_CHARACTER
    return beyond if end >= 0 and len(beyond.encode()) < _SKIPPED_BYTES_MAX else name
