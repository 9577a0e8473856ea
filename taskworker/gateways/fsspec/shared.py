"""Connections and stores that all filesystems of this process share. fsspec makes filesystems for each thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class _Closable(Protocol):
    def close(self) -> None: ...


OpenT = TypeVar("OpenT", bound=_Closable)


class Shared(Generic[OpenT]):
    """Opens each thing once, and closes it when its last user has given it back. Thread-safe, also after a fork.

    Things are given back when the garbage collector drops a filesystem, which may be at any moment, also while this
    thread is opening another one. So giving back never waits for a lock: whoever has it does the work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Hashable, tuple[OpenT, int]] = {}
        self._returned: deque[Hashable] = deque()
        os.register_at_fork(after_in_child=self._forget)

    def take(self, key: Hashable, opened: Callable[[], OpenT]) -> OpenT:
        """What is open under ``key``, or else what ``opened`` returns. Give it back once."""
        self._settle()
        try:
            with self._lock:
                thing, users = self._open.get(key) or (opened(), 0)
                self._open[key] = thing, users + 1
                return thing
        finally:
            self._settle()

    def give_back(self, key: Hashable, pid: int) -> None:
        """End one use, that of a process."""
        if pid == os.getpid():
            self._returned.append(key)
            self._settle()

    def _settle(self) -> None:
        """Close what has no users any more, unless another thread, or this one, is about to do that."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                unused = self._without_users()
            finally:
                self._lock.release()
            for thing in unused:
                thing.close()

    def _without_users(self) -> list[OpenT]:
        unused: list[OpenT] = []
        while self._returned:
            key = self._returned.popleft()
            thing, users = self._open.pop(key)
            if users > 1:
                self._open[key] = thing, users - 1
            else:
                unused.append(thing)
        return unused

    def _forget(self) -> None:
        """What the parent has open is of no use in a fork."""
        self._lock = threading.Lock()
        self._open = {}
        self._returned.clear()
