"""One call's process on the host's side: its channel, its output, and the means to end and to measure it."""

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
"""Processes and threads of one function; `processes_max` says how many calls have their whole share of them."""
IMPORT_TASKS_MAX = 512
"""The same while its code is imported."""
_TASKS_BESIDES = 96
"""For its init and zygote, for calls that are ending, and for one more in each that has just been asked for."""
SIGNALS_MAX = 8192
"""Signals that wait, and POSIX timers, of all calls of one function together; of one, `starts.TIMERS_MAX`."""
STACK_BYTES = 8 << 20
KILLED_FIRST = 300
"""Of 1000: by how much the processes of functions are likelier to be ended than the worker, if the machine's memory is
used up, and its base. Of those, the one that has most memory, a call rather than a zygote, comes first."""
NO_CORE_BYTES = 1
"""Less than any core has, and, unlike 0, the kernel pipes none to a program of the machine's either."""
REST_CPU_S = 0.02
"""Processor time that a process may take between two calls: it has to send its result and wait for a request."""
_RECEIVE_BYTES = 256 << 10
_ROOM_S = 0.25
"""How long a sender waits before it looks at its time again."""
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
"""Kinds of limits (``resource.RLIMIT_*``), each with the soft and the hard one."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a process takes, in bytes: of address space and of data."""

    address_space: int
    data: int


