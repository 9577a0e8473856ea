"""Judges what an error of the operating system means for the data; the only module that interprets error numbers.

No error number says anything about the bytes on the disk. Only bytes that were read completely and do not match their
digest are corrupt.
"""

from __future__ import annotations

import errno
from enum import Enum


class Fault(Enum):
    """A kind of error."""

    PASSING = "passing"
    """A resource is exhausted, or the directory is out of reach: the same call may work later."""

    READ_ONLY = "read-only"
    """The file system is read-only; reading still works."""

    FULL = "full"
    """There is no space, the quota is used up, or the file would be too large."""

    BROKEN = "broken"
    """The device failed: recent writes count only after they were read back from the disk."""


_PASSING = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ETIMEDOUT,
        errno.ESTALE,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
    }
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Errors of open(2), but never of fsync(2) on an open file.
_OF_OPENING = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
)


def fault_of(error: OSError) -> Fault:
    """Return the kind of an error."""
    if error.errno in _FULL:
        return Fault.FULL
    if error.errno == errno.EROFS:
        return Fault.READ_ONLY
    return Fault.PASSING if error.errno in _PASSING else Fault.BROKEN


def numbers_of(fault: Fault) -> frozenset[int]:
    """Return the error numbers of a kind, to recognize their texts; none for BROKEN, which means all others."""
    return {Fault.PASSING: _PASSING, Fault.FULL: _FULL, Fault.READ_ONLY: frozenset({errno.EROFS})}.get(
        fault, frozenset()
    )


def never_flushed(error: OSError) -> bool:
    """Whether syncing a directory failed before it began, so that it can simply be repeated.

    If the flush itself failed, a later success means nothing, since the kernel has dropped the pages.
    """
    return error.errno in _OF_OPENING
