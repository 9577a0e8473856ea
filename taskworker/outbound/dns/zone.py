"""The pool's own zone, made from the listing of the pool.

An id is used as a name unchanged: each part between dots is a label, underscores and hyphens included (DNS
allows any octets in labels; only host names of other protocols are restricted). Ids that differ only in case
share a name, which then has the records of both. Letters beyond ASCII are converted by IDNA 2008, as clients do.
An id that cannot be a name (empty parts, a part of more than 63 bytes, characters that IDNA forbids) has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.name import Name
from dns.rcode import Rcode
from dns.rdata import Rdata
from dns.rdataclass import RdataClass
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.TXT import TXT
from dns.rrset import RRset

from taskworker.outbound.dns.answers import Answer, Resolved
from taskworker.outbound.dns.directory import Directory, Host, Listing, NamedFunction
from taskworker.outbound.dns.text import below

APEX = dns.name.from_text("hive.")
_WORKERS = dns.name.from_text("worker.hive.")
_FUNCTIONS = dns.name.from_text("function.hive.")
_NODES = dns.name.from_text("pool.hive.")

TTL_S = 1
"""As long as a heartbeat, so that clients that cache answers see changes within a heartbeat."""
LOOK_S = 0.1
_TXT_BYTES_MAX = 255


class _Records:
    """The records of a listing, by name and type."""

    def __init__(self, listing: Listing) -> None:
        self._table: dict[Name, dict[RdataType, RRset]] = {}
        self._between: set[Name] = {_WORKERS, _FUNCTIONS, _NODES}
        addresses = {worker.name: worker.address for worker in listing.workers}
        for host in listing.nodes:
            self._add_host(host, _NODES)
        for host in listing.workers:
            self._add_host(host, _WORKERS)
        for function in listing.functions:
            self._add_function(function, addresses)

    def add(self, owner: Name, *records: Rdata) -> None:
        for record in records:
            by_type = self._table.setdefault(owner, {})
            rrset = by_type.setdefault(record.rdtype, RRset(owner, RdataClass.IN, record.rdtype))
            rrset.add(record, TTL_S)
        while (owner := owner.parent()).is_subdomain(APEX):
            self._between.add(owner)

    def find(self, name: Name) -> Mapping[RdataType, RRset] | None:
        """All records of a name; empty if there are only names below it; None if it does not exist."""
        found = self._table.get(name)
        return {} if found is None and name in self._between else found

    def _add_host(self, host: Host, under: Name) -> None:
        owner = named(host.name, under)
        if owner is not None:
            self.add(owner, *_located(host.address), *_services(host.address, owner), _text(host.notes))

    def _add_function(self, function: NamedFunction, addresses: Mapping[str, str]) -> None:
        owner = named(function.name, _FUNCTIONS)
        if owner is None:
            return
        self.add(owner, _text(function.notes))
        for worker in function.workers:
            target, address = named(worker, _WORKERS), addresses.get(worker, "")
            if target is not None:
                self.add(owner, *_located(address), *_services(address, target))


class Zone:
    """Answers for ``hive``. Thread-safe.

    Args:
        directory: lists what is in the pool.
        clock_s: monotonic seconds.
        serial: serial number for the first listing; it increases with each listing that differs from the last.
    """

    def __init__(self, directory: Directory, clock_s: Callable[[], float], serial: int) -> None:
        self._directory = directory
        self._clock_s = clock_s
        self._serial = serial
        self._listing: Listing | None = None
        self._looked_s = 0.0
        self._records = _Records(Listing())

    def answer(self, name: Name, kind: RdataType) -> Resolved:
        """The answer for a name at or below ``hive``."""
        self._look()
        found = self._records.find(name)
        if found is not None and kind in found:
            answer = Answer(Rcode.NOERROR, (found[kind],), ttl_s=TTL_S, authoritative=True)
        else:
            rcode = Rcode.NXDOMAIN if found is None else Rcode.NOERROR
            soa = self._apex_records()[RdataType.SOA]
            answer = Answer(rcode, (), (soa,), TTL_S, authoritative=True)
        return Resolved(answer, LOOK_S)

    def _apex_records(self) -> Mapping[RdataType, RRset]:
        found = self._records.find(APEX)
        assert found is not None
        return found

    def _look(self) -> None:
        now = self._clock_s()
        if self._listing is not None and 0 <= now - self._looked_s < LOOK_S:
            return
        self._looked_s = now
        listing = self._directory.listing()
        if listing == self._listing:
            return
        if self._listing is not None:
            self._serial = (self._serial + 1) & 0xFFFFFFFF
        records = _Records(listing)
        servers = [owner for node in listing.nodes if (owner := named(node.name, _NODES)) is not None] or [APEX]
        records.add(APEX, *(_rdata(RdataType.NS, str(server)) for server in servers), self._soa(servers[0]))
        self._listing, self._records = listing, records

    def _soa(self, server: Name) -> Rdata:
        # Nobody transfers the zone; only the last number matters: how long negative answers are valid.
        return _rdata(RdataType.SOA, f"{server} hostmaster.hive. {self._serial} 60 10 600 {TTL_S}")


def named(own: str, under: Name) -> Name | None:
    """The name of an id; None if it cannot have one."""
    try:
        return below(own, under)
    except (dns.exception.DNSException, UnicodeError):
        return None


def _located(address: str) -> Iterable[Rdata]:
    for ip in _addresses_of(address.rpartition(":")[0]):
        yield _rdata(RdataType.A if isinstance(ip, IPv4Address) else RdataType.AAAA, str(ip))


def _addresses_of(host: str) -> list[IPv4Address | IPv6Address]:
    if host == "localhost":
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        return [ip_address(host.removeprefix("[").removesuffix("]"))]
    except ValueError:
        return []  # a socket file


def _services(address: str, target: Name) -> Iterable[Rdata]:
    host, _, port = address.rpartition(":")
    if _addresses_of(host) and port.isdigit():
        yield _rdata(RdataType.SRV, f"0 0 {port} {target}")


def _text(notes: Iterable[str]) -> Rdata:
    strings = [note.encode(errors="replace")[:_TXT_BYTES_MAX] for note in notes]
    return TXT(RdataClass.IN, RdataType.TXT, strings or [b""])


def _rdata(kind: RdataType, text: str) -> Rdata:
    return dns.rdata.from_text(RdataClass.IN, kind, text)
