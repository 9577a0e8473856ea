"""Where the pool says that shards are: never where nobody has put them, also while workers are away or shards move."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import cast

import pytest

from storage import ErasureProfile
from storage.keys import StripeKey, shard_key
from storage.read.places import ChunkPlace
from taskworker.auth.authority import Authority
from taskworker.auth.tickets import TicketIssuer
from taskworker.pool.direct_reads import DirectReads
from tests.simulation.pool import CHUNK_BYTES, Cluster
from tests.simulation.surroundings import simulated_surroundings

CHUNKS = 12


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 7, zones=1)
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()
        yield cluster


def push(cluster: Cluster, seed: int) -> str:
    content = Random(seed).randbytes(CHUNKS * CHUNK_BYTES)
    return cluster.pool.store.push(content, filename=f"f{seed}", user_id="u").file_id


def places(cluster: Cluster, file: str) -> list[ChunkPlace]:
    with cluster.pool.store.open_file(file, user_id="u") as reader:
        return reader.places(0, CHUNKS)


def has(cluster: Cluster, store: int, place: ChunkPlace, slot: int) -> bool:
    name = cluster.pool.fleet.name(store)
    worker = next(worker for worker in cluster.workers if worker.name == name)
    return worker.volume.is_good(shard_key(place.stripe, slot))


def check(cluster: Cluster, found: list[ChunkPlace]) -> int:
    """All shards that are named are there; return how many are not named."""
    for place in found:
        for slot, store in enumerate(place.holders):
            assert store is None or has(cluster, store, place, slot)
    return sum(place.holders.count(None) for place in found)


def test_stand_ins_are_only_named_for_what_they_have(cluster: Cluster) -> None:
    before = push(cluster, 1)
    assert check(cluster, places(cluster, before)) == 0
    gone = cluster.workers[0]
    gone.stop()
    cluster.pass_time(4.0)
    slots = [member.slot for member in cluster.pool.layouts[0].members if member.worker == gone.name]
    lost = sum(slots[0] in cluster.pool.fleet.holders(place.stripe) for place in places(cluster, before))
    assert lost
    assert check(cluster, places(cluster, before)) == lost  # it is waited for, so nothing is rebuilt
    assert check(cluster, places(cluster, push(cluster, 2))) == 0  # of this, the others have all shards


def test_what_nobody_has_is_made_again_as_if_it_were_read(cluster: Cluster) -> None:
    file = push(cluster, 1)
    for worker in cluster.workers[:2]:
        worker.stop()
    cluster.pass_time(4.0)
    with pytest.MonkeyPatch.context() as patch:
        wanted: list[StripeKey] = []
        patch.setattr(cluster.pool.store._parts.stripes.heal_requests, "missing", wanted.append)
        found = places(cluster, file)
        assert check(cluster, found)
        assert wanted == [place.stripe for place in found if None in place.holders]


def test_shards_that_have_not_moved_yet_are_where_they_were(cluster: Cluster) -> None:
    file = push(cluster, 1)
    cluster.pool.drain(cluster.workers[0].name)
    assert len(cluster.pool.layouts) == 2
    assert check(cluster, places(cluster, file)) == 0


def test_who_keeps_users_waiting_for_that_is_not_asked_for_a_while(cluster: Cluster) -> None:
    now_s, takes, pauses = 100.0, [0.2, 5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 59.0, 2.0, 0.0]
    pool = cluster.pool
    issuer = TicketIssuer(lambda: cast(Authority, None))  # the simulated workers let no clients in
    direct = DirectReads(pool.fleet, pool.membership, issuer, pool.pool_id, lambda: False, lambda: now_s)
    looked: list[bool] = []
    with pool.store.open_file(push(cluster, 1), user_id="u") as reader:
        places = reader.places

        def slow(first: int, count: int, *, look: bool = True) -> list[ChunkPlace]:
            nonlocal now_s
            now_s += takes[len(looked)]
            looked.append(look)
            return places(first, count, look=look)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "places", slow)
            for pause_s in pauses:
                direct.page(reader, "u", 0, reader.size)
                now_s += pause_s
    assert looked == [True, True, False, False, True]
