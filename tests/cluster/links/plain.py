"""Bytes over one plain TCP connection for each worker: what the links can carry.

``python -m tests.cluster.links.plain HOST`` answers on a port of that host, which it announces with a line.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tests.cluster.links.network import Network

_REQUEST = struct.Struct("<QQ")  # bytes that follow, bytes to answer with
_BLOCK = bytes(1 << 18)


class PlainConnections:
    """One connection to each worker's namespace; a context manager.

    Args:
        network: the links.
        count: how many of them.
    """

    def __init__(self, network: Network, count: int) -> None:
        self._network = network
        self._count = count
        self._ended = contextlib.ExitStack()
        self._connections: list[socket.socket] = []
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> PlainConnections:
        for number in range(self._count):
            host = self._network.host(number)
            port = self._ended.enter_context(plain_server(self._network.inside(number), host))
            self._connections.append(self._ended.enter_context(connected(host, port)))
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)
        self._threads.shutdown()
        self._ended.close()

    def send(self, size: int) -> float:
        """Send this many bytes to each worker, until all have confirmed them; seconds."""
        return self._all(size, 1)

    def receive(self, size: int) -> float:
        """Receive this many bytes from each worker; seconds."""
        return self._all(0, size)

    def _all(self, sent: int, received: int) -> float:
        began_s = time.monotonic()
        list(self._threads.map(lambda connection: exchange(connection, sent, received), self._connections))
        return time.monotonic() - began_s


@contextlib.contextmanager
def plain_server(inside: Sequence[str], host: str) -> Iterator[int]:
    """Answer one connection to a host; yield the port.

    Args:
        inside: what to write before a command to run it there.
        host: its address.
    """
    command = [*inside, sys.executable, "-m", "tests.cluster.links.plain", host]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def connected(host: str, port: int) -> socket.socket:
    """Connect to such a port."""
    connection = socket.create_connection((host, port), 60)
    connection.settimeout(None)
    return connection


def exchange(connection: socket.socket, sent: int, received: int) -> None:
    """Send so many bytes, then receive so many."""
    connection.sendall(_REQUEST.pack(sent, received))
    _send(connection, sent)
    _receive(connection, received)


def _send(connection: socket.socket, size: int) -> None:
    while size:
        size -= connection.send(memoryview(_BLOCK)[: min(size, len(_BLOCK))])


def _receive(connection: socket.socket, size: int) -> None:
    block = bytearray(len(_BLOCK))
    while size:
        count = connection.recv_into(block, min(size, len(block)))
        if not count:
            raise ConnectionError("the other end closed the connection")
        size -= count


def _serve(arguments: Sequence[str]) -> None:
    with socket.create_server((arguments[0], 0)) as listening:
        print(listening.getsockname()[1], flush=True)
        connection, _ = listening.accept()
        with connection:
            while request := connection.recv(_REQUEST.size, socket.MSG_WAITALL):
                taken, given = _REQUEST.unpack(request)
                _receive(connection, taken)
                _send(connection, given)


if __name__ == "__main__":
    _serve(sys.argv[1:])
