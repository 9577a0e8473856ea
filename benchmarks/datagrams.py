"""Sends datagrams and receives the answers, measuring their rate and latency."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """Result of a run. ``latencies_s`` is sorted; ``truncated`` counts answers that told the client to use TCP."""

    count: int
    seconds: float
    latencies_s: Sequence[float]
    truncated: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.count / self.seconds

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latencies, in milliseconds."""
        return self.latencies_s[len(self.latencies_s) * 99 // 100] * 1e3


def exchange(port: int, questions: Sequence[bytes], count: int, in_flight: int) -> Exchange:
    """Ask ``questions`` in turn until there are ``count`` answers, with up to ``in_flight`` questions under way.

    Raises:
        TimeoutError: an answer was lost.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("127.0.0.1", port))
        one.settimeout(TIMEOUT_S)
        send, receive, clock = one.send, one.recv, time.perf_counter
        asked_at = [0.0] * 65536
        latencies: list[float] = []
        truncated, asked, kinds = 0, 0, len(questions)
        start = clock()
        while len(latencies) < count:
            while asked < count and asked - len(latencies) < in_flight:
                identity = asked & 0xFFFF
                asked_at[identity] = clock()
                send(identity.to_bytes(2, "big") + questions[asked % kinds])
                asked += 1
            answer = receive(4096)
            latencies.append(clock() - asked_at[int.from_bytes(answer[:2], "big")])
            truncated += answer[2] >> 1 & 1
        seconds = clock() - start
    return Exchange(count, seconds, sorted(latencies), truncated)
