"""The pool's client behind a plain socket: what remains of the S3 gateway without HTTP, signatures and S3.

It is the limit of large objects. It receives with `recv_into`, pushes what it receives, computes MD5 in another thread
meanwhile, and writes what it gets to the socket.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

from benchmarks.measure import MIB
from benchmarks.processes import obey
from benchmarks.workload import USER
from taskworker import Client


class RelayCaller:
    """One connection to a relay.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._replies = self._socket.makefile("rb")
        self._buffer = memoryview(bytearray(MIB))

    def put_file(self, name: str, source: Path) -> None:
        """Have the content of a file pushed, which the kernel sends."""
        with source.open("rb") as file:
            self._socket.sendall(f"put {name} {source.stat().st_size}\n".encode())
            self._socket.sendfile(file)
        self._reply()

    def drain(self, name: str) -> int:
        """Get a file and discard its bytes; return how many there were."""
        self._socket.sendall(f"get {name} 0\n".encode())
        length = left = int(self._reply())
        while left:
            count = self._replies.readinto1(self._buffer[: min(left, len(self._buffer))])
            if not count:
                raise ConnectionError("the relay closed the connection")
            left -= count
        return length

    def _reply(self) -> bytes:
        line = self._replies.readline()
        if not line:
            raise ConnectionError("the relay closed the connection")
        return line


class _Tasks:
    """The tasks of a relay's process."""

    def serve(self, pool: str) -> dict[str, str]:
        """Serve one connection after another until the process ends; return where."""
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_serve, args=(listener, Client(pool)), daemon=True).start()
        return {"address": f"127.0.0.1:{listener.getsockname()[1]}"}


def _serve(listener: socket.socket, client: Client) -> None:
    with ThreadPoolExecutor(1) as hashing:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as received:
                while line := received.readline():
                    _answer(client, hashing, line.decode().split(), received, connection)


def _answer(
    client: Client, hashing: ThreadPoolExecutor, line: list[str], received: BufferedReader, connection: socket.socket
) -> None:
    task, name, size = line
    if task == "put":
        client.push(_hashed(received, int(size), hashing), filename=name, user_id=USER)
        connection.sendall(b"stored\n")
        return
    found = client.find(name, user_id=USER)
    if found is None:
        raise FileNotFoundError(f"the pool has no {name}")
    connection.sendall(f"{found.size}\n".encode())
    with connection.makefile("wb") as target:  # what is larger than its buffer passes through without a copy
        client.download(found.file_id, target, user_id=USER)


def _hashed(received: BufferedReader, size: int, hashing: ThreadPoolExecutor) -> Iterator[memoryview]:
    """The next bytes as they come; their MD5 is at most one piece behind."""
    md5, running = hashlib.md5(usedforsecurity=False), Future[None]()
    running.set_result(None)
    while size:
        piece = memoryview(bytearray(min(size, MIB)))
        count = received.readinto(piece)
        if count < len(piece):
            raise ConnectionError("the caller closed the connection")
        size -= count
        running.result()
        running = hashing.submit(md5.update, piece)
        yield piece
    running.result()


if __name__ == "__main__":
    obey(_Tasks())
