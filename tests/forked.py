"""Runs the command line in processes that are forked from one that has loaded it.

A command spends nine tenths of its processor time on loading modules, and the tests run some thousand commands. A
forked one has its own arguments, environment, directory and standard streams, runs ``main`` as every start does, and
ends by the same exit codes and signals. What is about starting itself is tested by commands that are really started.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, NamedTuple

Argument = str | os.PathLike[str]
_LENGTH = struct.Struct("!I")
_NUMBER = struct.Struct("!i")
_ONLY_AT_STARTS = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "GLIBC_", "GRPC_", "COVERAGE_")
"""How variables begin that a process reads while it starts."""

_TOP = Path(__file__).parent.parent
_LOADED = (
    "taskworker.cli.embedded",
    "taskworker.cli.remote",
    "storage.erasure.isal_codec",
    "taskworker.apps.pool_server",
    "taskworker.services.store_server",
    "taskworker.worker.functions",
    "taskworker.worker.volume",
)
"""What commands load late, as some do without."""

_TO_CHILDREN = frozenset(("PYTHONFAULTHANDLER",))
"""Variables of these that are as good afterwards."""


class Command:
    """A running ``taskworker``; the methods are those of ``subprocess.Popen``.

    Args:
        arguments: of the command line.
        cwd: its directory.
        env: all of its environment.
        stdin: ``PIPE``, ``DEVNULL``, or a file.
        stdout: likewise.
        stderr: likewise.

    Attributes:
        stdin: what it reads, if that is a pipe.
        stdout: what it writes, likewise.
        stderr: likewise.
        returncode: None as long as it is not known that it has ended.
    """

    def __init__(
        self,
        arguments: Sequence[Argument],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int | IO[bytes],
        stdout: int | IO[bytes],
        stderr: int | IO[bytes],
    ) -> None:
        self.args = [os.fspath(argument) for argument in arguments]
        self.returncode: int | None = None
        with contextlib.ExitStack() as theirs:
            self.stdin, read = _end(stdin, theirs, writes=False)
            self.stdout, written = _end(stdout, theirs, writes=True)
            self.stderr, told = _end(stderr, theirs, writes=True)
            self._status, status = os.pipe()
            theirs.callback(os.close, status)
            request = {"arguments": self.args, "cwd": str(cwd), "env": dict(env)}
            with _MAKING:
                template = _template()
            template.ask(json.dumps(request).encode(), [read, written, told, status])
        self.pid = self._number()
        self._waiting = threading.Lock()

    def _number(self) -> int:
        raw = os.read(self._status, _NUMBER.size)
        if not raw:
            raise RuntimeError("the process that commands are forked from has ended")
        return int(_NUMBER.unpack(raw)[0])

    def poll(self) -> int | None:
        """The exit code if it has ended, negative if by a signal; otherwise None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code once it has ended."""
        with self._waiting:
            if self.returncode is None:
                if timeout is not None and not _is_readable(self._status, timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout)
                self.returncode = os.waitstatus_to_exitcode(self._number())
                os.close(self._status)
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: bytes = b"", timeout: float | None = None) -> tuple[bytes, bytes]:
        """Write to it, read all that it writes, and wait for its end."""
        with ThreadPoolExecutor(3) as threads:
            threads.submit(_give, self.stdin, given)
            out, err = (threads.submit(_all_of, stream) for stream in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return out.result(), err.result()


def run(
    arguments: Sequence[Argument],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes = b"",
    timeout_s: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end.

    It is really started if a variable in ``env`` matters to the start of a process, such as its language.
    """
    if not is_possible(env):
        started = [sys.executable, "-m", "taskworker", *arguments]
        return subprocess.run(
            started, cwd=cwd, env=env, input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
    pipe = subprocess.PIPE
    command = Command(arguments, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = command.communicate(stdin, timeout_s)
    assert command.returncode is not None
    return subprocess.CompletedProcess(command.args, command.returncode, out, err)


def is_possible(env: Mapping[str, str]) -> bool:
    """Whether tests run, and nothing in this environment matters only to the start of a process."""
    if "PYTEST_VERSION" not in os.environ:  # campaigns also measure processes, which are really started then
        return False
    here = os.environ
    return all(
        env.get(name) == here.get(name)
        for name in {*env, *here}
        if name.startswith(_ONLY_AT_STARTS) and name not in _TO_CHILDREN
    )


def _end(wanted: int | IO[bytes], theirs: contextlib.ExitStack, *, writes: bool) -> tuple[IO[Any] | None, int]:
    """This end of a stream, if there is one, and the descriptor of the command's end."""
    if not isinstance(wanted, int):
        return None, wanted.fileno()
    if wanted == subprocess.DEVNULL:
        null = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, null)
        return None, null
    read, write = os.pipe()
    their, our = (write, read) if writes else (read, write)
    theirs.callback(os.close, their)
    return open(our, "rb" if writes else "wb"), their  # noqa: PTH123 - a descriptor, closed by whoever uses it


def _give(stream: IO[bytes] | None, given: bytes) -> None:
    if stream is not None:
        with contextlib.suppress(BrokenPipeError), stream:  # it need not read all
            stream.write(given)


def _all_of(stream: IO[bytes] | None) -> bytes:
    if stream is None:
        return b""
    with stream:
        return stream.read()


def _is_readable(descriptor: int, timeout: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout) * 1000))


