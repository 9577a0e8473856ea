"""The standard streams of a command, whichever of them the process was given.

``cron``, daemons and wrappers may close some (``<&-``, ``>&-``). Nothing may be opened in their place, a command
whose input or output is missing must say so, and one that has done its work must not fail over a line of text
that nobody can read.
"""

from __future__ import annotations

import os
import sys
from io import FileIO
from typing import Literal, TextIO

from storage.system.descriptors import STANDARD_DESCRIPTORS, occupy_standard_descriptors
from taskworker.cli.exits import ExitCode, Failure

_IN, _OUT, _ERROR = STANDARD_DESCRIPTORS
_closed: frozenset[int] = frozenset()


def open_standard_streams() -> None:
    """Make all three streams usable; to be called before anything else is opened.

    Texts for a closed output, and errors for a closed standard error, are written to the null device.
    """
    global _closed
    _closed = occupy_standard_descriptors()
    if _ERROR in _closed:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _ERROR, inheritable=True)  # libraries and programs started from here write there, too
        os.close(null)
    # The interpreter has made None of a stream whose descriptor was closed.
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: Literal["r", "w"]) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123


def standard_input() -> FileIO:
    """Standard input as raw bytes.

    Not ``sys.stdin``, whose buffer has a lock: a thread that still waits for input when the command
    ends would hold it, and the interpreter aborts over that.
    """
    check_input()
    return FileIO(_IN, "rb", closefd=False)


def standard_output() -> FileIO:
    """Standard output as raw bytes."""
    check_output()
    return FileIO(_OUT, "wb", closefd=False)


def check_input() -> None:
    """Refuse to take a closed standard input for an empty one."""
    if _IN in _closed:
        raise Failure("standard input is closed, so there is nothing to read; redirect it from a file", ExitCode.USAGE)


def check_output() -> None:
    """Refuse to do what is only done for its output when that cannot be had."""
    if _OUT in _closed:
        raise Failure("standard output is closed, so the result has nowhere to go; redirect it", ExitCode.USAGE)
