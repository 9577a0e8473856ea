"""What this machine can do at best, measured beside a pool or store: its disk, its loopback, the way to the pool."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from taskworker.measuring.figures import Limit, percentile

_ROUNDS = 15
_ROUND_BYTES_MAX = 256 << 20  # of all rounds of a limit together
_PIECE_BYTES = 1 << 20
_TIMEOUT_S = 5.0


def disk_limits(directory: Path, size: int, written: int) -> tuple[Limit, Limit]:
    """How long it takes to write bytes to a file and flush it, and to read a file.

    Args:
        directory: where; the file is removed.
        size: bytes of a file as its user sees it, which are read.
        written: bytes that are stored for it, which are written.

    Raises:
        OSError: the disk failed.
    """
    piece = memoryview(os.urandom(min(_PIECE_BYTES, max(1, written))))
    writes, reads = [], []
    with tempfile.TemporaryFile(dir=directory) as file:
        descriptor = file.fileno()
        for _ in range(_rounds(written)):
            os.lseek(descriptor, 0, os.SEEK_SET)
            started = time.perf_counter()
            left = written
            while left > 0:
                left -= os.write(descriptor, piece[:left])
            os.fsync(descriptor)
            writes.append(time.perf_counter() - started)
            started = time.perf_counter()
            at = 0
            while at < size and (read := os.preadv(descriptor, [bytearray(min(_PIECE_BYTES, size - at))], at)):
                at += read
            reads.append(time.perf_counter() - started)
    return Limit("disk", _median(writes)), Limit("disk", _median(reads))


def loopback_limit(size: int) -> Limit:
    """How long a plain connection of this machine to itself takes for bytes, at least one, and one byte back.

    Raises:
        OSError: there is no loopback.
    """
    size = max(1, size)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        sink = threading.Thread(target=_take, args=(server, size), daemon=True)
        sink.start()
        piece = memoryview(os.urandom(min(_PIECE_BYTES, size)))
        seconds = []
        with socket.create_connection(server.getsockname(), _TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(_rounds(size)):
                started = time.perf_counter()
                left = size
                while left > 0:
                    left -= connection.send(piece[:left])
                connection.recv(1)
                seconds.append(time.perf_counter() - started)
        sink.join()
    return Limit("loopback", _median(seconds))


def _take(server: socket.socket, size: int) -> None:
    buffer = bytearray(_PIECE_BYTES)
    with contextlib.suppress(OSError), server.accept()[0] as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            left = size
            while left > 0:
                count = connection.recv_into(buffer, min(left, _PIECE_BYTES))
                if not count:
                    return
                left -= count
            connection.sendall(b"!")


def connect_limit(address: str) -> Limit | None:
    """How long it takes to connect to a server, one way to it and one back; None if that cannot be tried plainly."""
    seconds = []
    try:
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            if address.startswith("unix:"):
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(_TIMEOUT_S)
                    connection.connect(address.removeprefix("unix:"))
            else:
                host, _, port = address.rpartition(":")
                with socket.create_connection((host.removeprefix("[").removesuffix("]"), int(port)), _TIMEOUT_S):
                    pass
            seconds.append(time.perf_counter() - started)
    except (OSError, ValueError):
        return None
    return Limit("connect", _median(seconds))


def _rounds(size: int) -> int:
    return max(1, min(_ROUNDS, _ROUND_BYTES_MAX // max(1, size)))


def _median(seconds: list[float]) -> float:
    found = percentile(sorted(seconds), 0.5)
    assert found is not None, "there is at least one round"
    return found
