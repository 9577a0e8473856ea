"""Judges whether addresses, in any notation, belong to the public internet."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from dns.rdatatype import RdataType
from dns.rrset import RRset

Address = IPv4Address | IPv6Address

# IPv6 networks that embed an IPv4 address, with the number of bits to its right.
_EMBEDDING = {
    IPv6Network("::/96"): 0,  # "compatible", long obsolete
    IPv6Network("::ffff:0:0/96"): 0,  # mapped
    IPv6Network("::ffff:0:0:0/96"): 0,  # translated (SIIT)
    IPv6Network("64:ff9b::/96"): 0,  # NAT64
    IPv6Network("2002::/16"): 80,  # 6to4
}
# The standard library's lists of special addresses differ between Python versions: these are missing in the oldest.
SPECIAL = tuple(
    map(
        ip_network,
        (
            "168.63.129.16/32",  # Azure's metadata server, at an otherwise ordinary address
            "192.0.0.0/24",  # reserved for protocols; includes Oracle's metadata server
            "192.88.99.0/24",  # relays of 6to4
            "2001::/23",  # reserved for protocols; includes Teredo
            "2001:db8::/32",
            "2620:4f:8000::/48",  # reverse zones of private addresses
            "3fff::/20",  # documentation
        ),
    )
)
"""Networks that a name outside the pool should not resolve to."""
_ISATAP = 0x5EFE
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # translated by the site itself, to unknown addresses


def is_public(address: Address) -> bool:
    """Whether an address is global unicast; for an embedded IPv4 address, whether that one is."""
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
    """Whether the last 32 bits are an embedded IPv4 address (ISATAP, RFC 5214)."""
    number = int(address)
    return (number >> 32) & 0xFFFF == _ISATAP and (number >> 48) & 0xFDFF == 0


def addresses_in(rrset: RRset) -> Iterator[Address]:
    """The addresses in records that clients would connect to: A, AAAA, and the hints in SVCB and HTTPS."""
    for record in rrset:
        if rrset.rdtype in (RdataType.A, RdataType.AAAA):
            yield ip_address(record.address)
        elif rrset.rdtype in (RdataType.SVCB, RdataType.HTTPS):
            for parameter in record.params.values():
                for text in getattr(parameter, "addresses", ()):
                    yield ip_address(text)
