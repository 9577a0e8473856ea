"""A program with functions of its own: ``taskworker worker calculator:worker``, or ``python calculator.py``."""

from __future__ import annotations

import asyncio

from taskworker import TaskWorker

worker = TaskWorker("calculator", node_pool_address="127.0.0.1:50051")


@worker.function("calculate")
def calculate(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@worker.function()
async def slow_sum(numbers: list[float], pause_s: float = 0.1) -> float:
    """Add many numbers, at leisure."""
    total = 0.0
    for number in numbers:
        await asyncio.sleep(pause_s)
        total += number
    return total


async def main() -> None:
    """Serve until Ctrl-C."""
    async with worker:
        await worker.start_server(port=0)
        print(f"{worker.worker_id} listens on {worker.address}")
        await worker.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
