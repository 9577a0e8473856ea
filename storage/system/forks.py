"""Protects objects with threads, locks and open databases from use in forked children.

LMDB, gRPC and thread pools do not survive a fork, and a child that used or closed inherited objects would harm its
parent. So each such object records the number of forks before it was made, and refuses to work after a further one.
"""

from __future__ import annotations

import os
import threading

from storage.errors import UsedAfterFork
from storage.system.private_paths import open_private


class _Forks:
    """Counts the forks from the program's start to this process. A comparison costs about 20 ns, getpid() 60."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def note(self) -> None:
        """Note that this process is a new child."""
        self.count += 1


forks = _Forks()
os.register_at_fork(after_in_child=forks.note)


class HomeProcess:
    """The process that an object belongs to.

    Args:
        what: the object, for the error's text.
    """

    __slots__ = ("_count", "_pid", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._count = forks.count

    @property
    def is_here(self) -> bool:
        """Whether the caller runs in this process, not in a forked child."""
        return self._count == forks.count

    def check(self) -> None:
        """Raise UsedAfterFork in any other process."""
        if self._count != forks.count:
            raise UsedAfterFork(
                f"{self._what} was opened by process {self._pid} and cannot be used in process {os.getpid()}, a fork "
                "of it; open it after the fork, or let one process run `taskworker serve` and give each of the others "
                "a Client of its own"
            )


class PrivateDescriptors:
    """Descriptors that a forked child must close: otherwise a lock on one would outlive the process that took it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[int] = set()
        # As the lock is held during a fork, the child sees exactly the descriptors open at that moment.
        os.register_at_fork(
            before=self._lock.acquire, after_in_parent=self._lock.release, after_in_child=self._close_all
        )

    def open(self, path: os.PathLike[str], flags: int) -> int:
        """Like ``open_private``, for a descriptor that children close at once."""
        with self._lock:
            descriptor = open_private(path, flags)
            self._open.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        """Like ``os.close``, for a descriptor from :meth:`open`."""
        with self._lock:
            self._open.discard(descriptor)
            os.close(descriptor)

    def _close_all(self) -> None:
        # Closing does not unlock: a flock ends with the last descriptor of its open file, which the parent still has.
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()
        self._lock.release()


private_descriptors = PrivateDescriptors()
