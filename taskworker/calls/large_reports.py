"""Turns for reports of calls that printed much: they are converted a few at a time.

A report of 16,384 lines takes a tenth of a second of the interpreter. Where many calls that print so much end at once,
a thread for each of them would have the interpreter in turns of milliseconds, and what others wait for, such as the
heartbeats of workers, would have it once in as many turns.
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
    """To be held while so many lines are converted; those of few lines wait for nobody."""
    return _turns if lines > _LARGE_LINES else _none
