"""The directory as one side of a sync. Nothing outside of it is ever read or written, whatever links are in it."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
from blake3 import blake3

from storage.errors import StorageError
from taskworker.folders.contents import SMALL_BYTES_MAX, LargeContent, read_small
from taskworker.folders.entries import Entry, Kind, parts_of
from taskworker.folders.ports import Content
from taskworker.folders.problems import Problem
from taskworker.folders.restoring import PART_PREFIX, PART_SUFFIX, Target
from taskworker.folders.rules import Exclusions, Rules
from taskworker.folders.scanning import Found, Scan
from taskworker.folders.syncing.flushing import flush_file_system

MODE_BITS = 0o777
_KINDS = (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK)
_READ_BYTES = 1 << 20
_TIES = b".taskworker-sync"  # what is kept here of files that are synchronized by themselves


class Moved(StorageError):
    """Something has changed since it was looked at: what was planned for it is not done."""


class Replica:
    """A directory that is synced.

    Args:
        root: the directory; it is made if it does not exist.
        exclusions: what is left alone.
        problem: told of what cannot be read or written.
    """

    def __init__(self, root: Path, exclusions: Exclusions, problem: Problem) -> None:
        self._root = os.fsencode(root)
        self._exclusions = exclusions
        self._problem = problem
        self.target = Target(root, problem)
        self.left_out: set[bytes] = set()
        """Paths that are left alone, with all that is below them."""
        self.rules: dict[bytes, Rules] = {}
        """The rules that hold in directories with a ``.twignore``, and below them."""
        self._scan_root = root

    def close(self) -> None:
        """Close all directories."""
        self.target.close()

    def scan(self) -> dict[bytes, Entry]:
        """What is in the directory, by path."""
        self.left_out.clear()
        self.rules.clear()

        def failed(path: bytes, error: Exception) -> None:
            self.left_out.add(path)
            self._problem(path, error)

        scan = Scan(
            self._scan_root,
            self._exclusions,
            failed,
            left_out=self.left_out.add,
            ruled=self.rules.__setitem__,
            needs_rules=True,
        )
        found = {}
        for each in scan.found():
            path, name = each.path, each.path.rpartition(b"/")[2]
            if not path:
                continue
            is_part = name.startswith(PART_PREFIX) and name.endswith(PART_SUFFIX)
            if is_part or name == _TIES or each.entry.kind not in _KINDS:
                self.left_out.add(path)
                continue
            found[path] = msgspec.structs.replace(each.entry, name=path)
        return found

    # -- reading ---------------------------------------------------------------------------------

    def digest(self, path: bytes, entry: Entry) -> bytes:
        """The BLAKE3 of a file's content.

        Raises:
            Moved: it is not as it was found.
            OSError: it cannot be read.
        """
        digest = blake3()
        with self._found(path, entry) as found, LargeContent(found, lambda _size, _digest, _changed: None) as content:
            while piece := content.read(_READ_BYTES):
                digest.update(piece)
        self.require(path, entry)
        return digest.digest()

    def content(self, path: bytes, entry: Entry, ended: Callable[[bytes, bool], None]) -> Content:
        """The content of a file, to store it.

        Args:
            path: of the file.
            entry: the file as it was found.
            ended: called once it was read, with its BLAKE3 and whether it was changed meanwhile.

        Raises:
            Moved: it is not as it was found.
            OSError: it cannot be read.
        """
        with self._found(path, entry) as found:
            if entry.size <= SMALL_BYTES_MAX:
                data, changed = read_small(found)
                ended(blake3(data).digest(), changed is not None)
                return data
            return cast(BinaryIO, LargeContent(found, lambda _size, digest, changed: ended(digest, changed)))

    @contextlib.contextmanager
    def _found(self, path: bytes, entry: Entry) -> Iterator[Found]:
        parts = parts_of(path)
        try:
            with self.target.opened(parts[:-1]) as parent:
                device = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_dev
                yield Found(path, entry, device, parent, len(parts))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Moved(f"it is gone: {error}") from None

    # -- looking ---------------------------------------------------------------------------------

    def status(self, path: bytes) -> os.stat_result | None:
        """What is at a path now; None: nothing."""
        parts = parts_of(path)
        try:
            with self.target.opened(parts[:-1]) as parent:
                return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def require(self, path: bytes, entry: Entry | None) -> None:
        """Refuse to go on if a path is not as it was found.

        Raises:
            Moved: it is not.
        """
        now = self.status(path)
        if entry is None:
            if now is not None:
                raise Moved("something has appeared there; or its name differs only in case from another one")
        elif now is None or not _is_same(now, entry):
            raise Moved("it was changed meanwhile")

    def noted(self, path: bytes, entry: Entry) -> Entry:
        """An entry as it is to be kept for the next sync: with what shows then whether the file was changed.

        If it does not look as it should, it is read the next time.
        """
        now = self.status(path)
        if now is None or entry.kind is not Kind.FILE:
            return msgspec.structs.replace(entry, name=path, xattrs=())
        as_written = now.st_size == entry.size and now.st_mtime_ns == entry.mtime_ns
        ctime_ns = now.st_ctime_ns if as_written else 0
        return msgspec.structs.replace(
            entry, name=path, ctime_ns=ctime_ns, inode=now.st_ino, mtime_ns=now.st_mtime_ns, xattrs=()
        )

    # -- changing --------------------------------------------------------------------------------

    def remove(self, path: bytes, entry: Entry) -> None:
        """Remove a file or link, or an empty directory.

        Raises:
            Moved: it is not as it was found.
            OSError: it cannot be removed; a directory is not empty.
        """
        parts = parts_of(path)
        if entry.kind is not Kind.DIRECTORY:
            self.require(path, entry)
        with contextlib.suppress(FileNotFoundError), self.target.opened(parts[:-1]) as parent:
            if entry.kind is Kind.DIRECTORY:
                os.rmdir(parts[-1], dir_fd=parent)
            else:
                os.unlink(parts[-1], dir_fd=parent)

    def rename(self, path: bytes, to: bytes) -> None:
        """Give a file or link another name in its directory.

        Raises:
            Moved: it is gone, or something has that name.
            OSError: it cannot be renamed.
        """
        parts, name = parts_of(path), parts_of(to)[-1]
        self.require(to, None)
        try:
            with self.target.opened(parts[:-1]) as parent:
                os.rename(parts[-1], name, src_dir_fd=parent, dst_dir_fd=parent)
        except FileNotFoundError as error:
            raise Moved(f"it is gone: {error}") from None

    def set_mode(self, path: bytes, entry: Entry, mode: int) -> None:
        """Set the permission bits of a file or directory.

        Raises:
            Moved: it is not as it was found.
            OSError: they cannot be set.
        """
        self.require(path, entry)
        parts = parts_of(path)
        with self.target.opened(parts[:-1]) as parent:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(parts[-1], flags, dir_fd=parent)
            try:
                os.fchmod(descriptor, entry.mode & ~MODE_BITS | mode & MODE_BITS)
            finally:
                os.close(descriptor)

    def flush(self, path: bytes) -> None:
        """Make durable what was written to the file system that a file is on.

        Raises:
            OSError: something could not be written.
        """
        with self.target.opened(parts_of(path)[:-1]) as directory:
            flush_file_system(directory)

    def ignores_case(self) -> bool:
        """Whether names that differ only in case are the same file here."""
        name = PART_PREFIX + secrets.token_hex(8).encode() + PART_SUFFIX
        with self.target.opened(()) as directory:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
            try:
                os.stat(name.upper(), dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return False
            finally:
                os.unlink(name, dir_fd=directory)
            return True


def _is_same(status: os.stat_result, entry: Entry) -> bool:
    if entry.kind is Kind.DIRECTORY:
        return stat.S_ISDIR(status.st_mode)
    return (
        status.st_ino == entry.inode
        and status.st_mtime_ns == entry.mtime_ns
        and (entry.kind is not Kind.FILE or status.st_size == entry.size)
        and status.st_ctime_ns == entry.ctime_ns
    )
