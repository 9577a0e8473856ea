"""Plain sockets as a limit for a pool: one client, six sinks, and the least work that a 4-of-6 store can do.

To push, the client hashes each chunk of 1 MiB with BLAKE3, makes two more quarters by XOR, and sends each of the six
quarters to another sink. A sink writes what it receives to one file, and fdatasyncs it at the end. To get, the client
fetches four quarters of each chunk into place, and compares the chunk's hash. A small read fetches 1 KiB from four
sinks at once; a small write appends 1 KiB at all six, with an fdatasync each.

There is no pool in between, no catalog, no names and no errors handled. With TLS, the same shows what that costs a
program in Python: files cannot be sent by the kernel alone, and each record of 16 KiB that is received is a call. Run
as a module, it is a sink or the client, in its own process.
"""

from __future__ import annotations

import os
import queue
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from benchmarks.cluster_processes import ClientProcess
from benchmarks.measure import MIB, seconds_of
from benchmarks.plain_tls import SERVER_NAME, client_context, server_context, write_certificate
from benchmarks.processes import ServerProcess, obey, started_together

HOST = "127.0.0.1"
SINKS = 6
PARTS = 4
"""Quarters of a chunk that are needed to read it."""
CHUNK_BYTES = MIB
PART_BYTES = CHUNK_BYTES // PARTS
SMALL_PART_BYTES = 1024
QUEUED_PARTS = 8
"""Parts that wait for a sink while the client hashes on."""
WINDOW_CHUNKS = 8
"""Chunks that are being read at a time."""
ASKED_AHEAD = 6
"""Requests that a connection sends before their answers arrive."""
_HEADER = struct.Struct("<BQQ")  # operation, offset, length
_DONE = b"\1"


class _Operation(IntEnum):
    APPEND = 1
    SYNC = 2
    FETCH = 3
    FORGET = 4


class PlainSockets:
    """Six sinks and a client, each in its own process.

    Args:
        directory: where the sinks write.
        encrypted: whether with TLS.
    """

    def __init__(self, directory: Path, *, encrypted: bool = False) -> None:
        self._directory = directory
        self._certificate = directory / "plain.pem" if encrypted else None
        self._client = ClientProcess("benchmarks.plain_sockets")

    def __enter__(self) -> Self:
        homes = [self._directory / f"plain-{number}" for number in range(SINKS)]
        for home in homes:
            home.mkdir()
        arguments: list[Path] = []
        if self._certificate is not None:
            write_certificate(self._certificate)
            arguments = [self._certificate]
        sinks = [ServerProcess("benchmarks.plain_sockets", home, *arguments) for home in homes]
        with ExitStack() as stack:
            stack.enter_context(started_together([*sinks, self._client]))
            addresses = [sink.address for sink in sinks]
            self._client.run("connect", addresses=addresses, certificate=self._certificate)
            self.client_pid = self._client.pid
            self.sink_pids = [sink.pid for sink in sinks]
            self._running = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def push(self, source: Path) -> float:
        """Push a file, whose size is a multiple of `CHUNK_BYTES`; return the seconds, without those to read it."""
        return self._seconds("push", source=source)

    def get(self) -> float:
        """Get what was pushed last, and check its hashes; return the seconds."""
        return self._seconds("get")

    def read_small(self, count: int) -> float:
        """Make ``count`` small reads, one after another; return the seconds."""
        return self._seconds("read_small", count=count)

    def write_small(self, count: int) -> float:
        """Make ``count`` small writes, one after another; return the seconds."""
        return self._seconds("write_small", count=count)

    def forget(self) -> None:
        """Free the disk space of everything that was pushed."""
        self._client.run("forget")

    def _seconds(self, task: str, **arguments: object) -> float:
        return float(self._client.run(task, **arguments)["took"])


# -- a sink ----------------------------------------------------------------------------------------


