"""A node pool in its own process. It prints its port, and ends when its standard input is closed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from taskworker.cli.allocator import keep_one_arena
from taskworker.cli.turns import take_short_turns
from taskworker.pool.direct_reads import DirectReads
from taskworker.pool.node_pool import NodePool
from taskworker.pool.options import PoolOptions
from taskworker.pool.slices import take_short_slices
from taskworker.protos import pool_pb2
from taskworker.rpc.binding import generic_handler
from taskworker.services.file_server import FileServer
from taskworker.services.pool import PoolService

_SERVICE = pool_pb2.DESCRIPTOR.services_by_name["PoolService"]


def _until_closed(_: NodePool) -> None:
    sys.stdin.read()


def serve(
    directory: str, lease_s: float, grace_s: float, meanwhile: Callable[[NodePool], None] = _until_closed
) -> None:
    """Run the pool in ``directory`` until ``meanwhile`` returns."""
    pool = NodePool(directory, options=PoolOptions(lease_s=lease_s, grace_s=grace_s))
    direct = DirectReads(pool.fleet, pool.membership, pool.tickets, pool.pool_id, lambda: False)
    added = {_SERVICE.full_name: generic_handler(_SERVICE, PoolService(pool))}
    server = FileServer(pool.store, added=added, direct=direct)
    print(server.start("127.0.0.1:0"), flush=True)
    meanwhile(pool)
    server.stop(0.0)
    pool.close()


if __name__ == "__main__":
    keep_one_arena()  # as the commands do
    take_short_turns()
    take_short_slices()
    logging.disable(logging.ERROR)  # workers are killed on purpose here
    serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
