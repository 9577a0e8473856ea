"""A pool, a worker with functions, and an HTTP server as the outside, each in its own process.

Each prints its port, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from taskworker import TaskWorker
from taskworker.apps.pool_server import PoolServer
from taskworker.outbound.egress.limits import EgressLimits
from taskworker.outbound.egress.rules import parse_rule
from taskworker.sandbox import Limits

CAPACITY = 1 << 40
FUNCTIONS = ("egress-timed", "egress-held")
HELD = 100
"""The server answers requests for ``/held`` only when this many have arrived."""
BODY = b'{"ok": true, "text": "' + b"x" * 900 + b'"}'
_HOLD_TIMEOUT_S = 60.0
_RATE = 1e6  # unlimited, in order to measure the possible rate
_SAME = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"


class _Outside:
    """Answers ``/`` at once, and ``/held`` when `HELD` requests have arrived."""

    def __init__(self) -> None:
        self._held = 0
        self._all_there = asyncio.Event()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until it is closed."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await self._held_body() if head.startswith(b"GET /held") else BODY
                writer.write(_SAME % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _held_body(self) -> bytes:
        self._held += 1
        if self._held >= HELD:
            self._all_there.set()
        try:
            await asyncio.wait_for(self._all_there.wait(), _HOLD_TIMEOUT_S)
        except TimeoutError:
            return b"0"
        return str(self._held).encode()


async def serve_outside() -> None:
    """Run the HTTP server that stands for the outside."""
    server = await asyncio.start_server(_Outside().converse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def serve_pool(directory: str, outside_port: str) -> None:
    """Run a pool whose functions may call that server."""
    pool = PoolServer(directory, egress=EgressLimits(rate=_RATE))
    for function in FUNCTIONS:
        pool.capabilities.egress.rules.allow(function, parse_rule(f"127.0.0.1:{outside_port}", private=True))
    print(pool.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
    pool.stop(0.0)


async def serve_functions(name: str, pool_address: str, directory: str) -> None:
    """Run a worker that offers the functions."""
    worker = TaskWorker(name, node_pool_address=pool_address, volume=directory, capacity=CAPACITY)

    @worker.function("egress-timed", concurrency=100, limits=Limits(wall_s=120, cpu_s=60))
    def timed(url: str, count: int) -> list[float]:
        worker.call_external_api(url)
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            response = worker.call_external_api(url)
            seconds.append(time.perf_counter() - start)
            assert response.json()["ok"]
        return seconds

    @worker.function("egress-held", concurrency=100, limits=Limits(wall_s=120))
    def held(url: str) -> int:
        return int(worker.call_external_api(f"{url}held").text)

    async with worker:
        print(await worker.start_server(port=0), flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main(role: str, *arguments: str) -> None:
    """Run one of the three processes."""
    if role == "outside":
        asyncio.run(serve_outside())
    elif role == "pool":
        serve_pool(*arguments)
    else:
        asyncio.run(serve_functions(*arguments))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main(*sys.argv[1:])
