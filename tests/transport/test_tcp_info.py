"""What the kernel says of TCP connections."""

from __future__ import annotations

import math
import socket
import struct

import pytest

from taskworker.transport.wire import tcp_info


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over which something was sent."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connecting = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    for _ in range(8):
        connecting.sendall(b"x")
        accepted.sendall(accepted.recv(1))
        connecting.recv(1)
    return connecting, accepted


def test_nothing_waits_long_on_a_local_connection() -> None:
    one, other = pair()
    with one, other:
        assert 0.0 <= tcp_info.queued_s(one) < 0.2
        assert 0.0 < tcp_info.retransmission_s(one) < 2.0
        assert 0.0 < tcp_info.shortest_round_trip_s(one) < 0.2


def test_unix_sockets_have_no_queues_on_the_way() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert tcp_info.queued_s(one) == tcp_info.retransmission_s(other) == tcp_info.shortest_round_trip_s(one) == 0.0


def test_a_kernel_that_tells_less_may_have_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair()
    info = tcp_info._info(one)
    monkeypatch.setattr(tcp_info, "_info", lambda _: info[:104])
    with one, other:
        assert tcp_info.queued_s(one) == math.inf
        assert tcp_info.retransmission_s(one) > 0.0
        assert tcp_info.shortest_round_trip_s(one) == 0.0


@pytest.mark.parametrize(
    ("now_s", "shortest_s", "queued_s"),
    [(0.3, 0.1, 0.2), (0.7, 0.6, 0.1), (1.2, 1.0, 0.6)],
    ids=["a distant link", "a satellite", "a queue that never was empty"],
)
def test_a_round_trip_that_never_was_short_has_a_queue_in_it(
    monkeypatch: pytest.MonkeyPatch, now_s: float, shortest_s: float, queued_s: float
) -> None:
    one, other = pair()
    info = bytearray(tcp_info._info(one))
    struct.pack_into("=I", info, 68, int(now_s * 1e6))
    struct.pack_into("=I", info, 148, int(shortest_s * 1e6))
    monkeypatch.setattr(tcp_info, "_info", lambda _: bytes(info))
    with one, other:
        assert tcp_info.queued_s(one) == pytest.approx(queued_s)
