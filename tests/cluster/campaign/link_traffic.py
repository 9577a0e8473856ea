"""Pushes and gets over links, timed beside plain connections.

``python -m tests.cluster.campaign.link_traffic POOL PORT BYTES SECONDS SETTLE_S SEED`` does so where it is started,
beside one plain connection to that port of the pool's host, and prints :class:`Seen` as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from random import Random

from storage.errors import StorageError
from taskworker import Client
from tests.cluster.links.network import POOL_HOST
from tests.cluster.links.plain import connected, exchange

CALL_S = 600.0
PLAIN_SHARE = 0.2
"""For which part of the time plain connections are measured."""
_USER = "u"


@dataclass(slots=True)
class Seen:
    """What was seen over some links."""

    push_s: list[float] = field(default_factory=list)
    get_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    plain_push_s: list[float] = field(default_factory=list)
    plain_get_s: list[float] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: bytes) -> Seen:
        """Read what a process of this module has printed."""
        return cls(**json.loads(text))


def push_and_get(client: Client, data: bytes, seen: Seen) -> None:
    """Push a file, and get it."""
    try:
        began_s = time.monotonic()
        file_id = client.push(data, filename="file", user_id=_USER).file_id
        pushed_s = time.monotonic()
        got = client.get(file_id, user_id=_USER)
        ended_s = time.monotonic()
    except StorageError as error:
        seen.errors.append(f"{type(error).__name__}: {error}")
        return
    if got != data:
        seen.errors.append("the bytes are not those that were pushed")
    seen.push_s.append(pushed_s - began_s)
    seen.get_s.append(ended_s - pushed_s)


def during(seconds: float) -> Iterator[None]:
    """Yield for a while, but at least twice."""
    until_s = time.monotonic() + seconds
    yield
    yield
    while time.monotonic() < until_s:
        yield


def _main(arguments: Sequence[str]) -> None:
    pool, port, bytes_each, seconds, settle_s, seed = arguments
    rng, seen, count = Random(seed), Seen(), int(bytes_each)
    with connected(POOL_HOST, int(port)) as plain, Client(pool, timeout_s=CALL_S) as client:
        for _ in during(float(settle_s)):
            exchange(plain, count, 0)
            push_and_get(client, rng.randbytes(count), seen)
        seen.push_s.clear()
        seen.get_s.clear()
        for _ in during(float(seconds) * PLAIN_SHARE):
            for times, sent, received in ((seen.plain_push_s, count, 0), (seen.plain_get_s, 0, count)):
                began_s = time.monotonic()
                exchange(plain, sent, received)
                times.append(time.monotonic() - began_s)
        for _ in during(float(seconds)):
            push_and_get(client, rng.randbytes(count), seen)
    print(json.dumps(asdict(seen)))


if __name__ == "__main__":
    _main(sys.argv[1:])