class _Sink:
    """Appends what it receives to one file, and sends parts of it back. One thread for each connection."""

    def __init__(self, directory: Path, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._file = os.open(directory / "parts", os.O_CREAT | os.O_RDWR, 0o644)
        self._lock = threading.Lock()
        self._end = 0

    def serve(self, connection: socket.socket) -> None:
        """Serve until the client closes the connection."""
        header, buffer = memoryview(bytearray(_HEADER.size)), memoryview(bytearray(CHUNK_BYTES))
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        with connection, suppress(EOFError):
            while True:
                _receive(connection, header)
                operation, offset, length = _HEADER.unpack(header)
                if operation == _Operation.APPEND:
                    _receive(connection, buffer[:length])
                    self._append(buffer[:length])
                elif operation == _Operation.FETCH and self._tls is not None:
                    os.preadv(self._file, [buffer[:length]], offset)
                    connection.sendall(buffer[:length])
                elif operation == _Operation.FETCH:
                    self._send(connection, offset, length)
                else:
                    self._sync() if operation == _Operation.SYNC else self._forget()
                    connection.sendall(_DONE)

    def _append(self, part: memoryview) -> None:
        with self._lock:
            at, self._end = self._end, self._end + len(part)
        os.pwrite(self._file, part, at)

    def _send(self, connection: socket.socket, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            offset += os.sendfile(connection.fileno(), self._file, offset, end - offset)

    def _sync(self) -> None:
        os.fdatasync(self._file)

    def _forget(self) -> None:
        with self._lock:
            os.truncate(self._file, 0)
            self._end = 0


def _serve(directory: Path, certificate: Path | None = None) -> None:
    """Print the port once it is open, and serve until standard input is closed; with a certificate, with TLS."""
    sink = _Sink(directory, None if certificate is None else server_context(certificate))
    listener = socket.create_server((HOST, 0))

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=sink.serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


# -- the client ------------------------------------------------------------------------------------

Place = tuple[int, int]
"""Where a part is: the number of its sink, and its offset there."""
Chunk = tuple[bytes, list[Place]]
"""A chunk's hash, and the places of its four parts."""


class _Tasks:
    """The tasks of the client process. Its connections stay open between tasks."""

    def __init__(self) -> None:
        self._sinks: list[socket.socket] = []
        self._ends = [0] * SINKS
        self._chunks: list[Chunk] = []

    def connect(self, addresses: Sequence[str], certificate: str | None = None) -> None:
        """Connect to the sinks; if they have a certificate, with TLS."""
        tls = None if certificate is None else client_context(Path(certificate))
        for host, _, port in (address.rpartition(":") for address in addresses):
            sink = socket.create_connection((host, int(port)))
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sinks.append(sink if tls is None else tls.wrap_socket(sink, server_hostname=SERVER_NAME))

    def push(self, source: str) -> dict[str, float]:
        """See :meth:`PlainSockets.push`. The content is in memory before the clock starts."""
        content = memoryview(Path(source).read_bytes())
        return {"took": seconds_of(lambda: self._push(content))}

    def get(self) -> dict[str, float]:
        """See :meth:`PlainSockets.get`."""
        return {"took": seconds_of(self._get)}

    def read_small(self, count: int) -> dict[str, float]:
        """See :meth:`PlainSockets.read_small`."""
        buffer = memoryview(bytearray(PARTS * SMALL_PART_BYTES))
        slots = [buffer[part * SMALL_PART_BYTES :][:SMALL_PART_BYTES] for part in range(PARTS)]
        request = _HEADER.pack(_Operation.FETCH, 0, SMALL_PART_BYTES)

        def action() -> None:
            for _ in range(count):
                for sink in self._sinks[:PARTS]:
                    sink.sendall(request)
                for sink, slot in zip(self._sinks, slots, strict=False):
                    _receive(sink, slot)

        return {"took": seconds_of(action)}

    def write_small(self, count: int) -> dict[str, float]:
        """See :meth:`PlainSockets.write_small`."""
        part = os.urandom(SMALL_PART_BYTES)
        request = _HEADER.pack(_Operation.APPEND, 0, len(part)) + part + _HEADER.pack(_Operation.SYNC, 0, 0)

        def action() -> None:
            for _ in range(count):
                for sink in self._sinks:
                    sink.sendall(request)
                for sink in self._sinks:
                    _await_done(sink)

        took = seconds_of(action)
        self._ends = [end + count * len(part) for end in self._ends]
        return {"took": took}

    def forget(self) -> None:
        """See :meth:`PlainSockets.forget`."""
        for sink in self._sinks:
            sink.sendall(_HEADER.pack(_Operation.FORGET, 0, 0))
            _await_done(sink)
        self._ends = [0] * SINKS

    def _push(self, content: memoryview) -> None:
        lanes: list[queue.Queue[memoryview | None]] = [queue.Queue(QUEUED_PARTS) for _ in self._sinks]
        with _Threads(_send_parts, zip(self._sinks, lanes, strict=True)):
            self._chunks = [self._send_chunk(number, content, lanes) for number in range(len(content) // CHUNK_BYTES)]
            for lane in lanes:
                lane.put(None)

    def _send_chunk(self, number: int, content: memoryview, lanes: Sequence[queue.Queue[memoryview | None]]) -> Chunk:
        """Queue the six parts of a chunk, each for another sink."""
        chunk = content[number * CHUNK_BYTES :][:CHUNK_BYTES]
        parts = [chunk[part * PART_BYTES :][:PART_BYTES] for part in range(PARTS)]
        parts += [_xor(*parts[:2]), _xor(*parts[2:])]
        digest = blake3(chunk).digest()
        places = []
        for index, part in enumerate(parts):
            lane = (number + index) % SINKS
            places.append((lane, self._ends[lane]))
            self._ends[lane] += PART_BYTES
            lanes[lane].put(part)
        return digest, places[:PARTS]

    def _get(self) -> None:
        window = _Window()
        wanted: list[list[tuple[int, int, int]]] = [[] for _ in self._sinks]
        for number, (_, places) in enumerate(self._chunks):
            for part, (lane, offset) in enumerate(places):
                wanted[lane].append((number, part, offset))
        with _Threads(window.fetch, zip(self._sinks, wanted, strict=True)):
            for number, (digest, _) in enumerate(self._chunks):
                if blake3(window.await_chunk(number)).digest() != digest:
                    raise AssertionError(f"the sinks returned other bytes than those of chunk {number}")
                window.release(number)


class _Window:
    """Buffers of the chunks that are being read. Each is filled by several threads, and used by one."""

    def __init__(self) -> None:
        self._buffers = [memoryview(bytearray(CHUNK_BYTES)) for _ in range(WINDOW_CHUNKS)]
        self._missing = [PARTS] * WINDOW_CHUNKS
        self._released = 0
        self._changed = threading.Condition()

    def fetch(self, sink: socket.socket, parts: Sequence[tuple[int, int, int]]) -> None:
        """Fetch parts, given as chunk, number of the part and offset, from one sink."""
        asked = 0
        for index, (number, part, _) in enumerate(parts):
            ask_until = min(index + ASKED_AHEAD, len(parts))
            if asked < ask_until:
                offsets = (offset for _, _, offset in parts[asked:ask_until])
                sink.sendall(b"".join(_HEADER.pack(_Operation.FETCH, offset, PART_BYTES) for offset in offsets))
                asked = ask_until
            self._await_room(number)
            _receive(sink, self._buffers[number % WINDOW_CHUNKS][part * PART_BYTES :][:PART_BYTES])
            self._note_part(number)

    def await_chunk(self, number: int) -> memoryview:
        """Wait until all parts of a chunk are there; return its bytes."""
        slot = number % WINDOW_CHUNKS
        with self._changed:
            self._changed.wait_for(lambda: not self._missing[slot])
        return self._buffers[slot]

    def release(self, number: int) -> None:
        """Let the buffer of a chunk be used again."""
        with self._changed:
            self._missing[number % WINDOW_CHUNKS] = PARTS
            self._released = number + 1
            self._changed.notify_all()

    def _await_room(self, number: int) -> None:
        if number >= self._released + WINDOW_CHUNKS:
            with self._changed:
                self._changed.wait_for(lambda: number < self._released + WINDOW_CHUNKS)

    def _note_part(self, number: int) -> None:
        with self._changed:
            self._missing[number % WINDOW_CHUNKS] -= 1
            if not self._missing[number % WINDOW_CHUNKS]:
                self._changed.notify_all()


class _Threads:
    """Runs an action once for each item, each in a thread, and waits for their ends."""

    def __init__(self, action: Callable[..., None], items: Iterable[tuple[object, ...]]) -> None:
        self._threads = [threading.Thread(target=action, args=item, daemon=True) for item in items]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for thread in self._threads:
                thread.join()


def _send_parts(sink: socket.socket, lane: queue.Queue[memoryview | None]) -> None:
    header = _HEADER.pack(_Operation.APPEND, 0, PART_BYTES)
    for part in iter(lane.get, None):
        if isinstance(sink, ssl.SSLSocket):  # has no sendmsg
            sink.sendall(header)
            sink.sendall(part)
            continue
        sent = sink.sendmsg([header, part])
        if sent < len(header) + len(part):  # the header is the first to leave
            sink.sendall(part[sent - len(header) :])
    sink.sendall(_HEADER.pack(_Operation.SYNC, 0, 0))
    _await_done(sink)


def _xor(one: memoryview, other: memoryview) -> memoryview:
    mixed = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return memoryview(mixed.to_bytes(len(one), "little"))


def _receive(connection: socket.socket, into: memoryview) -> None:
    """Fill ``into``.

    Raises:
        EOFError: the other end closed the connection.
    """
    while into:
        count = connection.recv_into(into)
        if not count:
            raise EOFError("the connection was closed")
        into = into[count:]


def _await_done(sink: socket.socket) -> None:
    if sink.recv(1) != _DONE:
        raise EOFError("a sink closed the connection")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _serve(*map(Path, sys.argv[1:]))
    else:
        obey(_Tasks())
