"""The thread that receives for all connections of this process."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable

from taskworker.transport.wire.connection import Connection, Room

log = logging.getLogger(__name__)

_TICK_S = 0.25
_EVENTS = 64


class LockSignal:
    """See :class:`taskworker.transport.wire.connection.Signal`. A lock is a third of the price of an event."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, within_s: float = -1) -> bool:
        """See :class:`Signal`."""
        happened = self._lock.acquire(timeout=within_s)
        if happened:
            self._lock.release()
        return happened

    def set(self) -> None:
        """See :class:`Signal`."""
        with contextlib.suppress(RuntimeError):  # it has happened before
            self._lock.release()


class ThreadPoller:
    """See :class:`taskworker.transport.wire.connection.Poller`. Has a thread while there are connections.

    Args:
        clock_s: monotonic seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._epoll: select.epoll | None = None
        self._thread: threading.Thread | None = None
        self._removed: list[Connection] = []

    def forked(self) -> None:
        """Forget everything in a forked child: the connections belong to the parent, and the thread is not there."""
        self._lock = threading.Lock()
        for connection in (*self._connections.values(), *self._removed):
            connection.forked()
        self._begin_anew()

    def room(self, lock: threading.Lock) -> Room:
        """See :class:`Poller`."""
        return threading.Condition(lock)

    def signal(self) -> LockSignal:
        """See :class:`Poller`."""
        return LockSignal()

    def add(self, connection: Connection) -> None:
        """See :class:`Poller`."""
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
            self._epoll.register(connection.stream.fileno(), select.EPOLLIN)
            self._connections[connection.stream.fileno()] = connection
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(self._epoll,), name="shards", daemon=True)
                self._thread.start()

    def watch_writes(self, connection: Connection, *, watch: bool) -> None:
        """See :class:`Poller`."""
        with self._lock:
            if self._epoll is not None and self._connections.get(connection.stream.fileno()) is connection:
                self._epoll.modify(connection.stream.fileno(), select.EPOLLIN | (select.EPOLLOUT if watch else 0))

    def remove(self, connection: Connection) -> None:
        """See :class:`Poller`. The thread closes the stream, as it may be about to use it."""
        with self._lock:
            descriptor = connection.stream.fileno()
            if self._connections.get(descriptor) is not connection:
                return
            del self._connections[descriptor]
            self._removed.append(connection)
            if self._epoll is not None:
                with contextlib.suppress(OSError):
                    self._epoll.modify(descriptor, select.EPOLLOUT)  # wakes the thread

    def _run(self, epoll: select.epoll) -> None:
        tick_s = self._clock_s() + _TICK_S
        while True:
            for descriptor, events in epoll.poll(_TICK_S, _EVENTS):
                connection = self._connections.get(descriptor)
                if connection is not None:
                    self._let(connection, events)
            if self._clock_s() >= tick_s:
                tick_s = self._clock_s() + _TICK_S
                for connection in list(self._connections.values()):
                    self._let(connection, 0)
            if (self._removed or not self._connections) and not self._tidy(epoll):
                return

    def _let(self, connection: Connection, events: int) -> None:
        """Let a connection do what it has to; 0 events: look at the clock."""
        try:
            if events & select.EPOLLOUT:
                connection.writable()
            if events & ~select.EPOLLOUT:
                connection.readable()
            if not events:
                connection.tick()
        except Exception as error:  # must not end the thread, on which all other connections depend
            log.exception("a connection failed unexpectedly")
            connection.fail(error)

    def _tidy(self, epoll: select.epoll) -> bool:
        """Close removed streams; return whether the thread goes on."""
        with self._lock:
            removed, self._removed = self._removed, []
            for connection in removed:
                with contextlib.suppress(OSError):
                    epoll.unregister(connection.stream.fileno())
                connection.stream.close()
            if self._connections or self._epoll is not epoll:
                return True
            self._epoll = self._thread = None
        epoll.close()
        return False


SHARED = ThreadPoller()
"""The poller of this process."""
os.register_at_fork(after_in_child=SHARED.forked)
