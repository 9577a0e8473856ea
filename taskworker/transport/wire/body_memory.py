"""Memory for calls that arrive. Who finds none waits here, and is called again once there is some for it.

What was freed is put aside for one that waits before it is called. So nobody is called in vain, however many wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from taskworker.shares import SharedAmount


class Taker(Protocol):
    """A connection that takes memory for one call after another.

    Attributes:
        host: where its caller is.
    """

    host: str

    def go_on(self) -> None:
        """Take again, soon; what was asked for is put aside."""


class Charge(NamedTuple):
    """Memory that was taken.

    Attributes:
        memory: where it was taken from.
        host: who has it.
        bytes_taken: how many bytes.
    """

    memory: BodyMemory
    host: str
    bytes_taken: int

    def give_back(self) -> None:
        """Give it back, once."""
        self.memory.give_back(self.host, self.bytes_taken)


class _Queue:
    """Takers of one host that wait, in order."""

    def __init__(self) -> None:
        self.counts: dict[Taker, int] = {}
        self.least = 0  # no one waits for fewer bytes

    def add(self, taker: Taker, count: int) -> None:
        self.least = min(self.least, count) if self.counts else count
        self.counts[taker] = count

    def measure(self) -> None:
        self.least = min(self.counts.values(), default=0)


class BodyMemory:
    """A number of bytes for calls. Thread-safe.

    Args:
        size: how many bytes.
        divided: whether hosts share it: each may have as much as is free, so that one host gets half at most, and
            something is free for the next one.
    """

    def __init__(self, size: int, *, divided: bool = False) -> None:
        self._amount = SharedAmount(size, times=1)
        self._divided = divided
        self._lock = threading.Lock()
        self._waiting: dict[str, _Queue] = {}  # by host
        self._granted: dict[Taker, int] = {}

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for bytes."""
        return bool(self._waiting)

    @property
    def free(self) -> int:
        """How many bytes nobody has."""
        return self._amount.free

    def of(self, host: str) -> int:
        """How many bytes a host has; 0 if hosts do not share."""
        with self._lock:
            return self._amount.of(host)

    def take(self, taker: Taker, count: int) -> Charge | None:
        """Take ``count`` bytes; None: there are not so many now, and the taker waits for them.

        One that waits takes the same number when it is called again, or leaves.
        """
        charge = Charge(self, taker.host, count)
        with self._lock:
            if self._granted.pop(taker, None) is not None:
                return charge
            queue = self._waiting.get(taker.host)
            if queue is not None and taker in queue.counts:
                return None
            if self._take(taker.host, count):
                return charge
            if queue is None:
                queue = self._waiting[taker.host] = _Queue()
            queue.add(taker, count)
            return None

    def give_back(self, host: str, count: int) -> None:
        """Give bytes back, and call those for whom there are enough now: first of hosts that have least."""
        with self._lock:
            self._amount.give_back(host if self._divided else None, count)
            granted = list(self._grant()) if self._waiting else []
        for taker in granted:
            taker.go_on()

    def leave(self, taker: Taker) -> None:
        """Wait no more. What was put aside is given back."""
        with self._lock:
            queue = self._waiting.get(taker.host)
            if queue is not None and queue.counts.pop(taker, None) is not None and not queue.counts:
                del self._waiting[taker.host]
            count = self._granted.pop(taker, None)
        if count is not None:
            self.give_back(taker.host, count)

    # -- under the lock --------------------------------------------------------------------------

    def _take(self, host: str, count: int) -> bool:
        return self._amount.take(host if self._divided else None, count)

    def _grant(self) -> Iterator[Taker]:
        for host in sorted(self._waiting, key=self._amount.of):
            queue = self._waiting[host]
            if not self._take(host, queue.least):
                continue
            self._amount.give_back(host if self._divided else None, queue.least)
            for taker, count in list(queue.counts.items()):
                if self._take(host, count):
                    del queue.counts[taker]
                    self._granted[taker] = count
                    yield taker
            queue.measure()
            if not queue.counts:
                del self._waiting[host]
