"""The answering end: a server with few threads for many connections.

One thread waits for all connections that are quiet. A connection on which something arrives gets a thread, keeps it
while calls follow one another, and gives it back after a tenth of a second. So a small call costs two system calls
(``recv`` and ``sendmsg``), and a thousand quiet connections cost no thread. Calls that may take long have threads of
their own, and are answered out of order.

A byte of a call's body is copied by the kernel alone, into memory that the connection uses again. Bytes of files are
sent with ``sendfile``, which copies none.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from storage.limits import MIB
from storage.system.descriptors import descriptor_limit
from storage.system.forks import HomeProcess
from taskworker.hosts import host_of
from taskworker.transport.wire.answering import CALL_BYTES, AnsweringConnection
from taskworker.transport.wire.body_memory import BodyMemory
from taskworker.transport.wire.budget import Budget
from taskworker.transport.wire.framing import BODY_BYTES_MAX
from taskworker.transport.wire.serving import Method, Resources
from taskworker.transport.wire.strangers import StrangersLimits, to_drop
from taskworker.transport.wire.streams import Secure, SocketStream, Stream, listen, split_address

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 2048
_SLOW_THREADS = 24
_STREAM_THREADS = 16
_PAUSE_S = 0.05
_LOOK_S = 1.0
_EVENTS = 256
_BEING_CLOSED = 0.125  # so many more connections, as a part of the limit, may be ended but not closed yet


class WireLimits(NamedTuple):
    """What all callers of a server together may use.

    Attributes:
        connections: how many connections there are at once; an eighth more with those that are being closed.
        threads: how many of them are served at the same time.
        bodies_bytes: memory for all calls that are being received or carried out; one of the largest finds room. If
            ``strangers`` are bounded, a host has half of it at most.
        answers_bytes: memory for all answers that callers do not take.
        body_bytes_max: the largest body of a call.
        idle_s: seconds after which a connection without calls is closed.
        of_host: what part of the connections one host may have.
        strangers: bounds connections on which no call was carried out yet; None: they count as all others do.
        spares: what part of the process's descriptors to leave to others: with fewer free, no connection is accepted.
    """

    connections: int = CONNECTIONS_MAX
    threads: int = 48
    bodies_bytes: int = 48 * MIB
    answers_bytes: int = 32 * MIB
    body_bytes_max: int = BODY_BYTES_MAX
    idle_s: float = 600.0  # members close their own idle connections long before
    of_host: float = 1.0
    strangers: StrangersLimits | None = None
    spares: float = 0.0


MEMBERS_LIMITS = WireLimits()
assert MEMBERS_LIMITS.bodies_bytes >= MEMBERS_LIMITS.body_bytes_max + CALL_BYTES

Describe = Callable[[Exception], bytes]
"""How an error of a method travels."""

Allowed = Callable[[Stream], Container[int] | None]
"""Returns the numbers of the methods that a caller may call; None: all."""


class WireServer:
    """Serves methods on one address. ``start`` and ``stop`` may be called once each.

    Args:
        methods: what to serve, by number.
        describe: how errors of methods travel.
        secure: makes an accepted socket a stream.
        allowed: returns the numbers of the methods that the caller at the other end of a stream may call, once it has
            greeted; None: all.
        limits: what all callers together may use.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        methods: Mapping[int, Method],
        describe: Describe,
        *,
        secure: Secure = SocketStream,
        allowed: Allowed = lambda stream: None,
        limits: WireLimits = MEMBERS_LIMITS,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = HomeProcess("this server")
        self._methods = methods
        self._describe = describe
        self._secure = secure
        self._allowed = allowed
        self._clock_s = clock_s
        self._limits = limits
        self._quick = ThreadPoolExecutor(limits.threads, thread_name_prefix="shards")
        self._slow = ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="shards-slow")
        self._streams = ThreadPoolExecutor(_STREAM_THREADS, thread_name_prefix="shards-streams")
        answers = Budget(limits.answers_bytes)
        bodies, of_strangers = BodyMemory(limits.bodies_bytes, divided=limits.strangers is not None), None
        strangers_max = limits.strangers and limits.strangers.body_bytes_max
        if limits.strangers is not None:
            of_strangers = BodyMemory(limits.strangers.bodies_bytes, divided=True)
        self._memories = [bodies] if of_strangers is None else [bodies, of_strangers]
        self._resources = Resources(
            bodies,
            answers,
            self._slow,
            self._streams,
            clock_s,
            limits.body_bytes_max,
            strangers_max or limits.body_bytes_max,
            of_strangers,
        )
        self._lock = threading.Lock()
        self._submitted = 0  # connections that have a thread, or wait for one; guarded by a lock of its own
        self._counting = threading.Lock()
        self._connections: dict[int, AnsweringConnection] = {}
        self._refused = 0  # connections for which there was no room; the waiting thread's
        self._epoll = select.epoll()
        self._listening: socket.socket | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="shards-wait", daemon=True)
        self.address = ""

    def start(self, address: str) -> str:
        """Listen on ``host:port`` (port 0: any free one), ``[ipv6]:port`` or ``unix:path``.

        Returns:
            The address at which the server is reached.

        Raises:
            InvalidArgument: the address is malformed.
            OSError: the address is taken.
        """
        self._home.check()
        self._listening = listen(address)
        if split_address(address)[0] is None:
            address = f"{address.rpartition(':')[0]}:{self._listening.getsockname()[1]}"
        self.address = address
        self._epoll.register(self._listening.fileno(), select.EPOLLIN)
        self._thread.start()
        return address

    def stop(self, grace_s: float = 5.0) -> None:
        """Accept no new connections, let running calls end within ``grace_s`` seconds, and close all connections.

        Does nothing in a forked child: the server belongs to the parent.
        """
        if not self._home.is_here:
            return
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()
        until_s = self._clock_s() + grace_s
        connections = list(self._connections.values())
        while any(connection.is_busy for connection in connections) and self._clock_s() < until_s:
            time.sleep(0.01)
        for connection in connections:
            connection.end()
        self._quick.shutdown()
        self._slow.shutdown()
        self._streams.shutdown()
        for connection in connections:
            connection.close()
        if self._listening is not None:
            self._listening.close()
            path = split_address(self.address)[0]
            if path is not None:
                path.unlink(missing_ok=True)
        self._epoll.close()

    def end_those(self, judge: Callable[[Stream], bool]) -> None:
        """End the connections to whose streams ``judge`` says yes."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            if connection.is_with(judge):
                self._end(connection)

    # -- what connections call -------------------------------------------------------------------

    @property
    def is_crowded(self) -> bool:
        """Whether connections wait for a thread."""
        return self._submitted > self._limits.threads

    def watch(self, connection: AnsweringConnection, *, writes: bool) -> None:
        """Call the connection again when something arrives for it; or, for ``writes``, when its caller takes more."""
        events = (select.EPOLLOUT if writes else select.EPOLLIN) | select.EPOLLONESHOT
        with self._lock:
            if not self._stopping and self._connections.get(connection.descriptor) is connection:
                self._epoll.modify(connection.descriptor, events)

    def call_soon(self, connection: AnsweringConnection) -> None:
        """Call the connection again after others that wait for a thread."""
        self._submit(connection)

    def forget(self, connection: AnsweringConnection) -> None:
        """Close a connection that has ended. Nobody uses it any more."""
        with self._lock:
            if self._connections.get(connection.descriptor) is not connection:
                return
            del self._connections[connection.descriptor]
            if not self._stopping:
                with contextlib.suppress(OSError):
                    self._epoll.unregister(connection.descriptor)
        connection.close()

    # -- the waiting thread ----------------------------------------------------------------------

    def _run(self) -> None:
        assert self._listening is not None
        look_s = self._clock_s() + _LOOK_S
        while not self._stopping:
            for descriptor, _ in self._epoll.poll(0.1, _EVENTS):
                if descriptor == self._listening.fileno():
                    self._accept(self._listening)
                elif (connection := self._connections.get(descriptor)) is not None:
                    self._submit(connection)
            if self._clock_s() >= look_s:
                look_s = self._clock_s() + _LOOK_S
                self._look()

    def _submit(self, connection: AnsweringConnection) -> None:
        self._count(1)
        try:
            self._quick.submit(self._serve, connection)
        except RuntimeError:  # the server is stopping
            self._count(-1)

    def _serve(self, connection: AnsweringConnection) -> None:
        try:
            connection.run()
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._counting:
            self._submitted += change

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_EVENTS):
            try:
                accepted, peer = listening.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # the caller has gone away
                continue
            except OSError as error:  # no descriptors
                log.warning("a connection could not be accepted: %s", error.strerror)
                self._drop_one_of(self._there())
                time.sleep(_PAUSE_S)  # it is tried again at once
                return
            host = host_of(peer)
            if not self._has_room_for(accepted, host):
                accepted.close()
                continue
            self._begin(accepted, host)

    def _has_room_for(self, accepted: socket.socket, host: str) -> bool:
        """Whether a new connection may stay; others may be ended in its favour."""
        limits = self._limits
        if len(self._connections) >= limits.connections + int(limits.connections * _BEING_CLOSED):
            self._refused += 1
            return False
        if limits.strangers is not None:
            stranger = to_drop(self._strangers(), host, limits.strangers)
            if stranger is not None:
                self._end(stranger)
        # The system gives the lowest free number, so at least as many descriptors are in use.
        if limits.spares and accepted.fileno() >= descriptor_limit() * (1 - limits.spares):
            self._refused += 1
            return False
        if len(self._connections) < limits.connections * limits.of_host:
            return True
        there = self._there()
        theirs = [each for each in there if each.host == host]
        if len(theirs) >= limits.connections * limits.of_host:
            return self._drop_one_of(theirs)
        return len(there) < limits.connections or self._drop_one_of(there)

    def _there(self) -> list[AnsweringConnection]:
        """Connections that are not being closed."""
        return [each for each in list(self._connections.values()) if not each.has_ended]

    def _strangers(self) -> list[tuple[str, AnsweringConnection]]:
        """Connections of strangers that are not being closed, and their hosts."""
        return [(each.host, each) for each in self._there() if not each.standing.is_proven]

    def _begin(self, accepted: socket.socket, host: str) -> None:
        try:
            stream = self._secure(accepted)
        except OSError:  # the caller has gone away
            accepted.close()
            return
        connection = AnsweringConnection(
            stream, self._methods, self._describe, self, self._resources, self._methods_for, host
        )
        try:
            with self._lock:
                self._epoll.register(connection.descriptor, select.EPOLLIN | select.EPOLLONESHOT)
                self._connections[connection.descriptor] = connection
        except OSError as error:  # too many are watched on this machine
            log.warning("a connection could not be served: %s", error.strerror)
            connection.close()

    def _methods_for(self, methods: Mapping[int, Method], stream: Stream) -> Mapping[int, Method]:
        """The methods that the caller at the other end of a stream may call."""
        allowed = self._allowed(stream)
        if allowed is None:
            return methods
        return {number: method for number, method in methods.items() if number in allowed}

    def _drop_one_of(self, connections: Sequence[AnsweringConnection]) -> bool:
        """End a connection in favour of a new one: that has been quiet for longest.

        If strangers are bounded, it is one of a stranger, or else of the host that has most.
        """
        quiet = [each for each in connections if not each.is_busy]
        if not quiet:
            return False
        if self._limits.strangers is None:
            self._end(min(quiet, key=lambda each: (each.is_greeted, each.heard_s)))
            return True
        counts = Counter(each.host for each in connections)
        self._end(min(quiet, key=lambda each: (each.standing.is_proven, -counts[each.host], each.heard_s)))
        return True

    def _end(self, connection: AnsweringConnection) -> None:
        """End a connection, and have it closed at once: one that waits for memory is not watched."""
        connection.end()
        self._submit(connection)

    def _is_overdue(self, connection: AnsweringConnection, now_s: float) -> bool:
        """Whether a connection has been idle for too long, or its caller has not proven itself in time."""
        strangers = self._limits.strangers
        standing = connection.standing
        if strangers is not None and not standing.is_proven and now_s - standing.since_s > strangers.proving_s:
            return True
        return now_s - connection.heard_s > self._limits.idle_s

    def _look(self) -> None:
        """End connections that are stuck in the middle of something, or idle for too long."""
        if self._refused:
            log.warning("%d connections were refused: too many are open, or few descriptors are left", self._refused)
            self._refused = 0
        now_s = self._clock_s()
        connections = list(self._connections.values())
        for connection in connections:
            if connection.is_stuck(now_s) or (not connection.is_busy and self._is_overdue(connection, now_s)):
                self._end(connection)
            else:
                connection.wake_streams(now_s)
        for memory in self._memories:
            if memory.is_wanted:
                self._free_some(memory, now_s)

    def _free_some(self, memory: BodyMemory, now_s: float) -> None:
        """End a connection that sends too slowly while others wait for memory, of the host that has most of it."""
        slow = [each for each in list(self._connections.values()) if each.holds_of(memory) and each.hogged(now_s)]
        if slow:
            log.warning("a connection was closed: it sends too slowly while others wait for memory")
            self._end(max(slow, key=lambda each: (memory.of(each.host), each.hogged(now_s))))
