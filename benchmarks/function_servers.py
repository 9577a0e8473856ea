"""A pool that runs functions, or a worker with its own functions. The process ends when its input is closed."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

from storage import ErasureProfile
from taskworker import TaskWorker
from taskworker.apps.pool_server import PoolServer

BALANCED, SKEWED = "balanced", "skewed"
CAPACITY = 1 << 40


def serve_pool(directory: str) -> None:
    """Run a pool that keeps three copies, one on each of three workers."""
    server = PoolServer(directory, profile=ErasureProfile(1, 3))
    print(server.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
    server.stop(0.0)


async def serve_worker(name: str, pool_address: str, directory: str, pause_s: float, skewed_s: float) -> None:
    """Run a worker that offers two functions, which take ``pause_s`` and ``skewed_s`` and return the worker's name."""
    worker = TaskWorker(name, pool_address, volume=directory, capacity=CAPACITY)

    @worker.function(BALANCED)
    def balanced() -> str:
        time.sleep(pause_s)
        return name

    @worker.function(SKEWED)
    def skewed() -> str:
        time.sleep(skewed_s)
        return name

    async with worker:
        print(await worker.start_server(port=0), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # workers are ended abruptly here
    if sys.argv[1] == "pool":
        serve_pool(sys.argv[2])
    else:
        _, _, worker_id, address, home, usual, skewed = sys.argv
        asyncio.run(serve_worker(worker_id, address, home, float(usual), float(skewed)))
