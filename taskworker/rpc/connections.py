"""Closes the connections of an address that has more than its part, which gRPC cannot do.

gRPC limits only the number of all connections. So the server looks through the sockets of its own process, and shuts
those down that are too many. gRPC then handles them as if the other end had closed them.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import threading
from collections import defaultdict
from contextlib import suppress

log = logging.getLogger("taskworker.services")

_LOOK_S = 1.0
_DESCRIPTORS = "/proc/self/fd"
_EACH = 2
"""An address may have one in so many of all connections."""


class Connections:
    """Watches the connections to a port. ``start`` and ``stop`` may be called once each.

    Args:
        most: how many connections the server takes; one address may have half of them.
    """

    def __init__(self, most: int) -> None:
        self._of_one = max(1, most // _EACH)
        self._port = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="connections", daemon=True)

    def start(self, port: int) -> None:
        """Watch connections to a port; 0, a socket file, has no addresses to tell apart."""
        self._port = port
        if port:
            self._thread.start()

    def stop(self) -> None:
        """End."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            try:
                closed = self.look()
            except OSError as error:
                log.warning("the server's connections cannot be looked through: %s", error)
                continue
            for address, count in closed.items():
                log.warning("closed %d connections from %s, which had more than %d", count, address, self._of_one)

    def look(self) -> dict[str, int]:
        """Close what is too much; return how many connections of which addresses."""
        names = os.listdir(_DESCRIPTORS)
        if len(names) <= self._of_one:
            return {}
        found: dict[str, list[int]] = defaultdict(list)
        for name in names:
            address = self._peer(int(name))
            if address:
                found[address].append(int(name))
        return {
            address: sum(map(self._shut, sorted(numbers)[self._of_one :]))
            for address, numbers in found.items()
            if len(numbers) > self._of_one
        }

    def _peer(self, number: int) -> str:
        """The address at the other end of a descriptor; empty if it is no connection to the port."""
        with suppress(OSError), _opened(number) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == self._port:
                return _plain(str(found.getpeername()[0]))
        return ""

    def _shut(self, number: int) -> bool:
        """Shut a connection down, if the descriptor still is one: it may belong to something else by now."""
        with suppress(OSError), _opened(number) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == self._port:
                found.shutdown(socket.SHUT_RDWR)
                return True
        return False


def _opened(number: int) -> socket.socket:
    """A descriptor of our own for a socket. If it is none, this raises OSError."""
    duplicate = os.dup(number)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        raise


def _plain(address: str) -> str:
    """An IPv4 address as such, if it came to an IPv6 socket."""
    with suppress(ValueError):
        found = ipaddress.ip_address(address.partition("%")[0])
        return str(getattr(found, "ipv4_mapped", None) or found)
    return address
