"""What a pool does by itself: users beside it, repair after a loss, and the cost of verifying what workers store."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.bare_relay import BareRelay
from benchmarks.cluster.samples import LEASE_S, Samples
from benchmarks.cluster_peers import ClusterPeer, Found
from benchmarks.cluster_processes import POLL_S, SETTLED_TIMEOUT_S, ClientProcess, Cluster
from benchmarks.measure import seconds_of
from benchmarks.processes import TaskFailed
from benchmarks.session import Session, human_size, settle
from benchmarks.workload import USER
from taskworker import Client
from taskworker.client.pool import PoolClient, PoolStatus

_FILLED = 8  # files pushed first, so that shards are still being moved when push and get are done

# -- beside background work -----------------------------------------------------------------------


def beside_background_work(session: Session, samples: Samples) -> None:
    """Alternate push and get on the pool while it is quiet, and while it moves the shards of a drained worker."""
    session.progress.step("filling a pool whose shards are to be moved")
    size = session.sizes.cluster_bytes
    with session.scratch("cluster-work") as home, Cluster(home) as pool, ClientProcess() as client:
        client.run("connect", address=pool.address)
        for number in range(_FILLED):
            client.run("push_random", address=pool.address, name=f"filled-{number}", size=size)
        with PoolClient(pool.address) as operator:
            for number in session.rounds("push and get beside background work"):
                drained = pool.workers[number % len(pool.workers)]
                for cancel in (False, True):  # shards move off the worker, and back
                    name = f"{number}-{cancel}"
                    _push_and_get(client, pool, f"quiet-{name}", size, samples.quiet)
                    operator.drain(drained, cancel=cancel)
                    _await(operator, lambda status: _state_of(status, "rebalance") == "running")
                    _push_and_get(client, pool, f"beside-{name}", size, samples.beside)
                    status = operator.status()
                    if status is None or not status.is_mending:
                        raise AssertionError("the pool finished moving shards before the client was done")
                    _await(operator, lambda status: not status.is_mending)


def _push_and_get(client: ClientProcess, pool: Cluster, name: str, size: int, into: dict[str, list[float]]) -> None:
    settle()
    into["push"].append(client.run("push_random", address=pool.address, name=name, size=size)["seconds"])
    into["get"].append(client.run("get", address=pool.address, name=name)["seconds"])


def _state_of(status: PoolStatus, name: str) -> str:
    return next(work.state for work in status.work if work.name == name)


def _await(operator: PoolClient, wanted: Callable[[PoolStatus], bool]) -> None:
    until = time.monotonic() + SETTLED_TIMEOUT_S
    while (status := operator.status()) is None or not wanted(status):
        if time.monotonic() > until:
            raise TaskFailed(f"the pool did not reach the expected state: {status}")
        time.sleep(POLL_S)


# -- repair ----------------------------------------------------------------------------------------


def repairs(session: Session, sources: list[Path], bare: BareRelay, found: Found, samples: Samples) -> None:
    """Repair fresh pools with one file each: kill one worker, and wait until the other five have all shards."""
    count = session.sizes.cluster_repairs
    with session.progress.counted(f"repairs of {human_size(session.sizes.cluster_bytes)}", count) as counter:
        for number in range(count):
            with session.scratch("cluster-repair") as home, Cluster(home, LEASE_S) as pool:
                with Client(pool.address) as client:
                    client.push(sources[number], filename="file", user_id=USER)
                settle()
                _repair(pool, samples)
            bare.push(sources[number])
            settle()
            samples.bare.repair.append(seconds_of(lambda: bare.mend(session.sizes.cluster_bytes)))
            bare.forget()
            found.each(partial(_peer_repair, sources[number], samples))
            counter.advance()


def _peer_repair(source: Path, samples: Samples, peer: ClusterPeer) -> None:
    if peer.repairs:
        peer.push(source)
        settle()
        samples.peers[peer.name].repair.append(peer.repair())


def _repair(pool: Cluster, samples: Samples) -> None:
    lost, *left = pool.workers
    killed = time.time()
    pool.kill(lost)
    pool.await_settled(left)
    whole = time.time()
    samples.kill_to_whole.append(whole - killed)
    samples.pool.repair.append(whole - pool.lost_at(lost))


# -- the cost of verifying what workers store -------------------------------------------------------


def verifying(session: Session, sources: list[Path], samples: Samples) -> None:
    """Alternate a pool that reads back what it writes and one that does not. Each loses a worker and drains one."""
    count = session.sizes.cluster_repairs
    pools = (("benchmarks.pool_process", samples.verifying), ("benchmarks.trusting_pool_process", samples.trusting))
    with session.progress.counted("repairs and drains with verification and without", 2 * count) as counter:
        for number in range(count):
            for module, into in pools if number % 2 == 0 else pools[::-1]:
                with session.scratch("cluster-verify") as home, Cluster(home, LEASE_S, module) as pool:
                    with Client(pool.address) as client:
                        client.push(sources[number], filename="file", user_id=USER)
                    settle()
                    lost, drained, *left = pool.workers
                    pool.kill(lost)
                    pool.await_settled([drained, *left])
                    into["repair"].append(time.time() - pool.lost_at(lost))
                    settle()
                    with PoolClient(pool.address) as operator:
                        into["move"].append(seconds_of(partial(_drain, operator, pool, drained, left)))
                counter.advance()


def _drain(operator: PoolClient, pool: Cluster, drained: str, left: list[str]) -> None:
    operator.drain(drained)
    pool.await_settled(left)
