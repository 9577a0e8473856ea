"""A call's own process: forked ahead of its request, used once."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from types import ModuleType

from taskworker.sandbox.frames import Cause
from taskworker.sandbox.inside import kernel
from taskworker.sandbox.inside.channel import Channel
from taskworker.sandbox.inside.init import CALLS

CHANNEL = 3
"""The one descriptor that a call has beside standard input, output and error."""


def main(
    name: str, descriptors: list[int], program: ModuleType, second_filter: kernel.Filter, result_bytes: int
) -> None:
    """Wait for the request, run it, give its result; does not return.

    What is touched here is copied for every call, page by page: so as little as can be.
    """
    status = 1
    try:
        connection, output, errors = descriptors
        os.setsid()
        os.dup2(output, 1)
        os.dup2(errors, 2)
        if connection != CHANNEL:
            os.dup2(connection, CHANNEL)
        kernel.close_all_but({CHANNEL})
        _settle(f"{CALLS}/{name}")
        second_filter.install()
        channel = Channel(socket.socket(fileno=CHANNEL))
        channel.hello()
        _run(program, channel, result_bytes)
        status = 0
    except BaseException as error:  # the last resort of a process that has no caller
        os.write(2, f"the call could not begin: {type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(status)


def _settle(home: str) -> None:
    os.chdir(home)
    os.environ["HOME"] = os.environ["TMPDIR"] = home
    tempfile.tempdir = home


def _run(program: ModuleType, channel: Channel, result_bytes: int) -> None:
    request = channel.request()
    try:
        result = program.run(request, channel)
    except MemoryError as error:
        _flush()
        channel.fail(Cause.MEMORY, type(error).__name__, str(error))
    except BaseException as error:
        _flush()
        channel.fail(Cause.RAISED, type(error).__name__, str(error))
    else:
        _flush()
        channel.finish(result, result_bytes)
    channel.wait_for_end()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by the function, or nobody reads it
            stream.flush()
