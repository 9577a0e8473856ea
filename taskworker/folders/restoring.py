"""Puts a tree back on disk. Nothing outside of the target is ever written, whatever a folder's description says."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from taskworker.folders.entries import Entry, Kind, require_name
from taskworker.folders.problems import Problem, Unstorable

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PART_PREFIX, PART_SUFFIX = b".taskworker-", b".part"
"""What names of files begin and end with that are not complete yet."""
_BLOCK_BYTES = 65536
_ZEROS = bytes(_BLOCK_BYTES)
_PLAIN_MODE = 0o1777  # without set-user-ID and set-group-ID
_WHOLE_MODE = 0o7777
_UNPRIVILEGED_XATTRS = b"user."

Parts = Sequence[bytes]


def make_root(root: Path) -> None:
    """Make the directory that a folder is written to, unless it is there.

    Raises:
        OSError: it cannot be made, such as NotADirectoryError if it is a file.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(root)) from None


class Target:
    """A directory into which a tree is restored.

    Directories are walked by descriptors, and a symbolic link is never followed. So neither names such as ``..`` nor
    links that were restored, or are there already, lead out of it. Each file appears as a whole or not at all.

    Args:
        root: the directory; it is made if it does not exist.
        problem: told of attributes that could not be restored.
        privileged: whether to restore owners, set-user-ID bits and all extended attributes, which needs root.
    """

    def __init__(self, root: Path, problem: Problem, *, privileged: bool = False) -> None:
        make_root(root)
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._problem = problem
        self._privileged = privileged
        self._mode = _WHOLE_MODE if privileged else _PLAIN_MODE
        self._parts: list[bytes] = []
        self._descriptors: list[int] = [self._root]
        self._directories: list[tuple[Parts, Entry]] = []

    def add_directory(self, parts: Parts, entry: Entry) -> None:
        """Make a directory. Its mode and times are set in the end, when nothing changes in it any more.

        Raises:
            FolderDamaged: a name is none.
            Unstorable: something that is not a directory is in the way.
            OSError: it cannot be made.
        """
        self._enter(parts)
        self._directories.append((tuple(parts), entry))

    def add_file(self, parts: Parts, entry: Entry, content: Iterable[bytes]) -> None:
        """Make a file, in the place of one that may be there.

        Raises:
            FolderDamaged: a name is none.
            Unstorable: a directory is in the way, or something that is not a directory above.
            OSError: it cannot be made.
        """
        with self._replacing(parts) as (directory, part):
            descriptor = os.open(part, _NEW_FLAGS, 0o600, dir_fd=directory)
            try:
                if entry.sparse:
                    _write_sparse(descriptor, content)
                else:
                    for piece in content:
                        _write_all(descriptor, piece)
                self._set_attributes(descriptor, parts, entry)
            finally:
                os.close(descriptor)

    def add_other(self, parts: Parts, entry: Entry) -> None:
        """Make a symbolic link or a FIFO.

        Raises: as :meth:`add_file`.
        """
        with self._replacing(parts) as (directory, part):
            if entry.kind is Kind.SYMLINK:
                os.symlink(entry.target, part, dir_fd=directory)
            else:
                os.mkfifo(part, entry.mode & 0o777, dir_fd=directory)
                path = b"/proc/self/fd/%d/%s" % (directory, part)
                os.chmod(path, entry.mode & 0o777)  # noqa: PTH101 - a name by descriptor, as mkfifo minds the umask
            if self._privileged:
                os.chown(part, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
            os.utime(part, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def add_link(self, parts: Parts, first: Parts) -> None:
        """Make another name of a file that was restored.

        Raises: as :meth:`add_file`.
        """
        with self._replacing(parts) as (directory, part), self.opened(first[:-1]) as source:
            os.link(first[-1], part, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=directory)  # renaming a file to another name of itself does nothing

    def finish(self) -> None:
        """Set modes and times of directories, the innermost first."""
        for parts, entry in sorted(self._directories, key=lambda each: -len(each[0])):
            try:
                with self.opened(parts) as descriptor:
                    self._set_attributes(descriptor, parts, entry)
            except (OSError, OverflowError) as error:
                self._problem(b"/".join(parts), error)
        self._directories.clear()

    def leave(self) -> None:
        """Go back to the root, as directories may be others now than those that were entered."""
        self._parts.clear()
        while len(self._descriptors) > 1:
            os.close(self._descriptors.pop())

    def close(self) -> None:
        """Close all directories."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    # -- directories -----------------------------------------------------------------------------

    def _enter(self, parts: Parts) -> int:
        """The descriptor of a directory, which is made if it does not exist."""
        same = 0
        while same < min(len(parts), len(self._parts)) and parts[same] == self._parts[same]:
            same += 1
        while len(self._parts) > same:
            self._parts.pop()
            os.close(self._descriptors.pop())
        for name in parts[same:]:
            require_name(name)
            descriptor = _made(self._descriptors[-1], name)
            self._parts.append(name)
            self._descriptors.append(descriptor)
        return self._descriptors[-1]

    @contextlib.contextmanager
    def opened(self, parts: Parts) -> Iterator[int]:
        """A descriptor of a directory that exists, by a walk of its own that follows no links."""
        descriptor = os.dup(self._root)
        try:
            for name in parts:
                inner = os.open(name, _DIRECTORY_FLAGS, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _replacing(self, parts: Parts) -> Iterator[tuple[int, bytes]]:
        """The directory of a file, and a name to make it under, which takes the file's place in the end."""
        directory, name = self._enter(parts[:-1]), parts[-1]
        require_name(name)
        part = PART_PREFIX + secrets.token_hex(8).encode() + PART_SUFFIX
        try:
            yield directory, part
            os.rename(part, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException as error:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=directory)
            if isinstance(error, IsADirectoryError):
                raise Unstorable("a directory is in its place; remove it, or restore to another directory") from None
            raise

    # -- attributes ------------------------------------------------------------------------------

    def _set_attributes(self, descriptor: int, parts: Parts, entry: Entry) -> None:
        if self._privileged:
            os.fchown(descriptor, entry.uid, entry.gid)  # first, as it takes set-user-ID bits away
        for name, value in entry.xattrs:
            if self._privileged or name.startswith(_UNPRIVILEGED_XATTRS):
                try:
                    os.setxattr(descriptor, name, value)
                except OSError as error:
                    self._problem(b"/".join(parts), error)
        os.fchmod(descriptor, entry.mode & self._mode)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))


def _made(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
        return _made_now(parent, name)
    except OSError as error:
        raise _in_the_way(name, error) from None


def _made_now(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
    except OSError as error:
        raise _in_the_way(name, error) from None


def _in_the_way(name: bytes, error: OSError) -> Exception:
    if error.errno not in (errno.ELOOP, errno.ENOTDIR):
        return error
    shown = name.decode(errors="backslashreplace")
    return Unstorable(f"{shown} is no directory here, or a symbolic link; remove it, or restore to another directory")


def _write_all(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _write_sparse(descriptor: int, content: Iterable[bytes]) -> None:
    """Write content, and leave holes where it is zero."""
    position = 0
    for piece in content:
        for start in range(0, len(piece), _BLOCK_BYTES):
            block = piece[start : start + _BLOCK_BYTES]
            if block == _ZEROS[: len(block)]:
                position = os.lseek(descriptor, len(block), os.SEEK_CUR)
            else:
                _write_all(descriptor, block)
                position += len(block)
    os.ftruncate(descriptor, position)
