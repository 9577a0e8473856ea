"""The standard streams of a command, of which any may be closed.

``cron``, daemons and wrappers may close some (``<&-``, ``>&-``). No other file may then get their descriptors, a
command without the input or output it needs must say so, and a command that has done its work must not fail
because of a line of text that nobody can read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import TYPE_CHECKING, Literal, TextIO

from storage.system.descriptors import STANDARD_DESCRIPTORS, occupy_standard_descriptors
from taskworker.cli.exits import ExitCode, Failure

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_IN, _OUT, _ERROR = STANDARD_DESCRIPTORS
_closed: frozenset[int] = frozenset()


def open_standard_streams() -> None:
    """Make all three streams usable; call it before anything else is opened.

    What is written to a closed standard output or standard error goes to the null device.
    """
    global _closed
    _closed = occupy_standard_descriptors()
    if _ERROR in _closed:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, _ERROR, inheritable=True)  # libraries and child processes write there, too
        os.close(null)
    # For a closed descriptor, the interpreter has set the stream to None.
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    sys.stderr = sys.stderr or _null("w")


def _null(mode: Literal["r", "w"]) -> TextIO:
    return open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123


def standard_input() -> FileIO:
    """Standard input as raw bytes.

    Not ``sys.stdin``, whose buffer has a lock: the interpreter aborts if a thread that waits for input still holds
    this lock when the command ends.
    """
    check_input()
    return FileIO(_IN, "rb", closefd=False)


def standard_output() -> FileIO:
    """Standard output as raw bytes."""
    check_output()
    return _Output(_OUT, "wb", closefd=False)


class _Output(FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        with writing_output():
            return super().write(data)


@contextmanager
def writing_output() -> Iterator[None]:
    """Within this context, a failure to write to standard output is named, and what is left of the output dropped.

    Raises:
        BrokenPipeError: whoever read the output has stopped reading.
        OSError: it could not be written for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise OSError(error.errno, error.strerror, "standard output") from None


def drop_output() -> None:
    """Discard buffered output instead of writing it at exit: the reader has gone, or it cannot be written."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _OUT, inheritable=True)
    os.close(null)


def check_input() -> None:
    """Fail if standard input is closed, instead of taking it as empty."""
    if _IN in _closed:
        raise Failure("standard input is closed, so there is nothing to read; redirect it from a file", ExitCode.USAGE)


def check_output() -> None:
    """Fail if standard output is closed, for commands that are useless without it."""
    if _OUT in _closed:
        raise Failure("standard output is closed, so the result has nowhere to go; redirect it", ExitCode.USAGE)
