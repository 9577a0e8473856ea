"""The host's handle on the process of a call: its channel and output, and how to limit, measure and end it."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taskworker.sandbox import proof
from taskworker.sandbox.errors import SandboxUnavailable
from taskworker.sandbox.image import Limits
from taskworker.sandbox.inside import init
from taskworker.sandbox.protocol import CallProtocol

FUNCTION_TASKS_MAX = 4096
"""Processes and threads of one function. `processes_max` says for how many calls that is enough."""
IMPORT_TASKS_MAX = 512
"""Processes and threads of one function while its code is imported."""
_TASKS_BESIDES = 96
"""Part of `FUNCTION_TASKS_MAX` for init and zygote, for calls that are ending, and for threads that are just being
started."""
SIGNALS_MAX = 8192
"""Pending signals and POSIX timers of all calls of one function together. One process has `starts.TIMERS_MAX`."""
STACK_BYTES = 8 << 20
KILLED_FIRST = 300
"""``oom_score_adj``, out of 1000, of functions' processes. When the machine runs out of memory, the kernel ends them
rather than the worker or the base, and first those with the most memory: calls rather than zygotes."""
NO_CORE_BYTES = 1
"""Limit on core dumps: smaller than any core. With 0, the kernel would still pipe cores to the machine's handler."""
REST_CPU_S = 0.02
"""Processor time that a kept process may use between two calls, to send its result and to wait for a request."""
_RECEIVE_BYTES = 256 << 10
_ROOM_S = 0.25
"""How long a sender waits for room before it checks its deadline again."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPU_CLOCK = 2


_FOR_GOOD = (
    (resource.RLIMIT_SIGPENDING, SIGNALS_MAX),
    (resource.RLIMIT_MSGQUEUE, 0),
    (resource.RLIMIT_MEMLOCK, 0),
    (resource.RLIMIT_NICE, 0),
    (resource.RLIMIT_RTPRIO, 0),
    (resource.RLIMIT_STACK, STACK_BYTES),
)
CallLimits = tuple[tuple[int, tuple[int, int]], ...]
"""Kinds of limits (``resource.RLIMIT_*``), each with its soft and hard value."""


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of a process's address space and data, in bytes."""

    address_space: int
    data: int


