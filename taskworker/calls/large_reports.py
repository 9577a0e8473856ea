"""Limits how many reports of calls with much output are converted at the same time.

Converting a report of 16,384 lines holds the interpreter for a tenth of a second. If many such calls ended at once,
their threads would take turns of milliseconds each, and urgent work, such as workers' heartbeats, would get only one
turn among all of theirs.
"""

from __future__ import annotations

import contextlib
import threading
from contextlib import AbstractContextManager

_LARGE_LINES = 256
_AT_ONCE = 2
_turns = threading.BoundedSemaphore(_AT_ONCE)
_none: AbstractContextManager[object] = contextlib.nullcontext()


def conversion_permit(lines: int) -> AbstractContextManager[object]:
    """Hold this context while converting a report of so many lines; reports of few lines never wait."""
    return _turns if lines > _LARGE_LINES else _none
