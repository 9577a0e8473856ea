"""Files and directories that only their owner can reach, at every moment and whatever the umask.

The umask is a process's, so a library must not change it: other threads make files meanwhile. Modes are given when a
file is made, and set again if the umask took bits away. Symbolic links of other users are not followed.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from storage.errors import StorageError

log = logging.getLogger(__name__)

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OWN_NAMES = frozenset({"LOCK", "STORE", "VOLUME", "catalog"})
"""Names by which a directory is known to be one of a store, a pool, a worker or a volume."""
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a FIFO must not wait


class NotPrivate(StorageError):
    """What must be private is not: others may read or change it, or it is not the kind of file that it should be."""


def make_private_directory(path: Path) -> None:
    """Create a directory, and its parents if they are missing, all of them private. An existing one stays as it is.

    Raises:
        NotPrivate: a symbolic link of another user is in its place.
        OSError: it cannot be made, or something else is in its place.
    """
    try:
        path.mkdir(DIRECTORY_MODE)
    except FileNotFoundError:
        make_private_directory(path.parent)
        make_private_directory(path)
        return
    except FileExistsError:
        require_own_link(path)
        if not path.is_dir():
            raise
        return
    if stat.S_IMODE(path.lstat().st_mode) & DIRECTORY_MODE != DIRECTORY_MODE:
        path.chmod(DIRECTORY_MODE)


def make_own_directory(path: Path) -> None:
    """Like :func:`make_private_directory`; if it exists, it becomes private if it belongs to this process's user.

    For directories that this software makes for itself, so that nobody misses the former mode.
    """
    make_private_directory(path)
    _narrow(path, _OTHERS)


def make_root_directory(path: Path) -> None:
    """Like :func:`make_own_directory`, for one that a user names, and may also use for other things.

    If it holds other things only, others lose no more than the right to write to it.
    """
    make_private_directory(path)
    with os.scandir(path) as entries:
        names = {entry.name for entry in entries}
    _narrow(path, _OTHERS if not names or names & _OWN_NAMES else _OTHERS_WRITE)


def _narrow(path: Path, bits: int) -> None:
    """Take these bits from the mode of a directory, if it is this process's user's and not one that all users share."""
    found = path.stat()
    if found.st_mode & bits and found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX:
        _change_mode(path, stat.S_IMODE(found.st_mode) & ~bits)


def narrow_path(path: Path) -> None:
    """Make a file private, if it belongs to this process's user; it may not exist.

    Raises:
        NotPrivate: it is a symbolic link.
        OSError: it cannot be examined.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise NotPrivate(f"{path} is a symbolic link, and is not followed; remove it")
    if found.st_mode & _OTHERS and found.st_uid == os.geteuid():
        _change_mode(path, FILE_MODE)


def _change_mode(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except OSError as error:  # a disk that cannot be written, which must not hide what is on it
        log.warning("the mode of %s stays as it is: %s", path, error)


def require_own_link(path: Path) -> None:
    """Check that a path, if it is a symbolic link, is one of this process's user, or of root.

    Raises:
        NotPrivate: it is another user's, who can change where it leads.
        OSError: there is nothing at this path.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) and found.st_uid not in (os.geteuid(), 0):
        raise NotPrivate(f"{path} is a symbolic link of user {found.st_uid}, and is not followed; name another place")


def open_private(path: str | os.PathLike[str], flags: int, mode: int = FILE_MODE) -> int:
    """Like ``os.open``, for a private file; can be used as the ``opener`` of ``open``.

    A symbolic link is not followed. A file that is made is private. One that exists becomes so, if it is this process's
    user's and is opened for writing.

    Raises:
        OSError: see ``os.open``; a symbolic link is a loop (ELOOP).
    """
    descriptor = os.open(path, flags | _FLAGS, mode & FILE_MODE)
    if flags & (os.O_WRONLY | os.O_RDWR):
        narrow_file(descriptor)
    return descriptor


def narrow_file(descriptor: int) -> None:
    """Make an open file private, if it is not and belongs to this process's user."""
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != FILE_MODE and found.st_uid == os.geteuid():
        os.fchmod(descriptor, FILE_MODE)
