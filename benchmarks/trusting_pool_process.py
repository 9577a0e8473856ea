"""A node pool that trusts its workers: it does not read back what it has written.

Compared with a normal pool, it shows what that verification costs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

from benchmarks.pool_process import serve
from storage.maintenance.readback import Moved, ReadBack
from storage.shards import ShardStore
from taskworker.cli.allocator import keep_one_arena
from taskworker.cli.turns import take_short_turns
from taskworker.pool.slices import take_short_slices


def _believed(self: ReadBack, volume: ShardStore, written: Sequence[Moved]) -> Iterator[Moved]:
    return iter(written)


def _never_chosen(self: ReadBack, one: Moved) -> bool:
    return False


if __name__ == "__main__":
    ReadBack._given_back = _believed  # type: ignore[method-assign]
    ReadBack._is_chosen = _never_chosen  # type: ignore[method-assign]
    keep_one_arena()
    take_short_turns()
    take_short_slices()
    logging.disable(logging.ERROR)
    serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))
