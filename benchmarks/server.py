"""A standalone TaskWorker in its own process. It prints its port, and ends when its standard input is closed."""

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
