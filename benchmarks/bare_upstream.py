"""A name server in its own process that answers every name with the same address, valid for an hour."""

from __future__ import annotations

import socket
import sys
import threading

import dns.message
import dns.rrset
from dns.rdatatype import RdataType

TTL_S = 3600
ADDRESS = "198.41.0.4"


def serve(server: socket.socket) -> None:
    """Answer questions until the process ends."""
    while True:
        wire, peer = server.recvfrom(4096)
        response = dns.message.make_response(dns.message.from_wire(wire), recursion_available=True)
        asked = response.question[0]
        if asked.rdtype == RdataType.A:
            response.answer = [dns.rrset.from_text(asked.name, TTL_S, "IN", "A", ADDRESS)]
        server.sendto(response.to_wire(), peer)


if __name__ == "__main__":
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(bound,), daemon=True).start()
    print(bound.getsockname()[1], flush=True)
    sys.stdin.read()
