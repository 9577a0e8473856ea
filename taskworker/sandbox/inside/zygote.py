"""A function's zygote: imports user code once, and forks a process for every call.

After the import, user code controls this process, so nothing relies on what it does. `main` gives up the process's
rights first, the kernel enforces this, and the host checks it from outside.
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
"""If a document begins with this, the rest of its first line is the module to use instead of `PROGRAM`."""
_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    # Numerical libraries would start threads at their import, which forked calls would not have.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
THREAD_STACK_BYTES = 1 << 20
"""Stacks of threads count as the call's memory: the usual eight megabytes each would be too much."""
TEXT_BYTES_MAX = 60_000
JUDGED = b"J"
"""The zygote's first message: with a descriptor by which the host judges starts of threads and timers."""
CONFINED = b"C"
UNJUDGED = b"U"
"""Sent with the reason: the kernel cannot pass system calls to the host for judgement."""
GO = b"G"
READY = b"R"
BROKEN = b"B"
SPAWN = b"S"
REFUSED = b"N"
"""Sent with a call's name and the reason: there was no room for its process."""
REAP = b"W"
"""Makes the zygote reap ended calls, as any other message also does."""
STATUS = b"?"
ENDED = b"X"
ENDING = struct.Struct("!iQ")
"""How a call's process ended: its wait status, and its peak memory in bytes."""
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
    """If the host judges starts, install the filter that reports them, and send the host its descriptor."""
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
    """Open a text stream that calls inherit; each call connects the descriptor to its own pipe."""
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
        _set_scratch()  # user code may have imported tempfile, which cannot find the scratch directory here
    except BaseException as error:
        control.send(BROKEN + _text_of(error).encode(errors="replace")[-TEXT_BYTES_MAX:])
        return None
    gc.freeze()  # without gc.collect(), which would write to, and thereby copy, memory shared by all functions
    control.send(READY)
    return program


def _set_scratch() -> None:
    """Tell ``tempfile``, if it is loaded, its directory, so that it does not search for a writable one."""
    if (tempfile := sys.modules.get("tempfile")) is not None:
        vars(tempfile)["tempdir"] = SCRATCH


def _text_of(error: BaseException) -> str:
    """Return the text for `FunctionBroken`: the exception's ``broken_text`` if it has one, else its traceback."""
    text = getattr(error, "broken_text", None)
    return text if isinstance(text, str) else "".join(traceback.format_exception(error))


class _Zygote:
    """Forks calls. After each fork, every memory page written here is copied, so `serve` writes to few of them."""

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
        """Fork calls and report how they ended, as the host asks; return when the host hangs up."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a handler would run at any time, and cause copies of memory
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
        except OSError as error:  # no room for processes or memory now, but later there may be
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
