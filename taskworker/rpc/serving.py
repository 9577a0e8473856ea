"""gRPC servers: where they listen, how many calls they admit, how they stop.

This uses gRPC's synchronous server, with a thread for each running call. The engine is synchronous, and its
heavy work runs outside the GIL. Compared on 2 cores with ``grpc.aio`` and the engine's work in threads:
1 MiB messages flow equally fast, and a small call takes 0.35 ms instead of 0.48 ms.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, cast

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from storage.errors import InvalidArgument, StoreUnavailable
from storage.system.descriptors import descriptor_limit
from storage.system.forks import HomeProcess
from taskworker.errors import CallNotOffered, StorageUnavailable, cannot_listen
from taskworker.rpc.admission import DEFAULT_CALLS, DEFAULT_LIMITS, Entry, Gate, ServerLimits
from taskworker.rpc.authorization import Guard
from taskworker.rpc.binding import generic_handler
from taskworker.rpc.connections import Connections
from taskworker.rpc.limits import WINDOW_OPTIONS, transport_bytes_max
from taskworker.rpc.refusals import HELD_MAX, Refusals
from taskworker.rpc.socket_files import appearing

log = logging.getLogger("taskworker.services")

_OPTIONS = (
    *WINDOW_OPTIONS,
    ("grpc.max_send_message_length", -1),  # what a server sends is its own
    # Without this, a second server on the same port would start and take half of the calls.
    ("grpc.so_reuseport", 0),
    # Without keepalive, a peer that vanished silently would hold its call's place for ever.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Whoever connects and makes no call takes a descriptor and some memory. Clients connect again when they need it.
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
)

_HEALTH = cast(ServiceDescriptor, health_pb2.DESCRIPTOR.services_by_name["Health"])
_WATCHERS = 32
_HASTE_S = 2.0
_REFLECTION = cast(ServiceDescriptor, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"])

_DESCRIPTORS_EACH = 4  # a pool has three servers, whose connections leave a quarter of the descriptors for its files
_LOOK_S = 5.0
_GIVE_UP_S = 600.0  # a server without its catalog is useless; its supervisor may be able to help


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A checked address to listen on: ``target`` for gRPC, ``port`` 0 for a free one or a socket file."""

    target: str
    socket_file: Path | None = None

    @classmethod
    def parse(cls, address: str, *, secured: bool = False) -> Endpoint:
        """Read ``host:port``, ``[ipv6]:port`` or ``unix:path``.

        Args:
            address: the address.
            secured: whether connections are encrypted, so that other machines may reach it.

        Raises:
            InvalidArgument: malformed, or reachable from other machines although it is not secured.
        """
        if address.startswith("unix:"):
            path = address.removeprefix("unix:").removeprefix("//")
            if not path:
                raise InvalidArgument(f"address {address!r} names no socket file; write unix:/path/to/socket")
            return cls(f"unix:{path}", Path(path))
        host, separator, port = address.rpartition(":")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise InvalidArgument(f"address {address!r} is not host:port, [ipv6]:port or unix:/path")
        if not secured:
            _require_loopback(host.removeprefix("[").removesuffix("]"), address)
        return cls(address)


def _require_loopback(host: str, address: str) -> None:
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host or None, None, flags=socket.AI_PASSIVE)}
    except (OSError, UnicodeError):
        raise InvalidArgument(f"address {address!r}: {host!r} is not a known host") from None
    if not all(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in found):
        raise InvalidArgument(
            f"refusing to listen on {address}: it can be reached from other machines, and what users send there, "
            "such as their tokens, would not be encrypted; use TLS, or listen on 127.0.0.1, [::1] or unix:/path"
        )


