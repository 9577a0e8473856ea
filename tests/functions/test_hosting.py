"""Offers of workers without volumes are leases."""

from __future__ import annotations

import pytest

from taskworker.errors import WorkerRefused
from taskworker.functions.routing.port import RoutedFunction
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


def offer(instance: str) -> Offer:
    return Offer("runner", instance, hosts_deployed=True, functions={"f": FUNCTION}, address="127.0.0.1:1")


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
