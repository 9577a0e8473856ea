"""What the kernel knows of a TCP connection: Linux's ``struct tcp_info``, from linux/tcp.h."""

from __future__ import annotations

import math
import socket
import struct

_BYTES = 152  # up to tcpi_min_rtt, which is there since Linux 4.6
_RTT, _RTT_DEVIATION, _MIN_RTT = 68, 72, 148  # where tcpi_rtt, tcpi_rttvar and tcpi_min_rtt are
# By way of a geostationary satellite, light takes half a second there and back.
_PATH_S_MAX = 0.6


def retransmission_s(connected: socket.socket) -> float:
    """The time of a socket after which TCP first sends again what was lost, in seconds; 0 for Unix sockets.

    It is that of RFC 6298 without its lower bound, so next to nothing in a local network, and a second where queues on
    the way are long.
    """
    if connected.family == socket.AF_UNIX:
        return 0.0
    info = _info(connected)
    return _seconds(info, _RTT) + 4 * _seconds(info, _RTT_DEVIATION)


def shortest_round_trip_s(connected: socket.socket) -> float:
    """The shortest round trip of the last minutes, in seconds; 0 for Unix sockets, and where the kernel does not tell.

    Neither queues nor a busy machine at the other end make it longer.
    """
    info = b"" if connected.family == socket.AF_UNIX else _info(connected)
    return 0.0 if len(info) < _BYTES else _seconds(info, _MIN_RTT)


def queued_s(connected: socket.socket) -> float:
    """How many seconds longer a round trip takes than the shortest one of the last minutes: in queues on the way.

    A path without a queue takes 0.6 s at most: if even the shortest round trip took longer, there always was a queue.
    For a Unix socket, it is 0. Where the kernel does not tell, it is infinite, as there may be long queues.
    """
    if connected.family == socket.AF_UNIX:
        return 0.0
    info = _info(connected)
    if len(info) < _BYTES:
        return math.inf
    return max(0.0, _seconds(info, _RTT) - min(_seconds(info, _MIN_RTT), _PATH_S_MAX))


def _seconds(info: bytes, at: int) -> float:
    microseconds: int = struct.unpack_from("=I", info, at)[0]
    return microseconds / 1_000_000


def _info(connected: socket.socket) -> bytes:
    return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES)
