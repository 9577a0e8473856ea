"""Judges whether egress may connect to an address: public, or loopback and private networks."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

from taskworker.outbound.addresses import SPECIAL, is_isatap

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], list[Address]]
"""(name) → its addresses, possibly none; may block, and raise OSError."""

_UNICAST = ipaddress.IPv6Network("2000::/3")
"""The part of IPv6 that is assigned to global unicast."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEIGHBOURS = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared address space, which overlay networks use
            "127.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "::1/128",
            "fc00::/7",
        ),
    )
)
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba
            "fd00:42::42",  # Scaleway
            "fd00:c1::a9fe:a9fe",  # Oracle
            "fd00:ec2::23",  # Amazon: of containers
            "fd00:ec2::254",  # Amazon
            "fd20:ce::254",  # Google
        ),
    )
)
"""Clouds' metadata servers at addresses in private networks; they hand out the machine's credentials."""


def resolve_by_system(name: str) -> list[Address]:
    """The addresses that the system's resolver has for a name."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))


def is_public(address: Address) -> bool:
    """Whether an address, and any IPv4 address embedded in it, is public."""
    if any(address in network for network in SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    inner = _embedded(address)
    if address.ipv4_mapped is None and address not in _NAT64 and (address not in _UNICAST or not address.is_global):
        return False
    return all(is_public(one) for one in inner)


def is_neighbour(address: Address) -> bool:
    """Whether an address is loopback or in a private network, which a rule with ``private`` allows."""
    inner = _embedded(address) if isinstance(address, ipaddress.IPv6Address) else []
    if inner:
        return not address.is_link_local and all(is_neighbour(one) for one in inner)
    return any(address in network for network in _NEIGHBOURS) and address not in _METADATA


def _embedded(address: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that an IPv6 address may embed."""
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address.sixtofour is not None:
        return [address.sixtofour]
    if address.teredo is not None:
        return list(address.teredo)
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _NAT64 or (number >> 32 == 0 and number > 1):
        return [last]
    return [last] if is_isatap(address) else []
