"""Which addresses are of the public internet, whatever form they come in."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from dns.rdatatype import RdataType
from dns.rrset import RRset

Address = IPv4Address | IPv6Address

# Forms of IPv6 that lead to an IPv4 address: its bits from the right.
_EMBEDDING = {
    IPv6Network("::/96"): 0,  # "compatible", long obsolete
    IPv6Network("::ffff:0:0/96"): 0,  # mapped
    IPv6Network("::ffff:0:0:0/96"): 0,  # translated (SIIT)
    IPv6Network("64:ff9b::/96"): 0,  # NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}
# Lists of special addresses in the standard library differ between Python's versions: what the oldest lacks is here.
SPECIAL = tuple(
    map(
        ip_network,
        (
            "168.63.129.16/32",  # the metadata server of Azure, on an address like any other
            "192.0.0.0/24",  # protocols' own; Oracle's metadata server among them
            "192.88.99.0/24",  # relays of 6to4
            "2001::/23",  # protocols' own, Teredo among them
            "2001:db8::/32",
            "2620:4f:8000::/48",  # reverse zones of private addresses
            "3fff::/20",  # documentation
        ),
    )
)
"""Networks of no host that an outside name should lead to."""
_ISATAP = 0x5EFE
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # who knows where a site's own translator leads


def is_public(address: Address) -> bool:
    """Whether an address is global unicast; one that embeds an IPv4 address is what that one is."""
    if any(address in network for network in SPECIAL):
        return False
    if isinstance(address, IPv6Address):
        if is_isatap(address) and not is_public(IPv4Address(int(address) & 0xFFFFFFFF)):
            return False
        for network, shift in _EMBEDDING.items():
            if address in network:
                return is_public(IPv4Address((int(address) >> shift) & 0xFFFFFFFF))
        if address in _NAT64_LOCAL or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_isatap(address: IPv6Address) -> bool:
    """Whether its last 32 bits are an IPv4 address that it leads to (RFC 5214)."""
    number = int(address)
    return (number >> 32) & 0xFFFF == _ISATAP and (number >> 48) & 0xFDFF == 0


def addresses_in(rrset: RRset) -> Iterator[Address]:
    """The addresses that records lead clients to: of A and AAAA, and the hints of SVCB and HTTPS."""
    for record in rrset:
        if rrset.rdtype in (RdataType.A, RdataType.AAAA):
            yield ip_address(record.address)
        elif rrset.rdtype in (RdataType.SVCB, RdataType.HTTPS):
            for parameter in record.params.values():
                for text in getattr(parameter, "addresses", ()):
                    yield ip_address(text)
