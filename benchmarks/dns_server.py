"""A UDP server in its own process. It prints its port, and ends when its standard input is closed.

``names`` serves the pool's DNS, forwarding to an upstream server. ``echo`` uses asyncio's own transport to send back
what it receives, with as many additional bytes as a DNS answer has.
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
    """Sends back each datagram with ``added_bytes`` more bytes."""

    def __init__(self, added_bytes: int) -> None:
        self._added = bytes(added_bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Send the datagram back."""
        self._transport.sendto(data + self._added, addr)


class Members:
    """The directory of a pool with `WORKERS` workers."""

    def listing(self) -> Listing:
        """See ``Directory``."""
        return Listing(workers=tuple(Host(f"worker_{number:03}", f"127.0.0.1:{number}") for number in range(WORKERS)))


async def echo(added_bytes: int) -> None:
    """Run the echo server."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Echo(added_bytes), local_addr=("127.0.0.1", 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    transport.close()


def names(upstream_port: int) -> None:
    """Run the DNS server as a pool does, with a pool's limits."""
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
