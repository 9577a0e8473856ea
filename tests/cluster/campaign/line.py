"""A TCP line on loopback that can be slow, or swallow what is sent."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

_PIECE_BYTES = 16 * 1024
_LOOK_S = 0.02


class Line:
    """Forwards connections to ``target`` until the process ends.

    Attributes:
        address: where to connect to.
        bytes_per_s: how fast answers travel; None: as they come; 0: nothing gets through, either way.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.bytes_per_s: float | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            inside, _ = self._listener.accept()
            outside = socket.create_connection(self._target)
            for source, target, answers in ((inside, outside, False), (outside, inside, True)):
                threading.Thread(target=self._forward, args=(source, target, answers), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                while data:
                    count = self._allowed(len(data), answers)
                    target.sendall(data[:count])
                    data = data[count:]
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _allowed(self, count: int, answers: bool) -> int:
        """How many bytes may pass now; waits until some may."""
        while self.bytes_per_s == 0:
            time.sleep(_LOOK_S)
        rate = self.bytes_per_s
        if rate is None or not answers:
            return count
        time.sleep(_LOOK_S)
        return min(count, max(1, int(rate * _LOOK_S)))
