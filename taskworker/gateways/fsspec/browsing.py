"""The half of the filesystem that tells what there is. Nothing is kept: every answer is the present one."""

from __future__ import annotations

import errno
from abc import abstractmethod
from datetime import UTC, datetime
from typing import Any

from fsspec.spec import AbstractFileSystem

from storage import Version
from taskworker.gateways.fsspec.files import Files
from taskworker.gateways.fsspec.listing import (
    Info,
    children,
    directory_info,
    file_info,
    files_below,
    is_directory,
)
from taskworker.gateways.fsspec.paths import parents, plain


class BrowsableFileSystem(AbstractFileSystem):
    """Files and the directories that their names make up.

    A directory exists as long as a file is in it, as in object stores: making one does nothing, and it is gone with its
    last file.
    """

    @property
    @abstractmethod
    def files(self) -> Files:
        """The files of the user."""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        stripped = super()._strip_protocol(path)
        return stripped if isinstance(stripped, list) else plain(stripped)

    @classmethod
    def _parent(cls, path: str) -> str:
        return str(cls._strip_protocol(path)).rpartition("/")[0]

    # -- single paths ------------------------------------------------------------------------------

    def info(self, path: str, *, version_id: str | None = None, **_: Any) -> Info:
        """A file or a directory; of a file also ``mtime``, ``version_id``, ``sha256`` and the like.

        Args:
            path: the path.
            version_id: the version; default: the newest one.

        Raises:
            FileNotFoundError: there is nothing at the path, or no such version.
        """
        path = self._strip_protocol(path)
        version = self.files.find(path) if path else None
        if version is not None:
            return file_info(version if version_id is None else self.files.stat(version, version_id))
        if version_id is not None or not is_directory(self.files, path):
            raise FileNotFoundError(errno.ENOENT, "there is no such file or directory", path)
        return directory_info(path)

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or directory; other errors than its absence are raised."""
        try:
            self.info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether there is a directory, and no file, at the path."""
        path = self._strip_protocol(path)
        return not path or (is_directory(self.files, path) and self.files.find(path) is None)

    def isfile(self, path: str) -> bool:
        """Whether there is a file."""
        path = self._strip_protocol(path)
        return bool(path) and self.files.find(path) is not None

    def size_now(self, path: str) -> int:
        """Size of a file; 0 if there is none."""
        version = self.files.find(path)
        return 0 if version is None else version.size

    def versions(self, path: str) -> list[Info]:
        """All versions of a file, newest first. Other methods take their ``version_id``."""
        return [file_info(version) for version in self.files.history(self._version(path))]

    def created(self, path: str) -> datetime:
        """When the first version of a file was stored."""
        return _time(self.files.history(self._version(path))[-1])

    def modified(self, path: str) -> datetime:
        """When the newest version of a file was stored."""
        return _time(self._version(path))

    def ukey(self, path: str) -> str:
        """The version id, which changes with every change of the file."""
        version_id: str = self._version(path).version_id
        return version_id

    def checksum(self, path: str) -> int:
        """The version id as a number."""
        return int(self.ukey(path), 16)

    # -- listings ----------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The files and directories in a directory, or the file itself."""
        path = self._strip_protocol(path)
        found = children(self.files, path)
        entries = found.entries
        if not found.exists:
            entries = {path: self.info(path)}
        return [entries[name] if detail else name for name in sorted(entries)]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """All files in a directory and the directories in it. Without ``maxdepth``, this takes one listing for all."""
        path = self._strip_protocol(path)
        if maxdepth is not None:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        found: dict[str, Info] = {}
        for each in files_below(self.files, path):
            if withdirs:
                found |= {name: directory_info(name) for name in parents(each.filename, path)}
            if not each.filename.endswith("/"):
                found[each.filename] = file_info(each)
        if found and withdirs and path:
            found[path] = directory_info(path)
        if not found and path and (version := self.files.find(path)) is not None:
            found[path] = file_info(version)
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def du(
        self, path: str, total: bool = True, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> Any:
        """Sizes of the files in a directory, or their sum."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    # -- directories -------------------------------------------------------------------------------

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Do nothing, as a directory comes with its first file.

        Raises:
            FileExistsError: there is something at the path.
        """
        self.makedirs(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing, as a directory comes with its first file.

        Raises:
            FileExistsError: there is a file at the path, or a directory and ``exist_ok`` is not set.
        """
        path = self._strip_protocol(path)
        if exist_ok:
            if self.isfile(path):
                raise FileExistsError(errno.EEXIST, "there is a file of this name", path)
        elif self.exists(path):
            raise FileExistsError(errno.EEXIST, "there is such a file or directory", path)

    # -- errors ------------------------------------------------------------------------------------

    def _version(self, path: str, version_id: str | None = None) -> Version:
        """A version of the file at a path.

        Raises:
            FileNotFoundError: there is none.
            IsADirectoryError: it is a directory.
        """
        path = self._strip_protocol(path)
        version = self.files.find(path) if path else None
        if version is None:
            raise self._no_file(path)
        return version if version_id is None else self.files.stat(version, version_id)

    def _no_file(self, path: str) -> OSError:
        if is_directory(self.files, path):
            return IsADirectoryError(errno.EISDIR, "it is a directory", path)
        return FileNotFoundError(errno.ENOENT, "there is no such file", path)


def _time(version: Version) -> datetime:
    return datetime.fromtimestamp(version.time_ms / 1000, UTC)