class _Template:
    """The process that has loaded the command line, and forks commands on request."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=_TOP, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        atexit.register(self._stop)

    def ask(self, request: bytes, descriptors: list[int]) -> None:
        with self._asking:
            socket.send_fds(self._socket, [_LENGTH.pack(len(request))], descriptors)
            self._socket.sendall(request)

    def _stop(self) -> None:
        self._socket.close()
        self._process.wait()


_template = functools.cache(_Template)
_MAKING = threading.Lock()


# -- the process that is forked --------------------------------------------------------------------


def _load() -> None:
    """Load what commands load, without doing anything that a forked process could not go on with."""
    os.environ["GRPC_VERBOSITY"] = "NONE"  # as main does
    from taskworker.cli import app

    for name in {*app._MODULES.values(), *app._GROUPS.values()}:
        import_module(f"taskworker.cli.{name}")
    for name in _LOADED:
        import_module(name)
    assert threading.active_count() == 1, "threads would be missing in forked processes"
    gc.collect()
    gc.freeze()


class _Running(NamedTuple):
    """A forked process, and the descriptor through which its end is told."""

    pid: int
    status: int


class _Forks:
    """Forks commands for whoever asks through a socket, and says how they end."""

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked
        self._running: dict[int, _Running] = {}
        """By the descriptor that becomes readable when the process ends."""
        self._poller = select.poll()
        self._poller.register(asked, select.POLLIN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of the terminal is for the tests

    def next_command(self) -> None:
        """Returns in a forked process, ready to run its command; ends this one if nobody can ask any more."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor != self._asked.fileno():
                    self._tell(descriptor)
                elif self._fork():
                    return

    def _fork(self) -> bool:
        """Fork a command; true in its process."""
        head, descriptors, _, _ = socket.recv_fds(self._asked, _LENGTH.size, 4)
        if not head:
            os._exit(0)
        request = json.loads(self._rest(_LENGTH.unpack(head)[0]))
        pid = os.fork()
        if pid == 0:
            self._become(request, descriptors)
            return True
        status = descriptors.pop()
        for descriptor in descriptors:
            os.close(descriptor)
        end = os.pidfd_open(pid)
        self._running[end] = _Running(pid, status)
        self._poller.register(end, select.POLLIN)
        _say(status, pid)
        return False

    def _rest(self, length: int) -> bytes:
        raw = bytearray()
        while len(raw) < length:
            some = self._asked.recv(length - len(raw))
            if not some:
                os._exit(0)
            raw += some
        return bytes(raw)

    def _tell(self, end: int) -> None:
        """Say how a process has ended."""
        self._poller.unregister(end)
        os.close(end)
        ended = self._running.pop(end)
        _, status = os.waitpid(ended.pid, 0)
        _say(ended.status, status)
        os.close(ended.status)

    def _become(self, request: dict[str, Any], descriptors: list[int]) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._asked.close()
        for number, descriptor in enumerate(descriptors[:3]):
            os.dup2(descriptor, number)
        others = (descriptor for end, running in self._running.items() for descriptor in (end, running.status))
        for descriptor in (*descriptors, *others):
            os.close(descriptor)
        sys.stdin = _stream(0, "r")
        sys.stdout = _stream(1, "w")
        sys.stderr = _stream(2, "w", errors="backslashreplace", buffering=1)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.path[0] = request["cwd"]  # as -m puts it there
        time.tzset()
        if os.environ.get("PYTHONFAULTHANDLER"):
            faulthandler.enable()
        sys.argv = ["taskworker", *request["arguments"]]


def _say(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked has ended
        os.write(status, _NUMBER.pack(number))


def _stream(number: int, mode: str, **options: Any) -> TextIOWrapper:
    """A standard stream as the interpreter makes it."""
    stream = open(number, mode, encoding="utf-8", closefd=False, **options)  # noqa: SIM115 - left to the command
    assert isinstance(stream, TextIOWrapper)
    return stream


if __name__ == "__main__":
    _load()
    _Forks(socket.socket(fileno=int(sys.argv[1]))).next_command()
    from taskworker.cli import main

    main()
