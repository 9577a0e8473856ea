"""What the kernel knows of a TCP connection: Linux's ``struct tcp_info``, from linux/tcp.h."""

from __future__ import annotations

import math
import socket
import struct

_BYTES = 152  # up to tcpi_min_rtt, which is there since Linux 4.6
_RTT, _MIN_RTT = 68, 148  # where tcpi_rtt and, behind it, tcpi_rttvar are; and where tcpi_min_rtt is
_MICROSECONDS = 1_000_000


def retransmission_s(connected: socket.socket) -> float:
    """The time of a socket after which TCP first sends again what was lost, in seconds; 0 for Unix sockets.

    It is that of RFC 6298 without its lower bound, so next to nothing in a local network, and a second where queues on
    the way are long.
    """
    if connected.family == socket.AF_UNIX:
        return 0.0
    smoothed_us, deviation_us = struct.unpack_from("=II", _info(connected), _RTT)
    return float(smoothed_us + 4 * deviation_us) / _MICROSECONDS


def queued_s(connected: socket.socket) -> float:
    """How many seconds longer a round trip takes than the shortest one of the last minutes: in queues on the way.

    For a Unix socket, it is 0. Where the kernel does not tell, it is infinite, as there may be long queues.
    """
    if connected.family == socket.AF_UNIX:
        return 0.0
    info = _info(connected)
    if len(info) < _BYTES:
        return math.inf
    (smoothed_us,), (shortest_us,) = struct.unpack_from("=I", info, _RTT), struct.unpack_from("=I", info, _MIN_RTT)
    return float(max(0, smoothed_us - shortest_us)) / _MICROSECONDS


def _info(connected: socket.socket) -> bytes:
    return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
