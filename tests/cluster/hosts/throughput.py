"""What a user's line carries: pushes and gets, and in turns with them, as many bytes over a plain TCP connection.

``python -m tests.cluster.hosts.throughput POOL_ADDRESS USER PLAIN_HOST PLAIN_PORT BYTES SECONDS`` prints JSON: how
many seconds each took. :mod:`tests.cluster.links.plain` answers at the other end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

from taskworker import Client
from tests.cluster.links.plain import exchange

_DEADLINE_S = 600.0


def main(address: str, user: str, host: str, port: str, size_text: str, seconds: str) -> None:
    """Take turns until the time is up."""
    size = int(size_text)
    taken: dict[str, list[float]] = {"push": [], "plain push": [], "get": [], "plain get": []}
    with (
        Client(address, timeout_s=_DEADLINE_S) as client,
        socket.create_connection((host, int(port)), _DEADLINE_S) as plain,
    ):
        plain.settimeout(None)

        def timed(what: str, do: Callable[[], object]) -> object:
            began_s = time.monotonic()
            done = do()
            taken[what].append(time.monotonic() - began_s)
            return done

        until_s = time.monotonic() + float(seconds)
        while time.monotonic() < until_s or len(taken["get"]) < 2:
            data = os.urandom(size)
            timed("push", partial(client.push, data, filename="timed", user_id=user))
            timed("plain push", lambda: exchange(plain, size, 0))
            got = timed("get", lambda: _get(client, user))
            timed("plain get", lambda: exchange(plain, 0, size))
            assert got == data, "the bytes are not those that were pushed"
    print(json.dumps(taken))


def _get(client: Client, user: str) -> bytes:
    head = client.find("timed", user_id=user)
    assert head is not None
    return client.get(head.file_id, user_id=user)


if __name__ == "__main__":
    main(*sys.argv[1:])
