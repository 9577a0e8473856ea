"""A call's own process: forked ahead of its request, and used once, or for calls of one user one after another."""

from __future__ import annotations

import os
import signal
import socket
import sys
from types import ModuleType

from taskworker.sandbox.frames import FRAME_BYTES_MAX, Cause, Kind, encode
from taskworker.sandbox.inside import kernel
from taskworker.sandbox.inside.channel import CallFailure, Channel, ChannelClosed
from taskworker.sandbox.inside.failures import text_of
from taskworker.sandbox.inside.init import SCRATCH

CHANNEL = 3
"""The one descriptor that a call has beside standard input, output and error."""
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
REHEARSALS = 24
"""Code adapts after eight calls, and what it has adapted to is settled some calls later."""


def main(
    descriptors: list[int],
    program: ModuleType,
    right: kernel.RightToChroot,
    second_filter: kernel.Filter,
    channel: Channel,
    result_bytes: int,
    descriptors_end: int,
) -> None:
    """Wait for a request, run it, give its result, and so on until the host hangs up; does not return.

    What is touched here is copied for every call, page by page: so as little as can be.

    Args:
        descriptors: its channel, where its output and its errors go, and its root directory.
        program: with ``run``.
        right: to change the root directory; given up when that is done.
        second_filter: to be put on.
        channel: of the descriptor `CHANNEL`, made ahead of the fork.
        result_bytes: how large a result may be.
        descriptors_end: no descriptor has this number, or a higher one.
    """
    status = 1
    try:
        connection, output, errors, root = descriptors
        os.setsid()
        os.fchdir(root)
        os.chroot(".")
        os.chdir(SCRATCH)
        right.drop()
        _own_null_for(0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        if connection != CHANNEL:
            os.dup2(connection, CHANNEL)
        os.closerange(CHANNEL + 1, descriptors_end)
        second_filter.install()
        channel.hello()
        _serve(program, channel, result_bytes)
        status = 0
    except BaseException as error:  # the last resort of a process that has no caller
        os.write(2, f"the call could not begin: {type(error).__name__}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(status)


def _own_null_for(descriptor: int) -> None:
    """Open ``/dev/null`` anew: the zygote's has flags and locks that all its calls would have in common."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)


def rehearse(program: ModuleType) -> None:
    """Go through calls that call nothing, in the process from which calls will be forked.

    The interpreter adapts code to its use as it runs it (PEP 659), and writes into it to do so. What has adapted
    before the fork is quicker in all calls, and their memory is not copied for it.
    """
    for _ in range(REHEARSALS):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            channel = Channel(theirs.fileno())
            channel.hello()
            ours.sendall(encode(Kind.REQUEST, program.REHEARSAL))
            ours.shutdown(socket.SHUT_WR)
            _serve(program, channel, FRAME_BYTES_MAX)


def _serve(program: ModuleType, channel: Channel, result_bytes: int) -> None:
    try:
        while True:
            _run(program, channel, channel.request(), result_bytes)
    except ChannelClosed:
        return


def _run(program: ModuleType, channel: Channel, request: bytes, result_bytes: int) -> None:
    try:
        result = program.run(request, channel)
    except CallFailure as failure:
        _end()
        channel.fail(failure.cause, failure.type_name, failure.text)
    except MemoryError as error:
        _end()
        channel.fail(Cause.MEMORY, type(error).__name__, text_of(error))
    except BaseException as error:
        _end()
        channel.fail(Cause.RAISED, type(error).__name__, text_of(error))
    else:
        _end()
        channel.finish(result, result_bytes)


def _end() -> None:
    """What the function has written goes first; and its alarms are none of a later call's in this process."""
    for timer in _TIMERS:
        signal.setitimer(timer, 0)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # closed by the function, or no stream at all: its result is no worse for that
            continue
