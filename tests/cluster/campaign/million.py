"""A pool with a million chunks: what it takes of memory, how soon it tells its status and plans a repair.

The chunks are of 64 bytes, see :mod:`tests.cluster.campaign.small_chunks`: to the catalog and to repair they
are what those of a terabyte would be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from storage.limits import MIB
from taskworker.client.pool import PoolStatus
from tests.cluster.campaign.command import bare_interpreter, status_command
from tests.cluster.campaign.memory import Memory, MemoryWatch
from tests.cluster.campaign.run import Run
from tests.cluster.campaign.small_chunks import CHUNK_BYTES
from tests.cluster.campaign.users import User
from tests.cluster.processes import WAIT_S, Cluster

_FILE_CHUNKS = 100_000
_POOL_BYTES_MAX = 300 * MIB
_PLAN_S_MAX = 10.0
_STATUS_S_MAX = 0.2
_POPULATED_WITHIN_S = 3600.0
_LOST = "w5"


def million(run: Run) -> None:
    """Push files of very many chunks; look at the pool; then lose a worker."""
    verdicts, chunks = run.verdicts, run.rounds * _FILE_CHUNKS
    with Cluster(run.directory, pool_module="tests.cluster.campaign.small_chunks") as cluster:
        with MemoryWatch(cluster.pool_process.pid) as watch:
            _populate(run, cluster)
            _check_memory(run, f"pool's memory while {chunks:,} chunks were pushed", watch.peak())
        cluster.pool_process.kill()
        cluster.restart_pool()
        with MemoryWatch(cluster.pool_process.pid) as watch:
            _plan(run, cluster)
            _check_status(run, cluster, "at rest")
            _lose(run, cluster)
            _check_status(run, cluster, "while a lost worker's shards are made")
            _check_memory(run, "pool's memory, started anew, examined and repairing", watch.peak())
    verdicts.note("the repair itself is not waited for")


def _populate(run: Run, cluster: Cluster) -> None:
    user = User(
        cluster.address,
        "owner",
        run.seed,
        run.directory,
        deadline_s=_POPULATED_WITHIN_S,
        module="tests.cluster.campaign.small_chunks_user",
    )
    began_s = time.monotonic()
    try:
        for number in range(run.rounds):
            user.do("push", name=f"file-{run.seed}-{number}", size=_FILE_CHUNKS * CHUNK_BYTES, chunk_size=CHUNK_BYTES)
            run.verdicts.progress(f"{(number + 1) * _FILE_CHUNKS:,} chunks are there")
    finally:
        user.end()
    cluster.await_survivable(2, _POPULATED_WITHIN_S)
    used = sum(worker.bytes_used for worker in cluster.status().workers)
    taken_s = time.monotonic() - began_s
    run.verdicts.note(f"populated through the pool in {taken_s:.0f} s; the workers' volumes take {used / 1e9:.1f} GB")


def _check_status(run: Run, cluster: Cluster, when: str) -> None:
    for what, ask in (("RPC", cluster.status), ("command", lambda: status_command(cluster.address))):
        taken = [_timed(ask) for _ in range(15)]
        run.verdicts.check(
            f"status {when}, the {what}, under {1000 * _STATUS_S_MAX:.0f} ms",
            f"median {1000 * statistics.median(taken):.1f} ms, most {1000 * max(taken):.1f} ms",
            holds=statistics.median(taken) < _STATUS_S_MAX,
        )

    bare = statistics.median(_timed(bare_interpreter) for _ in range(15))
    run.verdicts.note(f"an interpreter that imports grpc and ends: median {1000 * bare:.1f} ms")


def _plan(run: Run, cluster: Cluster) -> None:
    """A pool that was cut off looks through all it has for missing shards; there are none."""
    cluster.await_status(_repairs)
    began_s = time.monotonic()
    cluster.await_status(lambda status: not _repairs(status), _POPULATED_WITHIN_S)
    taken_s = time.monotonic() - began_s
    status = cluster.await_survivable(2, _POPULATED_WITHIN_S)
    run.verdicts.note(f"examined, and looked through for copies to be dropped: {time.monotonic() - began_s:.1f} s")
    run.verdicts.check(
        f"all objects examined for missing shards, under {_PLAN_S_MAX:.0f} s",
        f"{taken_s:.1f} s; {'; '.join(work.note for work in status.work)}",
        holds=taken_s < _PLAN_S_MAX,
    )


def _repairs(status: PoolStatus) -> bool:
    return any(work.name == "repair" and work.state == "running" for work in status.work)


def _lose(run: Run, cluster: Cluster) -> None:
    """Kill a worker; how long after the grace time its shards begin to be made on others."""
    before = _shards_of_others(cluster)
    cluster.kill(_LOST)
    cluster.await_status(lambda status: _state_of_lost(status) != "alive")
    missed_s = time.monotonic()
    cluster.await_status(lambda status: _state_of_lost(status) == "lost", cluster.grace_s + WAIT_S)
    waited_s = time.monotonic() - missed_s
    run.verdicts.note(f"a missed worker was waited for {waited_s:.0f} s, --grace is {cluster.grace_s:g}")
    began_s = time.monotonic()
    while _shards_of_others(cluster) <= before:
        assert time.monotonic() < began_s + 300, "nothing of the lost worker's is being made"
        time.sleep(0.05)
    taken_s = time.monotonic() - began_s
    run.verdicts.check(
        f"shards of a lost worker are being made, under {_PLAN_S_MAX:.0f} s after it counted as lost",
        f"{taken_s:.1f} s",
        holds=taken_s < _PLAN_S_MAX,
    )


def _state_of_lost(status: PoolStatus) -> str:
    return next(worker.state for worker in status.workers if worker.worker_id == _LOST)


def _shards_of_others(cluster: Cluster) -> int:
    return sum(worker.shards for worker in cluster.status().workers if worker.worker_id != _LOST)


def _timed(ask: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    ask()
    return time.perf_counter() - began_s


def _check_memory(run: Run, what: str, memory: Memory) -> None:
    most = max(memory.anonymous, memory.proportional)
    run.verdicts.check(f"{what}, at most {_POOL_BYTES_MAX // MIB} MiB", str(memory), holds=most <= _POOL_BYTES_MAX)
