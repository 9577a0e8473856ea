"""A worker of a node pool in its own process. It prints its port, and ends when its standard input is closed."""

from __future__ import annotations

import logging
import sys

from taskworker.cli.allocator import keep_one_arena
from taskworker.cli.turns import take_short_turns
from taskworker.worker.volume import VolumeWorker


def serve(worker_id: str, pool_address: str, directory: str, capacity: int) -> None:
    """Offer the volume in ``directory`` to the pool. Workers with equal capacity get equal shares of the data."""
    worker = VolumeWorker(worker_id, pool_address, directory, capacity=capacity)
    print(worker.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
    worker.stop(0.0)


if __name__ == "__main__":
    keep_one_arena()  # as the commands do
    take_short_turns()
    logging.disable(logging.ERROR)  # workers are killed on purpose here
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
