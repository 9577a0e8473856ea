"""The process of a call: forked ahead of its request, and used once or for successive calls of one user."""

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
"""The only descriptor of a call besides standard input, output and error."""
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
REHEARSALS = 24
"""How many calls to rehearse: the interpreter specialises code after eight calls, and needs some more to settle."""


def main(
    descriptors: list[int],
    program: ModuleType,
    right: kernel.RightToChroot,
    second_filter: kernel.Filter,
    channel: Channel,
    result_bytes: int,
    descriptors_end: int,
) -> None:
    """Serve requests until the host hangs up; does not return.

    Every memory page that is written here is copied for each call, so this writes as little as possible.

    Args:
        descriptors: the channel, standard output, standard error, and the root directory.
        program: module with ``run``.
        right: capability to change the root directory; dropped after that.
        second_filter: filter to install.
        channel: channel over the descriptor `CHANNEL`, made before the fork.
        result_bytes: the largest size of a result.
        descriptors_end: all descriptors are lower than this number.
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
    """Open ``/dev/null`` again, as all calls would share flags and locks of the zygote's open file."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)


def rehearse(program: ModuleType) -> None:
    """Run dummy calls in the process from which calls will be forked.

    The interpreter specialises code as it runs it (PEP 659), which writes to the code's memory. Code specialised before
    the fork runs faster in all calls, and its memory is not copied.
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
    """Flush the function's output before its result is sent, and clear its alarms for later calls in this process."""
    for timer in _TIMERS:
        signal.setitimer(timer, 0)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the function may have closed or replaced it, which does not matter for its result
            continue
