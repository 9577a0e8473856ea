"""Leaving the ids of root: those of the base, and those of the process that becomes a function's init."""

from __future__ import annotations

import ctypes
import os
import signal
import struct

BASE_ID = 1
"""In the namespace of a base that a worker run as root started; in there, 0 is that root's."""
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_CAPABILITY_VERSION_3 = 0x2008_0522
_GIVING_IDS = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID."""
_libc = ctypes.CDLL(None, use_errno=True)


def leave_root() -> None:
    """Have the base go on as `BASE_ID`, with the right to give ids to what it forks, and no other."""
    if os.getuid() != 0:
        return
    _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    become(BASE_ID)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", _GIVING_IDS, _GIVING_IDS, 0, 0, 0, 0)), "keep the right to ids")
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "end with the worker")  # a new id resets it


def become(uid: int) -> None:
    """Take on an id, as user and as group; this process may still write the maps of a namespace it makes."""
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "keep /proc/self")


def _check(status: int, doing: str) -> None:
    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{doing}: {os.strerror(number)}")
