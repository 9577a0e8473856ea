"""Changing from root to other user ids: in the base, and in the process that becomes a function's init."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

BASE_ID = 1
"""Id of the base in its user namespace if the worker runs as root; there, id 0 is the worker's root."""
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION_3 = 0x2008_0522
_GIVING_IDS = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID."""
_libc = ctypes.CDLL(None, use_errno=True)


def leave_root() -> None:
    """Switch the base from root to `BASE_ID`, keeping only the right to set the ids of processes that it forks."""
    if os.getuid() != 0:
        return
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    become(BASE_ID)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", _GIVING_IDS, _GIVING_IDS, 0, 0, 0, 0)), "keep the right to ids")
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "end with the worker")  # a new id resets it


def become(uid: int) -> None:
    """Switch to a user and group id. The process stays able to write the id maps of a namespace that it makes."""
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "keep /proc/self")


def _check(status: int, doing: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")
