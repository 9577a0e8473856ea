"""Protects the memory and environment of a process that holds secrets."""

from __future__ import annotations

import ctypes
import os
import resource

_PR_SET_DUMPABLE = 4


def forbid_core_dumps() -> None:
    """Disable core dumps of this process and its children.

    A limit of 0 only prevents files: if core_pattern is a pipe, it gets the dump nevertheless, unless the limit is 1
    (core(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def keep_private() -> None:
    """Disable core dumps, and keep this user's other processes from reading or tracing this one (PR_SET_DUMPABLE)."""
    forbid_core_dumps()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
