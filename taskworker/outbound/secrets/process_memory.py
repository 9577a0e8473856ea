"""What the process that has the secrets keeps to itself: its memory, and what it was started with."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Let neither this process nor its children leave what they know in a core dump.

    A limit of 0 would keep it out of files only: a core_pattern that is a pipe gets it all the same, unless the
    limit is 1 (core(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def keep_private() -> None:
    """Leave no core dump, and let no other process of this user read or trace this one (prctl(2), PR_SET_DUMPABLE)."""
    forbid_core_dumps()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
