"""``fcntl.flock`` by locks of open files, which only who may write a file can put on it for others to notice.

The system call is refused: it puts a lock on any file, those that all functions of a worker read among them, and so
one function could tell another something.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Protocol

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock``: type, whence, start, length (0: to the end), process (0: the lock is of the open file)."""
_KINDS = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class _File(Protocol):
    def fileno(self) -> int:
        """Its descriptor."""


def install() -> None:
    """Put it in the place of the standard library's."""
    fcntl.flock = flock


def flock(fd: int | _File, operation: int, /) -> None:
    """See ``fcntl.flock``, with one difference, as on NFS: an exclusive lock needs a file opened for writing.

    What lies in a read-only place nobody changes: a lock of it is granted, and keeps out nobody.
    """
    descriptor = fd if isinstance(fd, int) else fd.fileno()
    kind = _KINDS.get(operation & ~fcntl.LOCK_NB)
    if kind is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return
    if kind == fcntl.F_RDLCK and fcntl.fcntl(descriptor, fcntl.F_GETFL) & _ACCESS == os.O_WRONLY:
        kind = fcntl.F_WRLCK  # a shared one needs a file opened for reading
    command = fcntl.F_OFD_SETLK if operation & fcntl.LOCK_NB else fcntl.F_OFD_SETLKW
    fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
