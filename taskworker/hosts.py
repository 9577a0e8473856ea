"""Where callers are, so that those of one host share what hosts share."""

from __future__ import annotations

import ipaddress
from typing import Any

_NETWORK_BITS = 64  # whoever has one IPv6 address usually has all of its /64


def host_of(peer: Any) -> str:
    """Where a caller is, by the address that ``accept`` returns; empty: on this machine, at a Unix socket."""
    if not isinstance(peer, tuple):
        return ""
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False))