def size_of(pid: int) -> Size:
    """Measure the address space and data of a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return Size(int(fields[0]) * _PAGE_BYTES, int(fields[5]) * _PAGE_BYTES)


def processes_max(limits: Limits) -> int:
    """Return how many processes a function may have for calls, so that each can have all threads of its limits."""
    return max(1, (FUNCTION_TASKS_MAX - _TASKS_BESIDES) // limits.threads)


def limit_zygote(pid: int, limits: Limits) -> None:
    """Limit a zygote before it imports user code.

    Some limits are permanent. Those for the import are soft limits, which the zygote cannot raise, and which
    `limit_calls` replaces.
    """
    for kind, most in _FOR_GOOD:
        resource.prlimit(pid, kind, _allowed(pid, kind, most, most))
    Path(f"/proc/{pid}/oom_score_adj").write_text(str(KILLED_FIRST))
    begun_with = size_of(pid)
    for kind, soft in (
        (resource.RLIMIT_AS, begun_with.address_space + limits.memory_bytes),
        (resource.RLIMIT_NPROC, IMPORT_TASKS_MAX),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, NO_CORE_BYTES),
    ):
        resource.prlimit(pid, kind, _allowed(pid, kind, soft, resource.RLIM_INFINITY))


def limit_calls(pid: int, limits: Limits, calls: int = 1) -> CallLimits:
    """Limit a zygote that has imported its code; its calls inherit these limits.

    Args:
        pid: process id of the zygote.
        limits: limits of each call.
        calls: how many calls one process may serve.

    Returns:
        The limits to set on each call's process itself.
    """
    begun_with = size_of(pid)
    for kind, most in (
        (resource.RLIMIT_AS, begun_with.address_space + limits.memory_bytes),
        (resource.RLIMIT_DATA, begun_with.data + limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NPROC, FUNCTION_TASKS_MAX),
        (resource.RLIMIT_CORE, NO_CORE_BYTES),
    ):
        resource.prlimit(pid, kind, _allowed(pid, kind, most, most))
    seconds = math.ceil(limits.cpu_s)
    return (
        (resource.RLIMIT_CPU, _allowed(pid, resource.RLIMIT_CPU, seconds, calls * seconds + 1)),
        (resource.RLIMIT_NOFILE, _allowed(pid, resource.RLIMIT_NOFILE, limits.open_files, limits.open_files)),
    )


def _allowed(pid: int, kind: int, soft: int, hard: int) -> tuple[int, int]:
    """Return a soft and a hard limit, reduced to the hard limit that the process has already."""
    _, most = resource.prlimit(pid, kind)
    if most == resource.RLIM_INFINITY:
        return soft, hard
    return min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)


@dataclass(frozen=True, slots=True)
class Look:
    """A process at the end of a call: its peak memory and its data, in bytes, and its number of threads."""

    peak_bytes: int
    data_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Leavings:
    """What a call leaves behind for the next one in the same process.

    Attributes:
        descriptors: how many descriptors are open.
        scratch_share: used fraction of the scratch directory's bytes or files, whichever is larger.
        scratch_bytes: size of the scratch files.
    """

    descriptors: int
    scratch_share: float
    scratch_bytes: int


class PrewarmedProcess:
    """A process forked for a call. Created before the fork: the descriptors in `theirs` are for the zygote.

    User code may be at the other ends of the descriptors, so nothing here blocks on them, except `send`, which has a
    deadline.

    Attributes:
        name: name of the process in messages among host, init and zygote; not a secret.
        served: how many calls it was taken for.
        exceeded: whether it tried to start more threads than allowed.
        first_used: when its first call began, on the monotonic clock.
        rests_since: when its last call ended, on the monotonic clock.
        holds_bytes: its memory and scratch files at that time.
    """

    __slots__ = (
        "_pidfd",
        "_rested_cpu_s",
        "_scratch",
        "_sending",
        "channel",
        "errors",
        "exceeded",
        "first_used",
        "holds_bytes",
        "name",
        "output",
        "pid",
        "protocol",
        "rests_since",
        "served",
        "theirs",
    )

    def __init__(self, name: str, result_bytes: int) -> None:
        self.name = name
        self.pid = 0
        self._pidfd = -1
        self.served = 0
        self.exceeded = False
        self.first_used = self.rests_since = self._rested_cpu_s = 0.0
        self.holds_bytes = 0
        self._scratch = -1
        self._sending = threading.Lock()
        self.channel, theirs = socket.socketpair()
        self.theirs = [theirs.detach()]
        self.output = self.errors = -1
        try:
            self.output, their_output = os.pipe2(os.O_CLOEXEC)
            self.theirs.append(their_output)
            self.errors, their_errors = os.pipe2(os.O_CLOEXEC)
            self.theirs.append(their_errors)
        except OSError:  # no descriptors left
            self.close()
            raise
        self.channel.setblocking(False)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        os.set_blocking(self.output, False)
        os.set_blocking(self.errors, False)
        self.protocol = CallProtocol(result_bytes)

    def rooted(self, root: int, *, watched: bool) -> None:
        """Take the process's root directory.

        Args:
            root: descriptor of the root directory, for the zygote.
            watched: whether `leavings` will be called, which measures the scratch files.
        """
        self.theirs.append(root)
        if watched:
            self._scratch = os.open(init.SCRATCH.lstrip("/"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)

    def handed_over(self) -> None:
        """Close the host's copies of the descriptors that were sent to the zygote."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs.clear()

    def greet(self, limits: CallLimits, pid_namespace: str, zygote: int, filters: int) -> bool:
        """Receive the hello, check that the process is confined, and set its limits.

        Returns:
            False if the hello is not complete yet.

        Raises:
            SandboxUnavailable: the process is not confined.
            ProtocolViolation: it sent something other than a hello.
            BlockingIOError: there is nothing to read, although poll reported data: it was urgent data.
            OSError: the process has ended.
        """
        data, pid = proof.receive_with_pid(self.channel, _RECEIVE_BYTES)
        if not data or pid <= 0:
            raise ConnectionResetError("a call's process ended before it began")
        if not self.protocol.feed(data):
            return False
        self._pidfd = os.pidfd_open(pid)
        if os.readlink(f"/proc/{pid}/ns/pid") != pid_namespace or pid == zygote:
            raise SandboxUnavailable("the process that answered is not in the sandbox")
        proof.require_confined_call(pid, filters)
        for kind, limit in limits:
            resource.prlimit(pid, kind, limit)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self.pid = pid
        return True

    def send(self, data: bytes, left_s: Callable[[], float]) -> None:
        """Send bytes on the channel. Callable from any thread, but only one at a time.

        Args:
            data: the bytes, all of which are sent.
            left_s: returns how many seconds are left.

        Raises:
            TimeoutError: the process did not read them in time.
            OSError: the process has ended, or this object is closed.
        """
        view = memoryview(data)
        while view:
            try:
                with self._sending:  # keeps the descriptor from being closed and reused
                    sent = self.channel.send(view)
            except BlockingIOError:
                self._await_room(left_s())
            else:
                view = view[sent:]

    def _await_room(self, left_s: float) -> None:
        descriptor = self.channel.fileno()
        if left_s <= 0 or descriptor < 0:
            raise TimeoutError("a call did not read what was sent to it in time")
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll(math.ceil(min(left_s, _ROOM_S) * 1000))

    def begin_call(self, now_s: float) -> None:
        """Note that the process is taken for a call, at this time on the monotonic clock."""
        if not self.served:
            self.first_used = now_s
        else:
            self.protocol.again()
        self.served += 1

    def allow_cpu(self, seconds: float) -> None:
        """Have the kernel end the process when it has used this much more processor time.

        Args:
            seconds: the additional processor time, in seconds.
        """
        with contextlib.suppress(OSError):  # it is gone
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_CPU)
            soft = math.ceil(self.cpu_s() + seconds)
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (min(soft, hard), hard))

    @property
    def alive(self) -> bool:
        """Whether its channel is open, without unread data."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)

    def rests(self, now_s: float, holds_bytes: int) -> None:
        """Note that a call has ended, and that the process waits for the next one.

        Args:
            now_s: the time on the monotonic clock.
            holds_bytes: its memory and scratch files.
        """
        self.rests_since = now_s
        self._rested_cpu_s = self.cpu_s()
        self.holds_bytes = holds_bytes

    @property
    def quiet(self) -> bool:
        """Whether it has been inactive since `rests`: one thread, no output, almost no processor time."""
        poll = select.poll()
        for descriptor in (self.channel.fileno(), self.output, self.errors):
            poll.register(descriptor, select.POLLIN)
        try:
            return (
                not poll.poll(0) and proof.threads_of(self.pid) == 1 and self.cpu_s() - self._rested_cpu_s <= REST_CPU_S
            )
        except OSError:  # it is gone
            return False

    def leavings(self) -> Leavings:
        """Measure what a call has left behind in the process.

        Raises:
            OSError: the process has ended.
        """
        disk = os.fstatvfs(self._scratch)
        share = max(1 - disk.f_bfree / disk.f_blocks, 1 - disk.f_ffree / disk.f_files)
        return Leavings(proof.descriptors_of(self.pid), share, (disk.f_blocks - disk.f_bfree) * disk.f_frsize)

    def kill(self) -> None:
        """Kill the process."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def cpu_s(self) -> float:
        """Return the processor time it has used, in seconds; 0 if it has ended."""
        try:
            return time.clock_gettime((~self.pid << 3) | _CPU_CLOCK)
        except OSError:
            return 0.0

    def look(self) -> Look:
        """Measure the process at the end of a call; all zeros if it has ended."""
        try:
            peak_kib, data_kib, threads = proof.numbers_of(self.pid, b"VmHWM", b"VmData", b"Threads")
        except OSError:
            return Look(0, 0, 0)
        return Look((peak_kib or 0) << 10, (data_kib or 0) << 10, threads or 0)

    def threads(self) -> int:
        """Count its threads; 0 if it has ended."""
        try:
            return proof.threads_of(self.pid)
        except OSError:
            return 0

    def close(self) -> None:
        """Kill the process and close all descriptors."""
        self.kill()
        with contextlib.suppress(OSError):  # wakes a thread that is blocked in `send`
            self.channel.shutdown(socket.SHUT_RDWR)
        for descriptor in (*self.theirs, self.output, self.errors, self._pidfd, self._scratch):
            if descriptor >= 0:
                os.close(descriptor)
        with self._sending:
            self.channel.close()
        self.theirs.clear()
        self._pidfd = self._scratch = self.output = self.errors = -1
