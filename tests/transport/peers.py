"""Peers that speak the transport's protocol byte by byte, rightly or wrongly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from taskworker.transport.wire.framing import (
    BODY_BYTES_MAX,
    GREETING_BYTES,
    HEADER_BYTES,
    LAST,
    WELCOME_BYTES,
    Header,
    Kind,
    pack_greeting,
    pack_header,
    pack_welcome,
    unpack_header,
)

WELCOME = pack_welcome(1, BODY_BYTES_MAX, 256)


def call(number: int, body: bytes = b"", method: int = 1, value: int = 0) -> bytes:
    """A call."""
    return pack_header(Kind.CALL, number, len(body), method=method, value=value) + body


def answer(number: int, body: bytes = b"", flags: int = LAST) -> bytes:
    """A message of an answer, the last one unless told otherwise."""
    return pack_header(Kind.ANSWER, number, len(body), flags=flags) + body


class Peer:
    """One end of a connection, a socket."""

    def __init__(self, connected: socket.socket, within_s: float = 10.0) -> None:
        self.socket = connected
        connected.settimeout(within_s)

    def send(self, *parts: bytes) -> None:
        """Send these bytes, as far as the other end still takes them."""
        with contextlib.suppress(OSError):
            self.socket.sendall(b"".join(parts))

    def take(self, count: int) -> bytes:
        """The next bytes; fewer if the other end closes the connection."""
        received = bytearray()
        while len(received) < count:
            try:
                piece = self.socket.recv(min(count - len(received), 1 << 20))
            except ConnectionError:
                break
            if not piece:
                break
            received += piece
        return bytes(received)

    def frame(self) -> tuple[Header, bytes] | None:
        """The next frame; None if the other end closes the connection."""
        raw = self.take(HEADER_BYTES)
        if len(raw) < HEADER_BYTES:
            return None
        header = unpack_header(raw)
        return header, self.take(header.length)

    def is_closed(self) -> bool:
        """Wait until the other end closes the connection; whether it did within the time limit."""
        try:
            while self.socket.recv(1 << 20):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def connect(address: str) -> Peer:
    """A connection to a server, on which nothing was sent."""
    if address.startswith("unix:"):
        connecting = socket.socket(socket.AF_UNIX)
        connecting.connect(address.removeprefix("unix:"))
        return Peer(connecting)
    host, _, port = address.rpartition(":")
    return Peer(socket.create_connection((host, int(port))))


@contextmanager
def caller(address: str) -> Iterator[Peer]:
    """A connection to a server, greeted."""
    peer = connect(address)
    try:
        peer.send(pack_greeting(1))
        assert len(peer.take(WELCOME_BYTES)) == WELCOME_BYTES
        yield peer
    finally:
        peer.close()


@contextmanager
def worker(behave: Callable[[Peer], None], path: Path | None = None) -> Iterator[str]:
    """The address of a server that behaves like this on each connection, in a thread of its own."""
    listening = socket.create_server(("127.0.0.1", 0)) if path is None else socket.socket(socket.AF_UNIX)
    if path is not None:
        listening.bind(str(path))
        listening.listen()
    threads: list[threading.Thread] = []
    peers: list[Peer] = []

    def serve(peer: Peer) -> None:
        with contextlib.suppress(OSError):
            behave(peer)

    def accept() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            peers.append(Peer(accepted))
            threads.append(threading.Thread(target=serve, args=(peers[-1],)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}" if path is None else f"unix:{path}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for peer in peers:
            peer.close()


def greeted(peer: Peer, welcome: bytes = WELCOME) -> None:
    """Take a greeting, and answer it."""
    peer.take(GREETING_BYTES)
    peer.send(welcome)
