"""Small gets in an idle pool, beside clients that push and get large files, and with a worker that stopped.

Calls of a bare gRPC server, in a process of its own, beside the same load show what the processors leave to any server.
Also the peak memory of pool and workers under that load, and of a worker with many idle connections.
"""

from __future__ import annotations

import resource
import socket
import time
from contextlib import ExitStack

from benchmarks.callers import Callers, Latencies
from benchmarks.cluster.samples import CLIENTS, IDLE_CONNECTIONS, Samples
from benchmarks.cluster_processes import ClientProcess, Cluster
from benchmarks.measure import MIB
from benchmarks.processes import ServerProcess, started_together
from benchmarks.session import Session, human_size, settle

_WARM_S = 1.0
"""How long clients are busy before the measurement begins."""
_IDLE_S = 1.0
"""How long idle connections are kept before the worker's memory is read."""
_DESCRIPTORS = 8192
"""Open files that this process and the workers need."""


def small_gets_beside_load(session: Session, samples: Samples) -> None:
    """Measure a fresh pool in each round, as its peak memory counts from its start."""
    _allow_descriptors()
    text = f"gets of 4 KiB beside {CLIENTS} clients with files of {human_size(session.sizes.cluster_bytes)}"
    for number in session.rounds(text):
        with session.scratch("cluster-load") as home, ExitStack() as stack:
            pool, bare, callers = Cluster(home), ServerProcess("benchmarks.bare_stream", home), Callers()
            clients = [ClientProcess() for _ in range(CLIENTS)]
            stack.enter_context(started_together([pool, bare, callers, *clients]))
            _round(session, number, pool, bare, callers, clients, samples)


def _round(
    session: Session,
    number: int,
    pool: Cluster,
    bare: ServerProcess,
    callers: Callers,
    clients: list[ClientProcess],
    samples: Samples,
) -> None:
    sizes = session.sizes

    def measured() -> Latencies:
        return callers.measure("pool", "get", pool.address, 1, sizes.cluster_small_seconds)

    def measured_bare() -> Latencies:
        return callers.measure("bare", "get", bare.address, 1, sizes.cluster_small_seconds)

    connected = [client.begin("connect", address=pool.address) for client in clients]
    for outcome in connected:
        outcome()
    callers.fill("pool", pool.address, sizes.pool_small_files)
    settle()
    samples.p99_ms["idle"].append(measured().p99_ms)
    samples.p99_ms["bare idle"].append(measured_bare().p99_ms)
    stopped = pool.workers[number % len(pool.workers)]
    pool.pause(stopped)
    samples.p99_ms["stopped"].append(measured().p99_ms)
    pool.resume(stopped)
    pool.await_healed()
    idle_worker = pool.worker_peak
    busy_s = _WARM_S + 2 * sizes.cluster_small_seconds
    arguments = {"address": pool.address, "size": sizes.cluster_bytes, "seconds": busy_s}
    busy = [client.begin("push_and_get", series=f"load-{index}", **arguments) for index, client in enumerate(clients)]
    time.sleep(_WARM_S)
    samples.p99_ms["loaded"].append(measured().p99_ms)
    samples.p99_ms["bare loaded"].append(measured_bare().p99_ms)
    for outcome in busy:
        outcome()
    samples.peaks["pool under load"].append((pool.pool_peak / MIB, pool.idle_peak / MIB))
    samples.peaks["worker under load"].append((pool.worker_peak / MIB, idle_worker / MIB))
    _idle_connections(pool, stopped, samples)


def _idle_connections(pool: Cluster, worker: str, samples: Samples) -> None:
    """Open connections to each port of a worker, send nothing, and read its peak memory."""
    before = pool.peak_of(worker)
    with ExitStack() as stack:
        for port in pool.ports_of(worker):
            for _ in range(IDLE_CONNECTIONS):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        time.sleep(_IDLE_S)
        samples.peaks["worker with idle connections"].append((pool.peak_of(worker) / MIB, before / MIB))


def _allow_descriptors() -> None:
    """Raise this process's limit of open files, which the workers inherit, as far as is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
