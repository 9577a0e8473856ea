"""A function's zygote: user code is imported here, once, and every call is a fork of this process.

What runs here after the import is in the hands of the user's code. So nothing relies on it: the kernel holds
this process by what `main` takes away first, and the host checks from outside that it is gone.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from types import ModuleType
from typing import TextIO

from taskworker.sandbox.inside import call, kernel
from taskworker.sandbox.inside.channel import Channel
from taskworker.sandbox.inside.init import CODE, SCRATCH, Start

PROGRAM = "taskworker.sandbox.inside.program"
PROGRAM_PREFIX = b"program:"
"""A document that begins with it names, up to a line feed, the module to use in place of `PROGRAM`."""
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    # Libraries of numerics would start threads while they are imported, which the calls would not have.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
THREAD_STACK_BYTES = 1 << 20
"""Threads' stacks count as memory of the call: eight megabytes each, the usual, would be too many."""
TEXT_BYTES_MAX = 60_000
JUDGED = b"J"
"""The first that a zygote says: with a descriptor by which the host judges what processes start."""
CONFINED = b"C"
UNJUDGED = b"U"
"""The kernel hands no system calls over for the host to judge; with the reason."""
GO = b"G"
READY = b"R"
BROKEN = b"B"
SPAWN = b"S"
REFUSED = b"N"
"""With a call's name and the reason: there was no room for its process."""
REAP = b"W"
"""Reap calls that have ended; so is done before every fork, too."""
STATUS = b"?"
ENDED = b"X"
ENDING = struct.Struct("!iQ")
"""How a call's process ended: its wait status, and the most bytes it had in memory."""
ENDINGS_MAX = 256
_MESSAGE_BYTES = 64
_ANCILLARY_BYTES = socket.CMSG_SPACE(4 * struct.calcsize("i"))


def main(
    start: Start, connection: int, document: int, starts_filter: int, first_filter: int, second_filter: int
) -> None:
    """Give up all rights, import the user's code, and fork calls; does not return."""
    control = socket.socket(fileno=connection)
    try:
        document_bytes = _read(document)
        filters = [kernel.Filter(_read(one)) for one in (starts_filter, first_filter, second_filter)]
        kernel.close_all_but({connection})
        kernel.to_null(0, 1, 2)
        sys.stdout, sys.stderr = _written_to(1), _written_to(2)
        os.setsid()
        kernel.drop_capabilities_but_chroot()
        kernel.forbid_new_privileges()
        _have_starts_judged(filters[0], start.seccomp, control)
        filters[1].install()
        control.send(CONFINED)
        if control.recv(1) != GO:
            os._exit(1)
        program = _prepare(control, document_bytes)
        if program is not None:
            _Zygote(start, control, program, filters[2]).serve()
    except BaseException as error:  # the last resort of a process that has no caller
        control.send(BROKEN + f"{type(error).__name__}: {error}".encode(errors="replace")[:TEXT_BYTES_MAX])
        os._exit(1)
    os._exit(0)


def _have_starts_judged(filter_of_starts: kernel.Filter, seccomp: int, control: socket.socket) -> None:
    """Put the filter on that hands starts to the host, if it judges them, and give it the descriptor for that."""
    if not seccomp:
        return
    try:
        listener = filter_of_starts.install_judged(seccomp)
    except OSError as error:
        control.send(UNJUDGED + str(error).encode())
        os._exit(1)
    socket.send_fds(control, [JUDGED], [listener])
    os.close(listener)


def _written_to(descriptor: int) -> TextIO:
    """Open a stream that calls inherit; they have the descriptor point to a pipe of their own."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _prepare(control: socket.socket, document: bytes) -> ModuleType | None:
    os.chdir(CODE)
    os.environ.update(_ENVIRONMENT)
    _set_scratch()
    sys.path.insert(0, CODE)
    threading.stack_size(THREAD_STACK_BYTES)
    try:
        name = PROGRAM
        if document.startswith(PROGRAM_PREFIX):
            first, _, document = document.partition(b"\n")
            name = first.removeprefix(PROGRAM_PREFIX).decode()
        program = importlib.import_module(name)
        program.prepare(document)
        _set_scratch()  # who imports it finds it by TMPDIR, but not what is there only in calls
    except BaseException as error:
        control.send(BROKEN + _text_of(error).encode(errors="replace")[-TEXT_BYTES_MAX:])
        return None
    gc.freeze()  # no collection before: it would touch, and so copy, what all functions share
    control.send(READY)
    return program


def _set_scratch() -> None:
    """Have ``tempfile``, if it is loaded, not look for a directory that it can write to."""
    if (tempfile := sys.modules.get("tempfile")) is not None:
        vars(tempfile)["tempdir"] = SCRATCH


def _text_of(error: BaseException) -> str:
    """Give what `FunctionBroken` says: the program's own text of it, where it has one."""
    text = getattr(error, "broken_text", None)
    return text if isinstance(text, str) else "".join(traceback.format_exception(error))


class _Zygote:
    """After each fork, every page that is written to here is copied: so `serve` touches as little as it can."""

    def __init__(self, start: Start, control: socket.socket, program: ModuleType, second_filter: kernel.Filter) -> None:
        self._start = start
        self._control = control
        self._program = program
        self._right = kernel.RightToChroot()
        self._filter = second_filter
        self._channel = Channel(call.CHANNEL)
        self._descriptors_end = kernel.descriptors_end()
        self._waiting = kernel.Waiting()
        self._names: dict[int, bytes] = {}
        self._endings: dict[bytes, bytes] = {}

    def serve(self) -> None:
        """Fork a call for every message, and say on demand how one ended; return when the host has hung up."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # no handler: it would run amid all else, and be copied
        receive = self._control.recvmsg
        while True:
            content, ancillary, _, _ = receive(_MESSAGE_BYTES, _ANCILLARY_BYTES)
            if not content:
                return
            self._reap()
            kind, name = content[:1], content[1:]
            if kind == SPAWN:
                self._spawn(name, memoryview(ancillary[0][2]).cast("i").tolist() if ancillary else [])
            elif kind == STATUS:
                self._control.send(ENDED + name + self._endings.pop(name, b""))

    def _spawn(self, name: bytes, descriptors: list[int]) -> None:
        try:
            child = os.fork()
        except OSError as error:  # no processes, or no memory: there are others to serve, and more may come
            self._control.send(REFUSED + name + str(error).encode()[:TEXT_BYTES_MAX])
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if child == 0:
            call.main(
                descriptors,
                self._program,
                self._right,
                self._filter,
                self._channel,
                self._start.result_bytes,
                self._descriptors_end,
            )
        self._names[child] = name
        for descriptor in descriptors:
            os.close(descriptor)

    def _reap(self) -> None:
        while self._names and (child := self._waiting.ended()):
            name = self._names.pop(child, None)
            if name is not None:
                self._remember(name, ENDING.pack(self._waiting.status, self._waiting.peak_bytes))

    def _remember(self, name: bytes, ending: bytes) -> None:
        while len(self._endings) >= ENDINGS_MAX:
            self._endings.pop(next(iter(self._endings)))
        self._endings[name] = ending


def _read(descriptor: int) -> bytes:
    content = b""
    while part := os.pread(descriptor, 16 << 20, len(content)):
        content += part
    return content
