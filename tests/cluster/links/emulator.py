"""The process behind shaped links: reads packets from one TUN device, and writes those that arrive to the other.

``python -m tests.cluster.links.emulator NAME NAME ...`` makes two devices for each link, ``NAMEa`` and ``NAMEb``, or
with ``--taps`` two for Ethernet, and announces it with a line. Each line on stdin, ``NUMBER JSON``, is the
:class:`Shape` of a link from then on; the end of stdin ends the process.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time

from tests.cluster.links.shape import Shape

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000
_PACKET_BYTES_MAX = 2048
_AT_ONCE = 64
_QUEUED_S_MAX = 0.4
_BYTES_TO_KBIT = 8 / 1000


class _Direction:
    """Packets from one end of a link to the other."""

    def __init__(self, source: int, target: int, rng: random.Random) -> None:
        self.source = source
        self.target = target
        self.shape = Shape()
        self._rng = rng
        self._free_s = 0.0  # when the line is free again
        self._last_s = 0.0  # when the last packet that keeps its place arrives

    def arrival_s(self, size: int, now_s: float) -> float | None:
        """When a packet arrives; None if it is lost."""
        shape, random_ = self.shape, self._rng.random
        if shape.outage_s and now_s % shape.period_s < shape.outage_s:
            return None
        if shape.loss and random_() < shape.loss:
            return None
        start_s = now_s
        if shape.rate_kbit:
            start_s = max(now_s, self._free_s)
            if start_s - now_s > _QUEUED_S_MAX:
                return None
            start_s += size * _BYTES_TO_KBIT / shape.rate_kbit
            self._free_s = start_s
        if shape.reorder and random_() < shape.reorder:
            return start_s
        delay_s = (shape.delay_ms + shape.jitter_ms * (2 * random_() - 1)) / 1000
        self._last_s = max(self._last_s, start_s + delay_s)
        return self._last_s


class Emulator:
    """Shapes links, in one thread."""

    def __init__(self, names: list[str], mode: int = _IFF_TUN) -> None:
        rng = random.Random()
        self._directions: list[_Direction] = []
        for name in names:
            a, b = _device(f"{name}a", mode), _device(f"{name}b", mode)
            self._directions += [_Direction(a, b, rng), _Direction(b, a, rng)]
        self._by_source = {direction.source: direction for direction in self._directions}
        self._waiting: list[tuple[float, int, int, bytes]] = []  # when, number, target, packet
        self._number = 0
        self._poll = select.epoll()
        for source in self._by_source:
            self._poll.register(source, select.EPOLLIN)
        self._poll.register(0, select.EPOLLIN)

    def run(self) -> None:
        """Shape links until stdin ends."""
        waiting = self._waiting
        while True:
            now_s = time.monotonic()
            while waiting and waiting[0][0] <= now_s:
                _write(waiting[0][2], heapq.heappop(waiting)[3])
            left_s = min(0.1, waiting[0][0] - now_s) if waiting else 0.1
            for descriptor, _ in self._poll.poll(left_s):
                if descriptor == 0:
                    if not self._obey():
                        return
                else:
                    self._take(self._by_source[descriptor])

    def _take(self, direction: _Direction) -> None:
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(direction.source, _PACKET_BYTES_MAX)
            except OSError:  # nothing more, or the device is not up yet
                return
            now_s = time.monotonic()
            at_s = direction.arrival_s(len(packet), now_s)
            if at_s is None:
                continue
            if at_s <= now_s:
                _write(direction.target, packet)
                continue
            self._number += 1
            heapq.heappush(self._waiting, (at_s, self._number, direction.target, packet))

    def _obey(self) -> bool:
        """Read commands; return whether stdin goes on."""
        lines = os.read(0, 65536).decode().splitlines()
        for line in lines:
            number, _, shape = line.partition(" ")
            for direction in self._directions[2 * int(number) : 2 * int(number) + 2]:
                direction.shape = Shape(**json.loads(shape))
        return bool(lines)


def _write(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.EINVAL):
            raise


def _device(name: str, mode: int) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), mode | _IFF_NO_PI))
    return device


if __name__ == "__main__":
    taps = sys.argv[1] == "--taps"
    emulator = Emulator(sys.argv[1 + taps :], _IFF_TAP if taps else _IFF_TUN)
    print("up", flush=True)
    emulator.run()
