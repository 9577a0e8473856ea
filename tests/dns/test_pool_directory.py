"""What a pool's members and functions look like to its zone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import ErasureProfile, FileStorage
from taskworker.apps.pool_names import PoolDirectory
from taskworker.calls.owners import DEPLOYED_OWNER
from taskworker.functions.routing.port import RoutedFunction
from taskworker.pool.functions import PoolFunctions
from taskworker.pool.hosting import Offer
from taskworker.pool.membership import Application, Membership, Standing, WorkerLoad
from taskworker.rpc.protocol import PROTOCOL
from taskworker.services.invocation import GrpcTransport


class Members:
    """A membership whose clock stands still until the test moves it."""

    def __init__(self, root: Path) -> None:
        self.now_s = 0.0
        self.membership = Membership(
            "pool", [], lease_s=3.0, grace_s=30.0, clock_s=lambda: self.now_s, now_ms=lambda: 0
        )
        self.store = FileStorage.open(root, profile=ErasureProfile(1, 2))
        self.functions = PoolFunctions(self.store, self.membership, GrpcTransport())
        self.directory = PoolDirectory("p001", lambda: "127.0.0.1:50051", self.membership, self.functions)

    def join(self, worker: str) -> None:
        address = f"{worker}.test:1"
        self.membership.join(Application(worker, address, "rack", 1, f"{worker}-1", "v", "", PROTOCOL, "1"))

    def addresses(self) -> dict[str, str]:
        return {host.name: host.address for host in self.directory.listing().workers}


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    made = Members(tmp_path / "store")
    yield made
    made.store.close()


def test_members_have_addresses_while_they_are_alive(members: Members) -> None:
    members.join("a")
    members.join("b")
    members.join("c")
    assert members.addresses() == {"a": "a.test:1", "b": "b.test:1", "c": "c.test:1"}
    members.membership.leave("a", "a-1")
    assert members.addresses() == {"a": "", "b": "b.test:1", "c": "c.test:1"}
    members.membership.set_standing("b", Standing.DRAINING)
    members.now_s = 2.0
    members.membership.heartbeat("b", "b-1", WorkerLoad())
    members.now_s = 4.0
    assert members.addresses() == {"a": "", "b": "b.test:1", "c": ""}
    members.membership.forget("a")
    assert set(members.addresses()) == {"b", "c"}
    assert members.directory.listing().workers[0].notes == ("worker=b", "state=draining", "zone=rack")


def test_functions_have_those_that_can_run_them(members: Members) -> None:
    members.join("a")
    members.join("b")
    own = RoutedFunction("own", "bundle", "")
    members.functions.hosting.offer(Offer("a", "a-1", hosts_deployed=False, functions={"own": own}))
    members.functions.hosting.offer(Offer("b", "b-1", hosts_deployed=True))
    members.store.push(b"no bundle: names are told without reading any", filename="put", user_id=DEPLOYED_OWNER)
    assert {one.name: one.workers for one in members.directory.listing().functions} == {"own": ("a",), "put": ("b",)}
    members.membership.leave("a", "a-1")
    assert {one.name: one.workers for one in members.directory.listing().functions} == {"own": (), "put": ("b",)}


def test_the_node_has_the_pools_address(members: Members) -> None:
    (node,) = members.directory.listing().nodes
    assert (node.name, node.address) == ("p001", "127.0.0.1:50051")
