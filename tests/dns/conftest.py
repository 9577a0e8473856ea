"""Names served on loopback: the pool's zone over a list of the test's own, all else from a name server of its own."""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import dns.message
import dns.query
import pytest
from dns.message import Message
from dns.rcode import Rcode

from taskworker.outbound.dns.directory import Listing
from taskworker.outbound.dns.names import DnsOptions, Names
from taskworker.outbound.dns.server import Listen
from tests.dns.upstream import TestNameServer

TIMEOUT_S = 20.0


@dataclass
class Pool:
    """Who is in the pool: what the test says."""

    now: Listing = field(default_factory=Listing)

    def listing(self) -> Listing:
        return self.now


@dataclass
class Clock:
    """The machine's clock, which can be put forward."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


@dataclass
class Served:
    """A running server and what is around it."""

    names: Names
    pool: Pool
    outside: TestNameServer
    clock: Clock

    @property
    def where(self) -> tuple[str, int]:
        assert self.names.address is not None
        return self.names.address.host, self.names.address.port

    def query(self, name: str, kind: str = "A", *, tcp: bool = False, **options: object) -> Message:
        """What a client gets."""
        asked = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        host, port = self.where
        if tcp:
            return dns.query.tcp(asked, host, timeout=TIMEOUT_S, port=port)
        return dns.query.udp(asked, host, timeout=TIMEOUT_S, port=port)

    def texts(self, name: str, kind: str = "A", *, tcp: bool = False) -> list[str]:
        """The records, without aliases, sorted."""
        response = self.query(name, kind, tcp=tcp)
        assert response.rcode() == Rcode.NOERROR, response
        return sorted(str(record) for rrset in response.answer if rrset.rdtype.name == kind for record in rrset)

    def raw(self, wire: bytes, *, answered: bool = True) -> bytes:
        """What comes back for a datagram; nothing at all must, if it is not ``answered``."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.connect(self.where)
            one.settimeout(TIMEOUT_S)
            one.send(wire)
            if not answered:
                one.send(dns.message.make_query("localhost", "A", id=4711).to_wire())
            return one.recv(65535)

    def connection(self) -> socket.socket:
        """A TCP connection."""
        return socket.create_connection(self.where, TIMEOUT_S)


def framed(*messages: Message | bytes) -> bytes:
    """Messages as TCP carries them."""
    wires = [one if isinstance(one, bytes) else one.to_wire() for one in messages]
    return b"".join(struct.pack("!H", len(wire)) + wire for wire in wires)


Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server with options; all of them stop at the end."""
    with ExitStack() as stack:

        def start(**options: object) -> Served:
            outside = stack.enter_context(TestNameServer())
            pool, clock = Pool(), Clock()
            chosen: dict[str, object] = {"listen": Listen.parse("0"), "servers": (outside.server,)} | options
            names = Names(pool, DnsOptions(**chosen), clock_s=clock)  # type: ignore[arg-type]
            names.start()
            stack.callback(names.stop)
            return Served(names, pool, outside, clock)

        yield start


@pytest.fixture
def served(serve: Serve) -> Served:
    """A server with usual options."""
    return serve()


@pytest.fixture(autouse=True)
def _nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever comes over the network, nothing may be logged as an error."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []
