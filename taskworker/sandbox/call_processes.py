"""The processes of one function: ready for a call, in a call, or kept for their owner's next call."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from taskworker.sandbox.errors import CallDeadline, SandboxError
from taskworker.sandbox.image import FunctionImage
from taskworker.sandbox.kept import KeptLoad, KeptProcesses
from taskworker.sandbox.prewarmed import Look, PrewarmedProcess, processes_max
from taskworker.sandbox.room import Room

SPARES_MAX = 8
PENDING_MAX = 32
"""How many processes are being forked at the same time. Keeps the queues to init and zygote short when many call."""


class Wanted(NamedTuple):
    """How many processes to fork now, and a kept one to end to make room for them, if any."""

    processes: int
    displaced: PrewarmedProcess | None


class Counts(NamedTuple):
    """How many processes are in a call, ready for one, and kept."""

    running: int
    ready: int
    kept: int


class CallProcesses:
    """Hands out processes to calls. Thread-safe.

    Args:
        image: image of the function.
        missing: called by a call that waits for a process, so that one is forked soon.
        ended: called with a process that ended before its call began.
        clock_s: monotonic seconds.
        wall_s: seconds since 1970.

    Attributes:
        lock: reentrant lock; while it is held, no call begins or ends.
        used: when a call last took a process, in seconds since 1970.
    """

    def __init__(
        self,
        image: FunctionImage,
        *,
        missing: Callable[[], object],
        ended: Callable[[PrewarmedProcess], object],
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock_s = clock_s
        self._wall_s = wall_s
        self._missing = missing
        self._ended = ended
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._failure: SandboxError | None = None
        self._warm = False
        self._replaced = False
        self._ready: deque[PrewarmedProcess] = deque()
        self._calls: dict[int, PrewarmedProcess] = {}
        self._kept = KeptProcesses(image.keep, image.limits, clock_s)
        self._room = Room(clock_s)
        self._waiting = 0
        self._target = 1
        self._processes_max = processes_max(image.limits)
        self.used = wall_s()
        self._used_s = self._clock_s()

    # What calls do.

    def await_warm(self) -> None:
        """Wait until the function's code is imported.

        Raises:
            FunctionBroken: the import failed.
            SandboxError: the sandbox has ended.
        """
        with self._changed:
            while not self._warm:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._replaced = False

    def take(self, deadline: float, timeout_s: float, owner: str) -> PrewarmedProcess:
        """Take a process for a call.

        Another one is forked in its place when the call has ended, or when a call has to wait for one.

        Args:
            deadline: until when to wait, on the monotonic clock.
            timeout_s: the caller's timeout, for the error's text.
            owner: owner of the call; processes kept for this owner may serve it.

        Raises:
            CallDeadline: there was no process in time.
            SandboxFull: the machine had no room for a process for too long.
            SandboxError: the sandbox has ended.
        """
        begun = self._clock_s()
        waited = False
        with self._changed:
            self._waiting += 1
            try:
                while True:
                    if self._failure is not None:
                        raise self._failure
                    self._replaced = False
                    prewarmed = self._kept.take(owner) or self._ready_one()
                    if prewarmed is not None:
                        self.used, self._used_s = self._wall_s(), self._clock_s()
                        prewarmed.begin_call(self._used_s)
                        self._calls[prewarmed.pid] = prewarmed
                        return prewarmed
                    self._room.require(begun)
                    self._missing()
                    if not waited:
                        waited = True
                        self._target = min(SPARES_MAX, self._target + 1)
                    if not self._changed.wait(deadline - self._clock_s()):
                        raise CallDeadline(timeout_s, of_caller=True)
            finally:
                self._waiting -= 1

    def _ready_one(self) -> PrewarmedProcess | None:
        """Remove and return a process forked ahead; None if there is none. The caller holds the lock."""
        while self._ready:
            prewarmed = self._ready.pop()  # the latest one, most of which is still in the processor's caches
            if prewarmed.alive:
                return prewarmed
            self._ended(prewarmed)
        return None

    def keep(self, owner: str, prewarmed: PrewarmedProcess, look: Look, timers: int) -> bool:
        """Keep the process of a successful call for the owner's next call; return False if it has to end."""
        with self.lock:
            self._calls.pop(prewarmed.pid, None)
            return self._failure is None and not self._replaced and self._kept.put(owner, prewarmed, look, timers)

    def give_up(self, prewarmed: PrewarmedProcess) -> None:
        """Note that a call has ended whose process does not serve another one."""
        with self.lock:
            self._calls.pop(prewarmed.pid, None)

    def keep_none(self) -> None:
        """Note that another version has replaced this one: keep no process, unless another call comes nevertheless."""
        with self.lock:
            self._replaced = True

    # What the function does with them.

    def warmed(self, imported_bytes: int) -> None:
        """Note that the code is imported.

        Args:
            imported_bytes: size of a process's data before its first call.
        """
        with self._changed:
            self._kept.imported_bytes = imported_bytes
            self._warm = True
            self._changed.notify_all()

    def add(self, prewarmed: PrewarmedProcess) -> None:
        """Add a new process that is ready for a call."""
        with self._changed:
            self._room.given()
            self._ready.append(prewarmed)
            self._changed.notify()

    def refused(self, why: str) -> float:
        """Note that the machine had no room for a process; return the seconds to wait before the next attempt."""
        with self._changed:
            pause_s = self._room.refused(why)
            self._changed.notify_all()
        return pause_s

    def wanted(self, pending: int) -> Wanted:
        """Return how many processes to fork for waiting calls and for those expected soon.

        Args:
            pending: how many are being forked already.
        """
        with self.lock:
            if not self._warm or self._failure is not None or self._room.pausing:
                return Wanted(0, None)
            count = min(PENDING_MAX, self._target + self._waiting - len(self._ready)) - pending
            left = self._processes_max - len(self._ready) - len(self._calls) - len(self._kept) - pending
            displaced = self._kept.drop_oldest() if self._waiting and count > 0 and left <= 0 else None
            if displaced is not None:
                left += 1
            return Wanted(max(0, min(count, left)), displaced)

    def expect_more(self) -> None:
        """From now on, want at least one process ready."""
        self._target = max(1, self._target)

    def rest(self) -> list[PrewarmedProcess]:
        """From now on, want no process ready; return those that were, to be ended."""
        with self.lock:
            processes = list(self._ready)
            self._ready.clear()
            self._target = 0
        return processes

    def drop_spent(self) -> list[PrewarmedProcess]:
        """Remove and return the kept processes that have served or waited long enough, to be ended."""
        with self.lock:
            return self._kept.drop_all() if self._replaced else self._kept.drop_spent()

    def drop_oldest_kept(self) -> PrewarmedProcess | None:
        """Remove and return the kept process that has waited the longest, to be ended."""
        with self.lock:
            return self._kept.drop_oldest()

    def close(self, failure: SandboxError) -> list[PrewarmedProcess]:
        """Raise ``failure`` in waiting and later calls; return the processes that are in no call, to be ended."""
        with self._changed:
            self._failure = failure
            processes = [*self._ready, *self._kept.drop_all()]
            self._ready.clear()
            self._changed.notify_all()
        return processes

    # What they are doing.

    @property
    def failure(self) -> SandboxError | None:
        """Why the sandbox has ended; None while it runs."""
        return self._failure

    @property
    def warm(self) -> bool:
        """Whether the code is imported."""
        return self._warm

    @property
    def busy(self) -> bool:
        """Whether calls are under way or waiting."""
        with self.lock:
            return bool(self._calls) or self._waiting > 0

    @property
    def replaced(self) -> bool:
        """Whether another version has taken the function's place."""
        return self._replaced

    @property
    def idle_s(self) -> float:
        """Seconds since a call last took a process."""
        return self._clock_s() - self._used_s

    @property
    def counts(self) -> Counts:
        """How many processes there are in each state."""
        with self.lock:
            return Counts(len(self._calls), len(self._ready), len(self._kept))

    @property
    def kept_load(self) -> KeptLoad:
        """What the kept processes use."""
        with self.lock:
            return self._kept.load

    def pids(self) -> set[int]:
        """Return the process ids of all processes."""
        with self.lock:
            return {prewarmed.pid for prewarmed in self._ready} | self._kept.pids() | set(self._calls)

    def is_running(self, name: str) -> bool:
        """Whether the process with this name is in a call."""
        with self.lock:
            return any(prewarmed.name == name for prewarmed in self._calls.values())

    def by_pid(self, pid: int) -> PrewarmedProcess | None:
        """Return the process with this process id that is in a call or ready for one; None if there is none."""
        with self.lock:
            return self._calls.get(pid) or next((one for one in self._ready if one.pid == pid), None)
