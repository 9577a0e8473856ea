"""A name server of the tests' own, on loopback: what it knows, what it was asked, how it misbehaves."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType

import dns.flags
import dns.message
import dns.rrset
from dns.message import Message
from dns.name import Name
from dns.rcode import Rcode
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rrset import RRset

from taskworker.outbound.dns.upstream import NameServer

SOA = "example. 900 IN SOA ns.example. hostmaster.example. 1 7200 900 1209600 60"


class TestNameServer:
    """Serves ``records`` over UDP and TCP until it is closed; a context manager.

    Attributes:
        asked: how often, by name and type.
        tcp_asked: how many questions came by TCP.
        ports, ids: of the questions over UDP.
        silent: answer nothing.
        failing: answer SERVFAIL.
        forging: send answers with a wrong id first.
        delay_s: before each answer.
        may_answer: while it is cleared, answers wait.
    """

    __test__ = False

    def __init__(self) -> None:
        self._records: dict[Name, dict[RdataType, RRset]] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.tcp_asked = 0
        self.ports: list[int] = []
        self.ids: list[int] = []
        self.silent = self.failing = self.forging = False
        self.delay_s = 0.0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._udp, self._tcp = _bound()
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    @property
    def server(self) -> NameServer:
        """Where it is."""
        return NameServer(*self._udp.getsockname())

    def set(self, *lines: str) -> None:
        """Replace the records of the names and types in lines of a zone file."""
        fresh: dict[tuple[Name, RdataType], RRset] = {}
        for line in lines:
            name, ttl, kind, data = line.split(maxsplit=3)
            rrset = dns.rrset.from_text(f"{name}.", int(ttl), "IN", kind, data)
            key = (rrset.name, rrset.rdtype)
            if key in fresh:
                fresh[key].update(rrset)  # type: ignore[no-untyped-call]
            else:
                fresh[key] = rrset
        for (owner, rdtype), rrset in fresh.items():
            self._records.setdefault(owner, {})[rdtype] = rrset

    def close(self) -> None:
        """Stop."""
        self.may_answer.set()
        for one in (self._udp, self._tcp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> TestNameServer:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                wire, peer = self._udp.recvfrom(4096)
                if not wire:
                    return
                query = dns.message.from_wire(wire)
                self.ports.append(peer[1])
                self.ids.append(query.id)
                response = self._response(query)
                if response is None:
                    continue
                if self.forging:
                    forged = self._forged(query)
                    self._udp.sendto(forged, peer)
                self._udp.sendto(self._fitting(query, response), peer)

    def _serve_tcp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection, connection.makefile("rb") as file:
                    (length,) = struct.unpack("!H", file.read(2))
                    self.tcp_asked += 1
                    response = self._response(dns.message.from_wire(file.read(length)))
                    if response is not None:
                        wire = response.to_wire(max_size=65535)
                        connection.sendall(struct.pack("!H", len(wire)) + wire)

    def _response(self, query: Message) -> Message | None:
        asked = query.question[0]
        self.asked[asked.name.to_text(omit_final_dot=True).lower(), asked.rdtype.name] += 1
        if self.silent:
            return None
        time.sleep(self.delay_s)
        self.may_answer.wait()
        response = dns.message.make_response(query, recursion_available=True)
        if self.failing:
            response.set_rcode(Rcode.SERVFAIL)
            return response
        self._fill(response, asked.name, asked.rdtype)
        return response

    def _fill(self, response: Message, name: Name, kind: RdataType) -> None:
        while (found := self._records.get(name)) is not None:
            if kind in found:
                response.answer.append(found[kind])
                return
            if RdataType.CNAME not in found:
                response.authority.append(_soa())
                return
            response.answer.append(found[RdataType.CNAME])
            name = found[RdataType.CNAME][0].target
        response.set_rcode(Rcode.NXDOMAIN)
        response.authority.append(_soa())

    def _forged(self, query: Message) -> bytes:
        forged = dns.message.make_response(query)
        forged.id = query.id ^ 1
        asked = query.question[0]
        forged.answer = [dns.rrset.from_text(asked.name, 300, RdataClass.IN, RdataType.A, "203.0.113.66")]
        return forged.to_wire()

    @staticmethod
    def _fitting(query: Message, response: Message) -> bytes:
        wire = response.to_wire(max_size=65535)
        if len(wire) <= (query.payload if query.edns >= 0 else 512):
            return wire
        response.flags |= dns.flags.TC
        response.answer = []
        return response.to_wire()


def _bound() -> tuple[socket.socket, socket.socket]:
    """Sockets for UDP and TCP on one port; one that is free for UDP may be taken for TCP."""
    while True:
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", 0))
        try:
            return datagrams, socket.create_server(datagrams.getsockname())
        except OSError:
            datagrams.close()


def _soa() -> RRset:
    name, ttl, rdclass, kind, data = SOA.split(maxsplit=4)
    return dns.rrset.from_text(name, int(ttl), rdclass, kind, data)
