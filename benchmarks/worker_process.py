"""A worker of a node pool in a process of its own; it prints its port and ends with its standard input."""

from __future__ import annotations

import logging
import sys

from taskworker.cli.allocator import keep_one_arena
from taskworker.worker.volume import VolumeWorker


def serve(worker_id: str, pool_address: str, directory: str, capacity: int) -> None:
    """Offer the volume in ``directory`` to the pool; all workers of one capacity, so that all get the same share."""
    worker = VolumeWorker(worker_id, pool_address, directory, capacity=capacity)
    print(worker.start("127.0.0.1:0"), flush=True)
    sys.stdin.read()
    worker.stop(0.0)


if __name__ == "__main__":
    keep_one_arena()  # as the commands do
    logging.disable(logging.ERROR)  # workers are killed on purpose here
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
