"""The DNS server, on one UDP and TCP port of this machine."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from storage.errors import InvalidArgument
from taskworker.errors import StorageUnavailable
from taskworker.outbound.dns.budget import ReplyBudget
from taskworker.outbound.dns.resolver import Resolver
from taskworker.outbound.dns.tcp import IDLE_S, TcpService
from taskworker.outbound.dns.udp import UdpService

_RECEIVE_BUFFER_BYTES = 1 << 20  # in the kernel, for what arrives while other threads run
_BIND_TRIES = 20


@dataclass(frozen=True, slots=True)
class Listen:
    """A checked address; ``port`` 0: any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Listen:
        """Read ``port``, ``ipv4:port`` or ``[ipv6]:port``.

        Raises:
            InvalidArgument: it is malformed, or other machines can reach it.
        """
        host, separator, port = text.rpartition(":")
        try:
            address = ip_address(host.removeprefix("[").removesuffix("]") if separator else "127.0.0.1")
        except ValueError:
            address = None
        if address is None or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise InvalidArgument(f"DNS address {text!r} is not PORT, 127.0.0.1:PORT or [::1]:PORT")
        if not address.is_loopback:
            raise InvalidArgument(
                f"refusing to serve names on {text}: it can be reached from other machines, which could then learn "
                "who is in the pool, and flood others through it; listen on 127.0.0.1 or [::1]"
            )
        return cls(str(address), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class DnsServer:
    """Serves a resolver. All methods must run in the thread of its event loop.

    Args:
        resolver: answers the questions.
        budget: limits replies over UDP.
        clock_s: monotonic seconds.
        idle_s: seconds after which a TCP client that asks nothing, or does not read its answers, is disconnected.
    """

    def __init__(
        self, resolver: Resolver, budget: ReplyBudget, *, clock_s: Callable[[], float], idle_s: float = IDLE_S
    ) -> None:
        self._udp = UdpService(resolver, budget, clock_s=clock_s)
        self._tcp = TcpService(resolver, idle_s=idle_s)

    async def start(self, listen: Listen) -> int:
        """Listen, and return the port.

        Raises:
            StorageUnavailable: the address is taken or cannot be bound.
        """
        datagrams, listener = _bound(listen)
        port: int = datagrams.getsockname()[1]
        self._udp.start(datagrams)
        await self._tcp.start(listener)
        return port

    async def stop(self) -> None:
        """Accept no more questions, and drop pending ones."""
        await self._udp.stop()
        await self._tcp.stop()


def _bound(listen: Listen) -> tuple[socket.socket, socket.socket]:
    """Sockets for UDP and TCP on the same port; tries several, as a port may be free for only one of the two."""
    for tries_left in reversed(range(_BIND_TRIES if listen.port == 0 else 1)):
        datagrams = _socket(listen, socket.SOCK_DGRAM)
        listener = _socket(listen, socket.SOCK_STREAM)
        try:
            datagrams.bind((listen.host, listen.port))
            listener.bind((listen.host, datagrams.getsockname()[1]))
            listener.listen()
        except OSError as error:
            datagrams.close()
            listener.close()
            if tries_left and error.errno == errno.EADDRINUSE:
                continue
            raise StorageUnavailable(
                f"cannot serve names on {listen}: {error.strerror}; choose another port with --dns-port"
            ) from None
        return datagrams, listener
    raise AssertionError("the last try returns or raises")


def _socket(listen: Listen, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET, kind)
    made.setblocking(False)
    if kind is socket.SOCK_DGRAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    else:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made
