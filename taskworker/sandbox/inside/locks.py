"""``fcntl.flock`` implemented with open file description locks (``F_OFD_SETLK``).

The system call flock is refused in the sandbox: it can lock any file, including those that all functions of a worker
can read, so that functions could signal each other by locks. An exclusive open file description lock needs a file that
is open for writing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Protocol

_FLOCK = struct.Struct("hhqqi4x")
"""``struct flock``: type, whence, start, length (0: to the end), process (0: the lock belongs to the open file)."""
_KINDS = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR


class _File(Protocol):
    def fileno(self) -> int:
        """Return the descriptor."""


def install() -> None:
    """Replace the standard library's ``fcntl.flock``."""
    fcntl.flock = flock


def flock(fd: int | _File, operation: int, /) -> None:
    """Like ``fcntl.flock``, but an exclusive lock needs a file opened for writing, as on NFS.

    On a read-only file system, where nobody can change files, every lock is granted and has no effect.
    """
    descriptor = fd if isinstance(fd, int) else fd.fileno()
    kind = _KINDS.get(operation & ~fcntl.LOCK_NB)
    if kind is None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return
    if kind == fcntl.F_RDLCK and fcntl.fcntl(descriptor, fcntl.F_GETFL) & _ACCESS == os.O_WRONLY:
        kind = fcntl.F_WRLCK  # a shared lock needs a file opened for reading
    command = fcntl.F_OFD_SETLK if operation & fcntl.LOCK_NB else fcntl.F_OFD_SETLKW
    fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
