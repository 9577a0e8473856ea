"""Limits how many threads and POSIX timers each process of a function starts.

The kernel only bounds all processes of a function together, so that one call could use up the share of the others.
Therefore the function's seccomp filter passes these system calls to the host (seccomp_unotify(2)), which allows or
refuses each of them. A call that starts neither has no overhead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from taskworker.sandbox import proof

TIMERS_MAX = 32
"""POSIX timers that one process may make, including deleted ones."""
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""``struct seccomp_notif``: id, thread, flags; the system call's number, architecture, address and arguments."""
_ANSWER = struct.Struct("=QqiI")
"""``struct seccomp_notif_resp``: id, value, error, flags."""
_RECEIVE = 0xC050_2100
_SEND = 0xC018_2101
_GO_ON = 1
_GRACE_S = 0.1
"""How long to wait for a joined thread to disappear; until then, the kernel still counts it."""
_LOOK_S = 0.005
_IN_FLIGHT_S = 0.05
_BURST = 256
_PER_SECOND = 500
"""How many starts of a process are judged without delay, and how many more per second: bounds the host's work."""
_PROCESSES_MAX = 4096


@dataclass(slots=True)
class _Process:
    granted: dict[int, float] = field(default_factory=dict)
    """Threads that were allowed to start another one, and when: the kernel counts the new thread a moment later."""
    timers: int = 0
    paced_until: float = 0.0


class Starts:
    """Judges starts of threads and timers in the event loop of the host.

    Args:
        loop: event loop of the host.
        listener: descriptor on which the function's filter reports system calls; this object closes it.
        timer_create: number of the system call timer_create.
        threads_max: how many threads one process may have.
        exceeded: called with the id of a process that tried to start more threads than that.
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
        """Forget a process that has ended, as its process id may be reused."""
        self._processes.pop(pid, None)

    def timers_of(self, pid: int) -> int:
        """Return how many POSIX timers a process has made, including deleted ones. Thread-safe."""
        process = self._processes.get(pid)
        return 0 if process is None else process.timers

    def close(self) -> None:
        """Stop judging; the kernel refuses all further starts."""
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
        except OSError:  # the thread that made the system call has ended
            return
        process = self._process(pid or 0)
        if system_call == self._timer_create:
            process.timers += 1
            allowed = process.timers <= TIMERS_MAX
            self._after(self._turn_of(process), self._answer, number, allowed)
        else:
            until = self._loop.time() + _GRACE_S
            self._after(self._turn_of(process), self._judge, number, tid, process, until)

    def _process(self, pid: int) -> _Process:
        if len(self._processes) >= _PROCESSES_MAX:  # more than can exist: forks of the zygote's own are not told
            self._processes.clear()
        return self._processes.setdefault(pid, _Process())

    def _turn_of(self, process: _Process) -> float:
        """Return the seconds to wait before judging: after its `_BURST`, a process gets `_PER_SECOND` starts."""
        now = self._loop.time()
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
        now = self._loop.time()
        process.granted.pop(tid, None)  # the thread it started before is counted by now, or has ended
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
            self._exceeded(pid or 0)  # before the refusal, so that nothing the process reports about it is believed
            self._answer(number, False)

    def _answer(self, number: int, allowed: bool) -> None:
        answer = _ANSWER.pack(number, 0, 0, _GO_ON) if allowed else _ANSWER.pack(number, 0, -errno.EAGAIN, 0)
        if self._listener >= 0:
            with contextlib.suppress(OSError):  # the thread has ended
                fcntl.ioctl(self._listener, _SEND, answer)
