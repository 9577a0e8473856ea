"""A standalone TaskWorker in a process of its own; it prints its port and ends with its standard input."""

from __future__ import annotations

import asyncio
import sys

from taskworker import TaskWorker


async def serve(store: str) -> None:
    """Serve the store in the directory ``store``."""
    async with TaskWorker("benchmark", store=store) as worker:
        print(await worker.start_server(port=0), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
