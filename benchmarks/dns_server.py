"""A server of datagrams in a process of its own; it prints its port and ends with its standard input.

``names`` serves the DNS over an upstream in the same process, ``echo`` sends back what it gets, with
as many bytes more as an answer has, by asyncio's own transport.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

from taskworker.outbound.dns.directory import Host, Listing
from taskworker.outbound.dns.names import DnsOptions, Names
from taskworker.outbound.dns.server import Listen
from taskworker.outbound.dns.upstream import NameServer

WORKERS = 100


class Echo(asyncio.DatagramProtocol):
    """Answers with what comes and so many bytes more."""

    def __init__(self, added_bytes: int) -> None:
        self._added = bytes(added_bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Send it back."""
        self._transport.sendto(data + self._added, addr)


class Members:
    """A pool of so many workers."""

    def listing(self) -> Listing:
        """See ``Directory``."""
        return Listing(workers=tuple(Host(f"worker_{number:03}", f"127.0.0.1:{number}") for number in range(WORKERS)))


async def echo(added_bytes: int) -> None:
    """Serve the echo."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Echo(added_bytes), local_addr=("127.0.0.1", 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    transport.close()


def names(upstream_port: int) -> None:
    """Serve names as a pool does, with the limits that a pool has."""
    options = DnsOptions(listen=Listen.parse("0"), servers=(NameServer("127.0.0.1", upstream_port),))
    served = Names(Members(), options)
    served.start()
    assert served.address is not None
    print(served.address.port, flush=True)
    sys.stdin.read()
    served.stop()


if __name__ == "__main__":
    kind, number = sys.argv[1], int(sys.argv[2])
    if kind == "echo":
        asyncio.run(echo(number))
    else:
        names(number)