class _Health(health.HealthServicer):
    """The health service; it reports NOT_SERVING while the store cannot be used."""

    def __init__(self, trouble: Callable[[], str], *, is_watched: bool) -> None:
        super().__init__()
        self._is_watched = is_watched
        self._watchers = Gate(_WATCHERS, f"{_WATCHERS} callers watch the health, as many as this server allows")
        self._trouble = trouble
        self._told = True

    def tell(self, *, serving: bool) -> None:
        """Set whether the server itself is serving."""
        self._told = serving

    def Check(  # noqa: N802 - the name is the contract's
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """See the health checking protocol of gRPC."""
        answer: health_pb2.HealthCheckResponse = super().Check(request, context)
        trouble = self._trouble()
        if answer.status == health_pb2.HealthCheckResponse.SERVING and (trouble or not self._told):
            log.warning("a health check was answered with NOT_SERVING: %s", trouble or "no volume")
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return answer

    def Watch(  # type: ignore[override]  # noqa: N802 - each takes a thread, so that a body that never comes ends
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[health_pb2.HealthCheckResponse]:
        """See the health checking protocol of gRPC."""
        if not self._is_watched:
            raise CallNotOffered("this server does not let its health be watched; check it from time to time")
        with self._watchers.place():
            yield from super().Watch(request, context)

    def List(self, _request: object, _context: object) -> NoReturn:  # noqa: N802
        """Not offered: which services there are, reflection tells those who show a token."""
        raise CallNotOffered("this server does not list the health of its services; check one of them")


class Server:
    """Serves services on one address, with gRPC's own for health and reflection.

    ``start`` and ``stop`` may be called once each.

    Args:
        services: what to serve, by full name.
        calls: how many calls may run at once, one thread each.
        trouble: gives the reason why health checks should report NOT_SERVING now; empty if there is none.
        unusable: tries again, and gives the reason why nothing can be served; empty if something can. A server that
            stays unusable for ten minutes ends, see :meth:`wait`.
        guard: refuses calls of reflection to whom it does not know; it is for ``services`` to guard themselves.
        limits: sizes of messages, and connections; ``services`` have limits of their own in their handlers.
        entry: gives calls of health and reflection their places; it is for ``services`` to have it as well.
        for_strangers: whether anybody may connect, and nobody is known: the health cannot be watched then, and there is
            no reflection.
        clock_s: monotonic seconds.
    """

    def __init__(
        self,
        services: Mapping[str, grpc.GenericRpcHandler],
        *,
        calls: int = DEFAULT_CALLS,
        trouble: Callable[[], str] = lambda: "",
        unusable: Callable[[], str] | None = None,
        guard: Guard | None = None,
        limits: ServerLimits = DEFAULT_LIMITS,
        entry: Entry | None = None,
        for_strangers: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock_s = clock_s
        self._home = HomeProcess("this server")
        connections = min(limits.connections, descriptor_limit() // _DESCRIPTORS_EACH)
        self._connections = Connections(connections)
        self._unusable = unusable
        self._threads = ThreadPoolExecutor(calls, thread_name_prefix="call")
        self._health = _Health(trouble, is_watched=not for_strangers)
        self._socket_file: Path | None = None
        self._stopping = threading.Lock()
        self._refusals = Refusals(limits.refusals, calls // 2, clock_s)
        places = Gate(calls, f"{calls} calls are under way, as many as this server allows", kind="calls")
        is_shared = guard is not None and guard.divide(places, self._refusals)
        self._server = grpc.server(
            self._threads,
            options=(
                *_OPTIONS,
                ("grpc.max_receive_message_length", transport_bytes_max(limits.message_bytes)),
                ("grpc.max_allowed_incoming_connections", connections),
                ("grpc.max_concurrent_streams", limits.streams_each),
                # Also counts calls that have ended, until Python frees them, so that a busy client would be refused.
                ("grpc.http.overload_protection", 0),
            ),
            maximum_concurrent_rpcs=calls + (HELD_MAX if is_shared else 0),
        )
        for handler in services.values():
            self._server.add_generic_rpc_handlers((handler,))
        for name in ("", *services):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        # Anybody may make these calls, so they get little time.
        hasty = replace(limits, message_s=min(limits.message_s, _HASTE_S))
        self._server.add_generic_rpc_handlers(
            (generic_handler(_HEALTH, self._health, guard=guard, limits=hasty, entry=entry),)
        )
        if not for_strangers:
            reflected = reflection.ReflectionServicer((*services, health.SERVICE_NAME, reflection.SERVICE_NAME))
            handler = generic_handler(_REFLECTION, reflected, guard=guard, limits=limits, entry=entry)
            self._server.add_generic_rpc_handlers((handler,))

    def start(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None = None,
        *,
        bound: Callable[[str], None] = lambda _address: None,
    ) -> int:
        """Listen on ``host:port`` (port 0: any free one), ``[ipv6]:port`` or ``unix:path``.

        Only its owner may use a socket file.

        Args:
            address: where to listen.
            credentials: for TLS; None: without it, and so on this machine only.
            bound: called with the address, with its port, before the first call is answered.

        Returns:
            The port bound; 0 for a socket file.

        Raises:
            InvalidArgument: the address is malformed, or other machines can reach it.
            StorageUnavailable: the address is taken or cannot be bound.
        """
        self._home.check()
        endpoint = Endpoint.parse(address, secured=credentials is not None)
        if endpoint.socket_file is None:
            port = self._bind(endpoint.target, address, credentials)
        else:
            try:
                with appearing(endpoint.socket_file) as inner:
                    self._bind(f"unix:{inner}", address, credentials)
            except OSError as error:
                raise StorageUnavailable(f"cannot listen on {address}: {error.strerror}") from error
            self._socket_file, port = endpoint.socket_file, 0
        found = address if port == 0 else f"{address.rpartition(':')[0]}:{port}"
        bound(found)
        self._server.start()
        self._connections.start(port)
        log.info("serving on %s", found)
        return port

    def _bind(self, target: str, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self._server.add_insecure_port(target)
            return self._server.add_secure_port(target, credentials)
        except RuntimeError:
            raise cannot_listen(address) from None

    def tell_health(self, *, serving: bool) -> None:
        """Set whether health checks report that this server is serving."""
        self._health.tell(serving=serving)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Block until the server has stopped; False if ``timeout_s`` ran out first.

        Raises:
            StoreUnavailable: nothing could be served for ten minutes, so this process should end and its supervisor
                restart it. Raised only without ``timeout_s``.
        """
        if timeout_s is not None or self._unusable is None:
            return not self._server.wait_for_termination(timeout_s)
        failing_since_s = math.inf
        while self._server.wait_for_termination(_LOOK_S):
            why = self._unusable()
            failing_since_s = min(failing_since_s, self._clock_s()) if why else math.inf
            if self._clock_s() - failing_since_s > _GIVE_UP_S:
                raise StoreUnavailable(f"the catalog was unreadable for {_GIVE_UP_S:.0f} s; this process ends: {why}")
        return True

    def stop(self, grace_s: float = 5.0) -> None:
        """Accept no new calls, give running ones ``grace_s`` seconds, cancel the rest, and wait for all.

        Does nothing in a forked child: the server belongs to the parent.
        """
        if not self._home.is_here:
            return
        with self._stopping:
            self._connections.stop()
            self._health.enter_graceful_shutdown()
            stopped = self._server.stop(grace_s)
            self._refusals.end()
            stopped.wait()
            # The thread of a cancelled call may still be in the engine, which is closed after this returns.
            self._threads.shutdown(wait=True)
            if self._socket_file is not None:
                self._socket_file.unlink(missing_ok=True)
