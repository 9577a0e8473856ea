"""Forwards questions to other name servers.

dnspython implements the protocol: random ports and ids, TCP after truncation, EDNS, failover to other servers, and
the check that an answer belongs to the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.message
import dns.resolver
from dns.message import Message, QueryMessage
from dns.name import Name
from dns.nameserver import Do53Nameserver
from dns.rdatatype import RdataType

from storage.errors import InvalidArgument
from taskworker.outbound.dns.answers import Answer

PORT = 53
UDP_BYTES = 1232
"""The size that is never fragmented (DNS Flag Day 2020)."""
_TRY_S = 2.0
_LIFETIME_S = 6.0
_TTL_MAX_S = 86_400
_OVERHEAD_BYTES = 1536  # of an answer in memory (measured: 1400)
_RECORD_OVERHEAD_BYTES = 200  # of one of its records (measured: 150 to 230)
_NEGATIVE_TTL_MAX_S = 3_600  # RFC 2308: one to three hours work well


class NameServersFailed(Exception):
    """No name server answered; the text says what each of them did."""


@dataclass(frozen=True, slots=True)
class NameServer:
    """The address of a name server."""

    address: str
    port: int = PORT

    @classmethod
    def parse(cls, text: str) -> NameServer:
        """Read ``address``, ``ipv4:port`` or ``[ipv6]:port``.

        Raises:
            InvalidArgument: it is none of these.
        """
        host, separator, port = text.rpartition(":")
        if not separator or (":" in host and not host.startswith("[")):
            host, port = text, str(PORT)
        try:
            address = str(ip_address(host.removeprefix("[").removesuffix("]")))
            number = int(port)
        except ValueError:
            number = 0
        if not 0 < number < 65536:
            raise InvalidArgument(f"name server {text!r} is not ADDRESS, IPV4:PORT or [IPV6]:PORT")
        return cls(address, number)


class Upstream:
    """Forwards questions; for one event loop.

    Args:
        servers: name servers in the order in which to ask them; none: those in the system's resolv.conf.
    """

    def __init__(self, servers: Sequence[NameServer] = ()) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = [Do53Nameserver(one.address, one.port) for one in servers] or _of_system()
        self._resolver.use_edns(0, 0, UDP_BYTES)
        self._resolver.timeout = _TRY_S
        self._resolver.lifetime = _LIFETIME_S

    async def ask(self, name: Name, kind: RdataType) -> Answer:
        """Ask the name servers.

        Raises:
            NameServersFailed: none of them answered.
        """
        if not self._resolver.nameservers:
            raise NameServersFailed("no name servers are known: resolv.conf has none; give one with --dns-upstream")
        try:
            found = await self._resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
            return _answer(found.response)
        except dns.resolver.NXDOMAIN as error:
            return _answer(error.kwargs["responses"][name])
        except dns.exception.DNSException as error:
            raise NameServersFailed(f"the name servers do not answer: {error}") from None


def _of_system() -> list[str | dns.nameserver.Nameserver]:
    try:
        return list(dns.resolver.Resolver().nameservers)
    except dns.resolver.NoResolverConfiguration:
        return []


def _answer(response: Message) -> Answer:
    """The relevant part of a response: the chain from the question to its records, or the SOA."""
    assert isinstance(response, QueryMessage)
    chain = response.resolve_chaining()
    if chain.answer is not None:
        records, authority, ttl_s = [*chain.cnames, chain.answer], [], min(chain.minimum_ttl, _TTL_MAX_S)
    else:
        records, ttl_s = list(chain.cnames), min(chain.minimum_ttl, _NEGATIVE_TTL_MAX_S)
        authority = [rrset for rrset in response.authority if rrset.rdtype == RdataType.SOA]
    for rrset in records:
        rrset.ttl = min(rrset.ttl, _TTL_MAX_S)
    for rrset in authority:
        rrset.ttl = ttl_s  # tells clients how long to cache the absence (RFC 2308)
    count = sum(len(rrset) for rrset in (*records, *authority))
    size = _OVERHEAD_BYTES + count * _RECORD_OVERHEAD_BYTES + len(response.wire or b"")
    return Answer(response.rcode(), tuple(records), tuple(authority), ttl_s, size=size)
