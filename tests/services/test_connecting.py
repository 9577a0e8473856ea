"""Peers that take a while to answer a connection, as over a long line or on a busy machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from storage.errors import StorageError
from storage.shards import VolumeFailed
from taskworker import Client
from taskworker.transport.frames import SHARD_SERVICE
from taskworker.transport.remote_volume import RemoteVolume


class SlowToGreet:
    """Answers a connection only after a while, as over a long line or on a busy machine."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
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
            connection.sendall(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))  # an empty SETTINGS frame of HTTP/2
            while SHARD_SERVICE.encode() not in received and b"StoreService" not in received:
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


@pytest.fixture
def slow() -> Iterator[SlowToGreet]:
    server = SlowToGreet(0.4)
    yield server
    server.close()


def test_a_worker_that_is_slow_to_answer_a_connection_is_waited_for(slow: SlowToGreet) -> None:
    volume = RemoteVolume(slow.address, "w")
    with pytest.raises(VolumeFailed):  # it never answers the call itself
        volume.usage()
    volume.abandon("looked at")
    assert slow.requested.is_set()


def test_a_server_that_is_slow_to_answer_a_connection_is_waited_for(slow: SlowToGreet) -> None:
    with Client(slow.address, timeout_s=2.0) as client, pytest.raises(StorageError):
        client.find("a", user_id="ann")
    assert slow.requested.is_set()
