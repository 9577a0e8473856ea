"""The processes of one function that are ready for calls, taken for calls, or kept for their owner's next one."""

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
"""Processes being forked at once: a crowd of callers is served in turns, and queues to init and zygote stay short."""


class Wanted(NamedTuple):
    """How many processes to fork now, and the kept one that ends to make room for them, if any."""

    processes: int
    displaced: PrewarmedProcess | None


class Counts(NamedTuple):
    """Processes in a call, ready for one, and kept."""

    running: int
    ready: int
    kept: int


class CallProcesses:
    """Hands processes out to calls. All methods may be called from any thread.

    Args:
        image: the function's.
        missing: called by a call that waits for a process: one is to be forked soon.
        ended: called with a process that ended before its call began.

    Attributes:
        lock: reentrant; while it is held, no call begins or ends.
        used: when a call last took a process, in seconds since 1970.
    """

    def __init__(
        self, image: FunctionImage, *, missing: Callable[[], object], ended: Callable[[PrewarmedProcess], object]
    ) -> None:
        self._missing = missing
        self._ended = ended
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._failure: SandboxError | None = None
        self._warm = False
        self._replaced = False
        self._ready: deque[PrewarmedProcess] = deque()
        self._calls: dict[int, PrewarmedProcess] = {}
        self._kept = KeptProcesses(image.keep, image.limits)
        self._room = Room()
        self._waiting = 0
        self._target = 1
        self._processes_max = processes_max(image.limits)
        self.used = time.time()
        self._used_s = time.monotonic()

    # What calls do.

    def await_warm(self) -> None:
        """Wait until the code is imported.

        Raises:
            FunctionBroken: it could not be.
            SandboxError: the sandbox is gone.
        """
        with self._changed:
            while not self._warm:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._replaced = False

    def take(self, deadline: float, timeout_s: float, owner: str) -> PrewarmedProcess:
        """Take a process for a call; another one is forked in its place when the call has ended, or one is missed.

        Args:
            deadline: on the monotonic clock.
            timeout_s: how long that was when the call came, for the error's text.
            owner: whose processes that were kept may serve the call.

        Raises:
            CallDeadline: there was none in time.
            SandboxFull: the machine had no room for one for long.
            SandboxError: the sandbox is gone.
        """
        begun = time.monotonic()
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
                        prewarmed.begin_call()
                        self._calls[prewarmed.pid] = prewarmed
                        self.used, self._used_s = time.time(), time.monotonic()
                        return prewarmed
                    self._room.require(begun)
                    self._missing()
                    if not waited:
                        waited = True
                        self._target = min(SPARES_MAX, self._target + 1)
                    if not self._changed.wait(deadline - time.monotonic()):
                        raise CallDeadline(timeout_s, of_caller=True)
            finally:
                self._waiting -= 1

    def _ready_one(self) -> PrewarmedProcess | None:
        """A process forked ahead; the lock is held."""
        while self._ready:
            prewarmed = self._ready.pop()  # the latest: the caches know it best
            if prewarmed.alive:
                return prewarmed
            self._ended(prewarmed)
        return None

    def keep(self, owner: str, prewarmed: PrewarmedProcess, look: Look, timers: int) -> bool:
        """Keep the process of a call that ended well for the owner's next one; False if it is to end."""
        with self.lock:
            self._calls.pop(prewarmed.pid, None)
            return self._failure is None and not self._replaced and self._kept.put(owner, prewarmed, look, timers)

    def give_up(self, prewarmed: PrewarmedProcess) -> None:
        """Note that a call has ended whose process serves no other."""
        with self.lock:
            self._calls.pop(prewarmed.pid, None)

    def keep_none(self) -> None:
        """There is another version in its place: no process serves a further call, unless there is one after all."""
        with self.lock:
            self._replaced = True

    # What the function does with them.

    def warmed(self, imported_bytes: int) -> None:
        """The code is imported.

        Args:
            imported_bytes: of data that a process has before its first call.
        """
        with self._changed:
            self._kept.imported_bytes = imported_bytes
            self._warm = True
            self._changed.notify_all()

    def add(self, prewarmed: PrewarmedProcess) -> None:
        """Have a new process ready for a call."""
        with self._changed:
            self._room.given()
            self._ready.append(prewarmed)
            self._changed.notify()

    def refused(self, why: str) -> float:
        """Note that the machine had no room for a process; give the seconds after which to try again."""
        with self._changed:
            pause_s = self._room.refused(why)
            self._changed.notify_all()
        return pause_s

    def wanted(self, pending: int) -> Wanted:
        """Say how many processes to fork for the calls that wait and for those that come soon.

        Args:
            pending: how many are being forked.
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
        """Have at least one process ready from now on."""
        self._target = max(1, self._target)

    def rest(self) -> list[PrewarmedProcess]:
        """Have none ready for calls; give those that were, to end."""
        with self.lock:
            processes = list(self._ready)
            self._ready.clear()
            self._target = 0
        return processes

    def drop_spent(self) -> list[PrewarmedProcess]:
        """Give the processes that were kept and have served for long enough, to end."""
        with self.lock:
            return self._kept.drop_all() if self._replaced else self._kept.drop_spent()

    def drop_oldest_kept(self) -> PrewarmedProcess | None:
        """Give the one that waits for longest, to end."""
        with self.lock:
            return self._kept.drop_oldest()

    def close(self, failure: SandboxError) -> list[PrewarmedProcess]:
        """Whoever waits, or comes, gets ``failure``; give the processes that are in no call, to end."""
        with self._changed:
            self._failure = failure
            processes = [*self._ready, *self._kept.drop_all()]
            self._ready.clear()
            self._changed.notify_all()
        return processes

    # What they are doing.

    @property
    def failure(self) -> SandboxError | None:
        """Why there are none any more; None while there are."""
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
        """For how long no call has taken a process."""
        return time.monotonic() - self._used_s

    @property
    def counts(self) -> Counts:
        """How many there are."""
        with self.lock:
            return Counts(len(self._calls), len(self._ready), len(self._kept))

    @property
    def kept_load(self) -> KeptLoad:
        """The processes that were kept and wait."""
        with self.lock:
            return self._kept.load

    def pids(self) -> set[int]:
        """Of all of them."""
        with self.lock:
            return {prewarmed.pid for prewarmed in self._ready} | self._kept.pids() | set(self._calls)

    def is_running(self, name: str) -> bool:
        """Whether the process of this name is in a call."""
        with self.lock:
            return any(prewarmed.name == name for prewarmed in self._calls.values())

    def by_pid(self, pid: int) -> PrewarmedProcess | None:
        """The process in a call, or ready for one, that has this id."""
        with self.lock:
            return self._calls.get(pid) or next((one for one in self._ready if one.pid == pid), None)
