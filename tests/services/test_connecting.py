"""Peers that take a while to answer a connection, as over a long line or on a busy machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from storage.errors import StorageError
from storage.shards import VolumeFailed
from taskworker import Client
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.wire.framing import BODY_BYTES_MAX, CALLS_MIN, GREETING_BYTES, HEADER_BYTES, pack_welcome


class SlowToGreet:
    """Answers a connection only after a while, as over a long line or on a busy machine.

    Args:
        after_s: how long it takes, in seconds.
        greeting: what it answers with.
        is_call: whether a caller has sent this much that a call has arrived.
    """

    def __init__(self, after_s: float, greeting: bytes, is_call: Callable[[bytes], bool]) -> None:
        self._after_s = after_s
        self._greeting = greeting
        self._is_call = is_call
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requested = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self.requested.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                threading.Event().wait(self._after_s)
                self._greet(connection)

    def _greet(self, connection: socket.socket) -> None:
        connection.settimeout(5.0)
        received = b""
        try:
            connection.sendall(self._greeting)
            while not self._is_call(received):
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            self.requested.set()
        except OSError:
            return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def slow_to_greet(greeting: bytes, is_call: Callable[[bytes], bool]) -> Iterator[SlowToGreet]:
    server = SlowToGreet(0.4, greeting, is_call)
    try:
        yield server
    finally:
        server.close()


def test_a_worker_that_is_slow_to_answer_a_connection_is_waited_for() -> None:
    welcome = pack_welcome(1, BODY_BYTES_MAX, CALLS_MIN)
    with slow_to_greet(welcome, lambda sent: len(sent) >= GREETING_BYTES + HEADER_BYTES) as slow:
        volume = RemoteVolume(slow.address, "w")
        with pytest.raises(VolumeFailed):  # it never answers the call itself
            volume.usage()
        volume.abandon("looked at")
        assert slow.requested.is_set()


def test_a_server_that_is_slow_to_answer_a_connection_is_waited_for() -> None:
    settings = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # an empty SETTINGS frame of HTTP/2
    with slow_to_greet(settings, lambda sent: b"StoreService" in sent) as slow:
        with Client(slow.address, timeout_s=2.0) as client, pytest.raises(StorageError):
            client.find("a", user_id="ann")
        assert slow.requested.is_set()
