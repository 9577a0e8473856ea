"""A TCP proxy on loopback that counts what passes and can cut the line."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Proxy:
    """Forwards connections to ``target``.

    Args:
        target: ``host:port``.
        origin: the address from which it connects there; empty: any.

    Attributes:
        sent: bytes that clients sent.
        received: bytes that clients received.
    """

    def __init__(self, target: str, origin: str = "") -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._origin = (origin, 0) if origin else None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.received = 0
        self._cut_at: tuple[str, int] | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut_after_sent(self, count: int) -> None:
        """Cut all connections, once, when clients have sent ``count`` more bytes."""
        with self._lock:
            self._cut_at = ("sent", self.sent + count)

    def cut_after_received(self, count: int) -> None:
        """Cut all connections, once, when clients have received ``count`` more bytes."""
        with self._lock:
            self._cut_at = ("received", self.received + count)

    def cut(self) -> None:
        """Cut all connections now."""
        with self._lock:
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._listener.accept()
            except OSError:
                return
            try:
                outside = socket.create_connection(self._target, source_address=self._origin)
            except OSError:
                inside.close()
                continue
            thread = threading.Thread(target=self._connect, args=(inside, outside))
            self._threads.append(thread)
            thread.start()

    def _connect(self, inside: socket.socket, outside: socket.socket) -> None:
        with self._lock:
            self._sockets |= {inside, outside}
        back = threading.Thread(target=self._forward, args=(outside, inside, "received"))
        back.start()
        self._forward(inside, outside, "sent")
        back.join()
        with self._lock:
            self._sockets -= {inside, outside}
        inside.close()
        outside.close()

    def _forward(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16 * 1024):
                if self._counted(direction, len(data)):
                    self.cut()
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _counted(self, direction: str, count: int) -> bool:
        with self._lock:
            setattr(self, direction, getattr(self, direction) + count)
            if self._cut_at is None or self._cut_at[0] != direction or getattr(self, direction) < self._cut_at[1]:
                return False
            self._cut_at = None
            return True
