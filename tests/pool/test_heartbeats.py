"""What counts as a sign of life of a worker."""

from __future__ import annotations

from typing import cast

import pytest

from storage.fleet.layout import Layout
from storage.fleet.members import Member
from taskworker.pool.events import Events
from taskworker.pool.heartbeats import Heartbeats
from taskworker.pool.membership import Application, Membership
from taskworker.rpc.protocol import PROTOCOL
from taskworker.transport.remote_volume import RemoteVolume
from taskworker.transport.worker_fleet import WorkerFleet
from tests.pool.test_fleet import MemoryVolume
from tests.pool.test_membership import LEASE_S, LOAD, POOL, Clock, membership_of


class Stand:
    """Two workers that have joined."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.membership: Membership = membership_of(self.clock)
        self.fleet = WorkerFleet()
        self.volumes = [MemoryVolume("w0"), MemoryVolume("w1")]
        for slot, volume in enumerate(self.volumes):
            self.membership.join(
                Application(f"w{slot}", f"h:{slot}", "", 1 << 30, f"i{slot}", f"v{slot}", POOL, PROTOCOL, "1")
            )
            self.fleet.attach(slot, cast(RemoteVolume, volume))
        self.fleet.use_layouts(Layout.first([Member(slot, f"w{slot}", "", 1 << 30) for slot in range(2)], 2))
        self.heartbeats = Heartbeats(
            self.membership, self.fleet, Events(self.clock.wall_ms), clock_s=self.clock.monotonic_s
        )

    def pass_time(self, seconds: float) -> list[str]:
        """Let time pass and look, as the pool does; the workers that became suspect."""
        suspect: list[str] = []
        for _ in range(round(seconds / 0.5)):
            self.clock.now_s += 0.5
            self.heartbeats.note_heard()
            suspect += [record.worker for record in self.membership.expire().suspect]
        return suspect


@pytest.fixture
def stand() -> Stand:
    return Stand()


def test_shards_that_arrive_are_signs_of_life(stand: Stand) -> None:
    stand.heartbeats.note_heard()
    for _ in range(10):
        stand.volumes[0].received += 1000
        assert stand.pass_time(LEASE_S / 2 - 0.5) == []
        assert stand.heartbeats.take("w1", "i1", LOAD)
    assert [volume.heartbeats for volume in stand.volumes] == [0, 10]
    assert sorted(stand.pass_time(2 * LEASE_S)) == ["w0", "w1"]


def test_a_worker_that_sends_nothing_is_suspect(stand: Stand) -> None:
    stand.volumes[0].received = 1000  # before it was looked at
    stand.heartbeats.note_heard()
    assert stand.pass_time(LEASE_S / 2) == []
    stand.volumes[0].received = 0  # its connections were closed
    assert stand.heartbeats.take("w1", "i1", LOAD)
    assert stand.pass_time(LEASE_S / 2 + 1) == ["w0"]


def test_what_arrives_late_does_not_bring_a_suspect_worker_back(stand: Stand) -> None:
    stand.heartbeats.note_heard()
    assert {*stand.pass_time(LEASE_S + 1)} == {"w0", "w1"}
    stand.volumes[0].received += 1000
    stand.heartbeats.note_heard()
    assert not stand.membership.is_present("w0")
    assert not stand.heartbeats.take("w0", "i0", LOAD)
