"""Judges what a function's processes start: threads and POSIX timers, each process within its own share.

The kernel bounds both for all of a function only, so that one call could take what the others are promised. So the
function's filter has these system calls handed to the host (seccomp_unotify(2)), which lets the kernel go on with
them or has it refuse. A call that starts nothing pays nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from taskworker.sandbox import proof

TIMERS_MAX = 32
"""Of one process, deleted ones included."""
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""``struct seccomp_notif``: id, thread, flags, and of the system call number, architecture, address and arguments."""
_ANSWER = struct.Struct("=QqiI")
"""``struct seccomp_notif_resp``: id, value, error, flags."""
_RECEIVE = 0xC050_2100
_SEND = 0xC018_2101
_GO_ON = 1
_GRACE_S = 0.1
"""For a thread that has been joined to be gone: until then, the kernel counts it."""
_LOOK_S = 0.005
_IN_FLIGHT_S = 0.05
_BURST = 256
_PER_SECOND = 500
"""Starts of one process that are judged at once, and how many more a second: they take this process's time."""
_PROCESSES_MAX = 4096


@dataclass(slots=True)
class _Process:
    granted: dict[int, float] = field(default_factory=dict)
    """Threads that were let start another, and when: for a moment, it is not counted yet."""
    timers: int = 0
    paced_until: float = 0.0


class Starts:
    """Belongs to the host's loop.

    Args:
        loop: the host's.
        listener: descriptor of the function's filter; this object closes it.
        timer_create: number of that system call.
        threads_max: of one process.
        exceeded: told the process that had as many, and started one more.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: int,
        *,
        timer_create: int,
        threads_max: int,
        exceeded: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._timer_create = timer_create
        self._threads_max = threads_max
        self._exceeded = exceeded
        self._processes: dict[int, _Process] = {}
        loop.add_reader(listener, self._readable)

    def forget(self, pid: int) -> None:
        """Note that a process is gone: another one may get its number."""
        self._processes.pop(pid, None)

    def timers_of(self, pid: int) -> int:
        """How many POSIX timers a process has made, deleted ones included; from any thread."""
        process = self._processes.get(pid)
        return 0 if process is None else process.timers

    def close(self) -> None:
        """Judge no more; what is started from here on is refused."""
        if self._listener >= 0:
            self._loop.remove_reader(self._listener)
            os.close(self._listener)
            self._listener = -1

    def _readable(self) -> None:
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, notification)
            number, tid, _, system_call, *_ = _NOTIFICATION.unpack(notification)
            pid, _ = proof.numbers_of(tid, b"Tgid", b"Threads")
        except OSError:  # who asked has ended
            return
        process = self._process(pid or 0)
        if system_call == self._timer_create:
            process.timers += 1
            allowed = process.timers <= TIMERS_MAX
            self._after(self._turn_of(process), self._answer, number, allowed)
        else:
            until = time.monotonic() + _GRACE_S
            self._after(self._turn_of(process), self._judge, number, tid, process, until)

    def _process(self, pid: int) -> _Process:
        if len(self._processes) >= _PROCESSES_MAX:  # more than there can be at once: those of a zygote are not told
            self._processes.clear()
        return self._processes.setdefault(pid, _Process())

    def _turn_of(self, process: _Process) -> float:
        """Give the seconds to wait, so that a process that starts without end gets no more than so many a second."""
        now = time.monotonic()
        process.paced_until = max(now, process.paced_until) + 1 / _PER_SECOND
        return process.paced_until - now - _BURST / _PER_SECOND

    def _after(self, seconds: float, act: Callable[..., None], *arguments: object) -> None:
        if seconds > 0:
            self._loop.call_later(seconds, act, *arguments)
        else:
            act(*arguments)

    def _judge(self, number: int, tid: int, process: _Process, until: float) -> None:
        try:
            pid, threads = proof.numbers_of(tid, b"Tgid", b"Threads")
        except OSError:
            return
        now = time.monotonic()
        process.granted.pop(tid, None)  # what it was let start has been counted since, or has ended
        for other, when in list(process.granted.items()):
            if now - when > _IN_FLIGHT_S:
                del process.granted[other]
        have = threads or 0
        if have + len(process.granted) < self._threads_max:
            process.granted[tid] = now
            self._answer(number, True)
        elif now < until or have < self._threads_max:
            self._loop.call_later(_LOOK_S, self._judge, number, tid, process, until)
        else:
            self._exceeded(pid or 0)  # first: whatever the process says of the refusal comes too late
            self._answer(number, False)

    def _answer(self, number: int, allowed: bool) -> None:
        answer = _ANSWER.pack(number, 0, 0, _GO_ON) if allowed else _ANSWER.pack(number, 0, -errno.EAGAIN, 0)
        if self._listener >= 0:
            with contextlib.suppress(OSError):  # who asked has ended
                fcntl.ioctl(self._listener, _SEND, answer)
