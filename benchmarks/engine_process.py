"""A node pool whose own process pushes and gets: an engine and its workers, without a client's hop in between.

It prints its port, for its workers, and then obeys; see :func:`benchmarks.processes.obey`.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from benchmarks.measure import seconds_of
from benchmarks.pool_process import serve
from benchmarks.processes import obey
from benchmarks.workload import USER
from taskworker.cli.allocator import keep_one_arena
from taskworker.cli.turns import take_short_turns
from taskworker.pool.node_pool import NodePool


class _Tasks:
    def __init__(self, pool: NodePool) -> None:
        self._store = pool.store

    def push(self, name: str, source: str) -> dict[str, float]:
        """Push a file from disk; return the seconds that this took."""
        return {"took": seconds_of(lambda: self._store.push(Path(source), filename=name, user_id=USER))}

    def get(self, name: str) -> dict[str, float]:
        """Read a file to its end, in the way the pool's service does; return the seconds that this took."""
        version = self._store.find(name, user_id=USER)
        if version is None:
            raise FileNotFoundError(f"the pool has no {name}")

        def action() -> None:
            with self._store.open_file(version.file_id, user_id=USER) as reader:
                for _ in reader.iter_chunks(recycled=True):
                    pass

        return {"took": seconds_of(action)}


if __name__ == "__main__":
    keep_one_arena()
    take_short_turns()
    logging.disable(logging.ERROR)
    serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), lambda pool: obey(_Tasks(pool)))
