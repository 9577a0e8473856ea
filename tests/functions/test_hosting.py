"""Offers of workers without volumes are leases."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path
from typing import NoReturn

import pytest

from storage import FileStorage
from taskworker.calls.call import Call, RunningCall
from taskworker.errors import StorageUnavailable, WorkerRefused
from taskworker.functions.routing.port import RoutedFunction
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.hosting import LEASE_S, Hosting, Offer
from taskworker.pool.membership import Membership
from taskworker.services.invocation import GrpcTransport

FUNCTION = RoutedFunction("f", "v")


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def hosting(clock: Clock) -> Hosting:
    membership = Membership("pool", [], lease_s=3.0, grace_s=30.0, clock_s=clock, now_ms=lambda: 0)
    return Hosting(membership, GrpcTransport(), clock_s=clock)


class Abandoning(GrpcTransport):
    """Fails to abandon a worker, for example because of a fault of gRPC."""

    def __init__(self) -> None:
        super().__init__()
        self.abandoned: list[str] = []

    def abandon(self, worker: str) -> None:
        self.abandoned.append(worker)
        if worker == "a":
            raise RuntimeError("cannot schedule new futures")


def offer(instance: str, worker: str = "runner") -> Offer:
    return Offer(worker, instance, hosts_deployed=True, functions={"f": FUNCTION}, address="127.0.0.1:1")


def test_an_offer_lapses_unless_it_is_renewed() -> None:
    clock = Clock()
    hosts = hosting(clock)
    hosts.offer(offer("1"))
    clock.s = LEASE_S - 1
    hosts.offer(offer("1"))
    clock.s += LEASE_S - 0.1
    assert hosts.able(FUNCTION) == ["runner"]
    assert hosts.is_without_volume("runner")
    clock.s += 0.1
    assert hosts.able(FUNCTION) == []
    assert not hosts.is_without_volume("runner")
    hosts.look()
    assert hosts.all_offered() == {}


def test_an_id_is_free_again_when_its_lease_has_ended() -> None:
    clock = Clock()
    hosts = hosting(clock)
    hosts.offer(offer("1"))
    with pytest.raises(WorkerRefused, match="there is a worker with the id runner already"):
        hosts.offer(offer("2"))
    clock.s = LEASE_S
    hosts.offer(offer("2"))
    assert [host.worker for host in hosts.hosts()] == ["runner"]


def test_a_fault_with_one_worker_s_calls_leaves_those_of_the_others(tmp_path: Path) -> None:
    transport, clock = Abandoning(), Clock()
    membership = Membership("pool", [], lease_s=3.0, grace_s=30.0, clock_s=clock, now_ms=lambda: 0)
    with FileStorage.open(tmp_path) as store:
        functions = PoolFunctions(store, membership, transport, clock_s=clock)
        functions.start()
        try:
            for workers in (["a", "b"], ["c"]):
                for worker in workers:
                    functions.hosting.offer(offer("1", worker))
                clock.s += LEASE_S
                give_up = time.monotonic() + 60
                while workers[-1] not in transport.abandoned:
                    assert time.monotonic() < give_up, "its calls were not moved"
                    time.sleep(0.02)
        finally:
            functions.close()
    assert transport.abandoned == ["a", "b", "c"]


def test_calls_to_a_worker_that_cannot_be_dialled_leave_nothing_behind() -> None:
    def dial(_worker: str, address: str) -> NoReturn:
        raise StorageUnavailable(f"{address} is no address")

    transport = GrpcTransport(dial)
    tracemalloc.start()
    try:
        for number in range(3_000):
            with pytest.raises(StorageUnavailable):
                transport.invoke("w", "nowhere", FUNCTION, Call("f", token=f"{number:032x}"), None, RunningCall())
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
