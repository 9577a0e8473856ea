"""What the process that has the secrets keeps to itself: its memory, and what it was started with."""

from __future__ import annotations

import ctypes
import os

from taskworker.sandbox.inside.kernel import forbid_core_dumps

_PR_SET_DUMPABLE = 4


def keep_private() -> None:
    """Leave no core dump, and let no other process of this user read or trace this one (prctl(2), PR_SET_DUMPABLE)."""
    forbid_core_dumps()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
