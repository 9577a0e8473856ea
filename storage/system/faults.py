"""What an error of the operating system means for the data: the only place that judges error numbers.

None of them says anything about the bytes on the disk. Only bytes that were read completely and do not match
their digest are rotten.
"""

from __future__ import annotations

import errno
from enum import Enum


class Fault(Enum):
    """What is wrong."""

    PASSING = "passing"
    """The machine is short of something, or the directory is out of reach: the same call may work later."""

    READ_ONLY = "read-only"
    """The file system takes no writes; reading goes on."""

    FULL = "full"
    """No space, quota used up, or the file would be too large."""

    BROKEN = "broken"
    """The device failed: what was written lately counts only after it was read back from the disk."""


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

# What open(2) gives, but never fsync(2) of what is open.
_OF_OPENING = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
)


def fault_of(error: OSError) -> Fault:
    """What kind of fault an error is."""
    if error.errno in _FULL:
        return Fault.FULL
    if error.errno == errno.EROFS:
        return Fault.READ_ONLY
    return Fault.PASSING if error.errno in _PASSING else Fault.BROKEN


def numbers_of(fault: Fault) -> frozenset[int]:
    """The error numbers of a kind, for libraries that tell them as text only; none for BROKEN: all others are."""
    return {Fault.PASSING: _PASSING, Fault.FULL: _FULL, Fault.READ_ONLY: frozenset({errno.EROFS})}.get(
        fault, frozenset()
    )


def never_flushed(error: OSError) -> bool:
    """Whether making a directory durable failed before it began, so that it can simply be done again.

    After a flush itself has failed, a second one that succeeds says nothing: the kernel has dropped the pages.
    """
    return error.errno in _OF_OPENING
