"""Files that only their owner may read: keys, certificates' keys, tokens.

A file that anybody else may read, or that somebody else can change, is refused. Files are replaced as a whole, so that
a crash leaves the former content or the new one.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from storage.system.directories import sync_directory
from storage.system.private_paths import FILE_MODE, NotPrivate, make_private_directory, open_private


def read_private(path: Path, bytes_max: int = 1 << 20) -> bytes | None:
    """Return a private file's content; None if there is no such file.

    Args:
        path: the file; a symbolic link is not followed.
        bytes_max: how many bytes to read at most.

    Raises:
        NotPrivate: somebody else may read or change it, or it is too long.
        OSError: it cannot be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        _require_private(path, os.fstat(descriptor))
        content = file.read(bytes_max + 1)
    if len(content) > bytes_max:
        raise NotPrivate(f"{path} has more than {bytes_max:,} bytes, so it is not what it should be")
    return content


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise NotPrivate(f"{path} is not a regular file")
    if found.st_uid != os.geteuid():
        raise NotPrivate(
            f"{path} belongs to user {found.st_uid}, not to this process's own ({os.geteuid()}): who owns it can "
            "change it; use a file of your own"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & ~FILE_MODE:
        raise NotPrivate(f"{path} has mode {mode:04o}, so others may read it: `chmod 600 {path}`")


def aside_of(path: Path) -> Path:
    """Return where :func:`write_private` writes before the file takes its place."""
    return path.with_name(f".{path.name}.new")


def write_private(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a private file, in place of a former one. Its directory is created, private as well, if absent.

    The file is private at every moment, whatever the umask. A symbolic link in its place is replaced, not followed.
    Only one process at a time may write it. What a crash leaves beside it is removed by the next call.

    Args:
        path: the file.
        content: what to write.
        durable: whether the file must survive a power cut once this returns.

    Raises:
        OSError: it cannot be written; a former file is unchanged.
    """
    make_private_directory(path.parent)
    aside = aside_of(path)
    aside.unlink(missing_ok=True)
    descriptor = open_private(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    if durable:
        sync_directory(path.parent)