def size_of(pid: int) -> Size:
    """Measure a process."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return Size(int(fields[0]) * _PAGE_BYTES, int(fields[5]) * _PAGE_BYTES)


def processes_max(limits: Limits) -> int:
    """How many processes for calls a function has at most, so that each may have all the threads of its limits."""
    return max(1, (FUNCTION_TASKS_MAX - _TASKS_BESIDES) // limits.threads)


def limit_zygote(pid: int, limits: Limits) -> None:
    """Bound what a zygote takes for its import with soft limits, which it cannot raise; and the rest for good."""
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
    """Put on a zygote that has imported its code what its calls inherit; give what each of them gets of its own."""
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
    """A limit that is never more than a process may have as it is, which may be less than what is wanted."""
    _, most = resource.prlimit(pid, kind)
    if most == resource.RLIM_INFINITY:
        return soft, hard
    return min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)


@dataclass(frozen=True, slots=True)
class Look:
    """What a process has at the end of a call: the most memory it had and the data it has, in bytes; its threads."""

    peak_bytes: int
    data_bytes: int
    threads: int


@dataclass(frozen=True, slots=True)
class Leavings:
    """What a call leaves to the next one in the same process.

    Attributes:
        descriptors: how many are open.
        scratch_share: how much of the scratch directory is used, of its bytes or its files, whichever is more.
        scratch_bytes: of its files.
    """

    descriptors: int
    scratch_share: float
    scratch_bytes: int


class PrewarmedProcess:
    """A process forked for a call. Made before it: the descriptors in `theirs` are for the zygote.

    Nothing here waits for the process but `send`, which has a time to do so: what is at the other ends of these
    descriptors is user code, or may be.

    Attributes:
        name: by which host, init and zygote mean it; no secret.
        served: the calls that it was taken for.
        exceeded: whether it started more threads than it may.
        first_used: when it was for the first of them, on the monotonic clock.
        rests_since: when the last of them ended, likewise.
        holds_bytes: what it had then, of memory and scratch files.
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
        except OSError:  # no descriptors
            self.close()
            raise
        self.channel.setblocking(False)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        os.set_blocking(self.output, False)
        os.set_blocking(self.errors, False)
        self.protocol = CallProtocol(result_bytes)

    def rooted(self, root: int, *, watched: bool) -> None:
        """Take its root directory; if it is to be ``watched``, its scratch files can be measured later."""
        self.theirs.append(root)
        if watched:
            self._scratch = os.open(init.SCRATCH.lstrip("/"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)

    def handed_over(self) -> None:
        """Close this process's copies of what the zygote has got."""
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs.clear()

    def greet(self, limits: CallLimits, pid_namespace: str, zygote: int, filters: int) -> bool:
        """Take the hello, and put on the process's own limits; False if it has not come whole.

        Raises:
            SandboxUnavailable: the process is not confined as it should be.
            ProtocolViolation: it did not send a hello.
            BlockingIOError: there is nothing to read, though it looked so: urgent data.
            OSError: it is gone.
        """
        data, pid = proof.receive_with_pid(self.channel, _RECEIVE_BYTES)
        if not data or pid <= 0:
            raise ConnectionResetError("a call's process ended before it began")
        if not self.protocol.feed(data):
            return False
        self._pidfd = os.pidfd_open(pid)
        if os.readlink(f"/proc/{pid}/ns/pid") != pid_namespace or pid == zygote:
            raise SandboxUnavailable("what answered is not of the sandbox")
        proof.require_confined_call(pid, filters)
        for kind, limit in limits:
            resource.prlimit(pid, kind, limit)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        self.pid = pid
        return True

    def send(self, data: bytes, left_s: Callable[[], float]) -> None:
        """Send bytes on the channel; from any thread, one at a time.

        Args:
            data: all of which is sent.
            left_s: says how many seconds there are left.

        Raises:
            TimeoutError: they were not taken in time.
            OSError: the process, or this object, is closed.
        """
        view = memoryview(data)
        while view:
            try:
                with self._sending:  # which keeps the descriptor from being closed, and becoming another one's
                    sent = self.channel.send(view)
            except BlockingIOError:
                self._await_room(left_s())
            else:
                view = view[sent:]

    def _await_room(self, left_s: float) -> None:
        descriptor = self.channel.fileno()
        if left_s <= 0 or descriptor < 0:
            raise TimeoutError("what was sent to a call was not taken in time")
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll(math.ceil(min(left_s, _ROOM_S) * 1000))

    def begin_call(self) -> None:
        """Note that it is taken for a call."""
        if not self.served:
            self.first_used = time.monotonic()
        else:
            self.protocol.again()
        self.served += 1

    def allow_cpu(self, seconds: float) -> None:
        """Have the kernel end it once it takes so much more processor time than it has taken."""
        with contextlib.suppress(OSError):  # it is gone
            _, hard = resource.prlimit(self.pid, resource.RLIMIT_CPU)
            soft = math.ceil(self.cpu_s() + seconds)
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (min(soft, hard), hard))

    @property
    def alive(self) -> bool:
        """Whether its channel is open and nothing came on it."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return not poll.poll(0)

    def rests(self, holds_bytes: int) -> None:
        """Note that a call has ended in it, and that it waits for the next one."""
        self.rests_since = time.monotonic()
        self._rested_cpu_s = self.cpu_s()
        self.holds_bytes = holds_bytes

    @property
    def quiet(self) -> bool:
        """Whether it did nothing since it `rests`: it has one thread, wrote nothing, and took no processor time."""
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
        """Say what a call has left in it.

        Raises:
            OSError: it is gone.
        """
        disk = os.fstatvfs(self._scratch)
        share = max(1 - disk.f_bfree / disk.f_blocks, 1 - disk.f_ffree / disk.f_files)
        return Leavings(proof.descriptors_of(self.pid), share, (disk.f_blocks - disk.f_bfree) * disk.f_frsize)

    def kill(self) -> None:
        """End it at once."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def cpu_s(self) -> float:
        """Give the processor time it has taken, in seconds; 0 when it is gone."""
        try:
            return time.clock_gettime((~self.pid << 3) | _CPU_CLOCK)
        except OSError:
            return 0.0

    def look(self) -> Look:
        """Say what it has, at the end of a call; zeros when it is gone."""
        try:
            peak_kib, data_kib, threads = proof.numbers_of(self.pid, b"VmHWM", b"VmData", b"Threads")
        except OSError:
            return Look(0, 0, 0)
        return Look((peak_kib or 0) << 10, (data_kib or 0) << 10, threads or 0)

    def threads(self) -> int:
        """Count its threads; 0 when it is gone."""
        try:
            return proof.threads_of(self.pid)
        except OSError:
            return 0

    def close(self) -> None:
        """End it and close everything."""
        self.kill()
        with contextlib.suppress(OSError):  # whoever sends an answer that is not taken waits no longer
            self.channel.shutdown(socket.SHUT_RDWR)
        for descriptor in (*self.theirs, self.output, self.errors, self._pidfd, self._scratch):
            if descriptor >= 0:
                os.close(descriptor)
        with self._sending:
            self.channel.close()
        self.theirs.clear()
        self._pidfd = self._scratch = self.output = self.errors = -1
