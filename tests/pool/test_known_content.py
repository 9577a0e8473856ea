"""A push of content that is stored, of which too little can be read just now, leaves to the workers what they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from blake3 import blake3

from storage import ErasureProfile
from storage.keys import ShardKey, StripeKey
from storage.shards import Shard, VolumeUnavailable
from storage.stripes.encoding import Encoder
from taskworker.transport.fetches import Outcome
from taskworker.transport.remote_volume import RemoteVolume
from tests.simulation.disk import Record
from tests.simulation.model import chunks_of
from tests.simulation.pool import CHUNK_BYTES, LEASE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings

K, N, WORKERS = 4, 6, 9
UNREAD = 3
LARGE = Random(7).randbytes(3 * CHUNK_BYTES)
SMALL = LARGE[:20_000]  # it travels with its commit


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with simulated_surroundings():
        yield


@pytest.fixture(params=[LARGE, SMALL], ids=["large", "small"])
def content(request: pytest.FixtureRequest) -> bytes:
    return bytes(request.param)


@pytest.fixture
def cluster(content: bytes) -> Cluster:
    """A pool with a file, started anew: it has read nothing of it yet."""
    found = Cluster(Random(1), ErasureProfile(K, N), WORKERS, zones=1)
    found.pool.store.push(content, filename="f", user_id="u")
    found.crash_pool()
    found.start_pool()
    found.pass_time(LEASE_S)
    return found


def push_again(cluster: Cluster, content: bytes) -> None:
    cluster.pool.store.push(content, filename="again", user_id="u")


def chunk_records(cluster: Cluster, content: bytes) -> dict[tuple[str, ShardKey], Record]:
    stripes = set(chunks_of(content, cluster.profile))
    return {
        (worker.name, key): record
        for worker in cluster.workers
        for key, record in worker.volume.records_by_key.items()
        if key[:35] in stripes
    }


def written_since(cluster: Cluster, content: bytes, before: dict[tuple[str, ShardKey], Record]) -> set[ShardKey]:
    return {where[1] for where, record in chunk_records(cluster, content).items() if before.get(where) is not record}


def refuse_reads(
    cluster: Cluster, content: bytes, patch: pytest.MonkeyPatch, is_over: Callable[[], bool] = lambda: False
) -> set[ShardKey]:
    """Of each chunk, the workers with these shards say that they cannot read them."""
    refused = {
        ShardKey(stripe + bytes([slot])) for stripe in chunks_of(content, cluster.profile) for slot in range(UNREAD)
    }
    begin_fetch, read = RemoteVolume.begin_fetch, RemoteVolume.read

    def begun(
        volume: RemoteVolume,
        wanted: Sequence[tuple[ShardKey, int]],
        into: Sequence[memoryview],
        done: Callable[[Outcome], None],
    ) -> Callable[[], None]:
        if not is_over() and any(key in refused for key, _ in wanted):
            raise VolumeUnavailable("too many open files")
        return begin_fetch(volume, wanted, into, done)

    def told(volume: RemoteVolume, key: ShardKey) -> Shard | None:
        if not is_over() and key in refused:
            raise VolumeUnavailable("too many open files")
        return read(volume, key)

    patch.setattr(RemoteVolume, "begin_fetch", begun)
    patch.setattr(RemoteVolume, "read", told)
    return refused


def test_what_is_given_back_stays(cluster: Cluster, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    before = chunk_records(cluster, content)
    refused = refuse_reads(cluster, content, monkeypatch)
    push_again(cluster, content)
    assert written_since(cluster, content, before) == refused


def test_nothing_is_written_once_enough_is_given_back(
    cluster: Cluster, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be read can be when it is looked at more closely."""
    before = chunk_records(cluster, content)
    over: list[StripeKey] = []
    refuse_reads(cluster, content, monkeypatch, lambda: bool(over))
    stripes = cluster.pool.store._parts.stripes
    is_sound = stripes.is_sound

    def passing(stripe: StripeKey, length: int) -> bool:
        over.clear()
        sound = is_sound(stripe, length)
        over.append(stripe)
        return sound

    monkeypatch.setattr(stripes, "is_sound", passing)
    push_again(cluster, content)
    assert written_since(cluster, content, before) == set()


@pytest.mark.parametrize("content", [LARGE[:CHUNK_BYTES], SMALL], ids=["chunk", "small"], indirect=True)
def test_what_went_away_is_completed_on_others(
    cluster: Cluster, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That workers are away is noticed when they are asked for their shards, and not before."""
    before = chunk_records(cluster, content)
    (stripe,) = chunks_of(content, cluster.profile)
    lost = {ShardKey(stripe + bytes([slot])) for slot in range(UNREAD)}
    gone = {name for name, key in before if key in lost}
    is_sound = cluster.pool.store._parts.stripes.is_sound

    def bereft(stripe: StripeKey, length: int) -> bool:
        for worker in cluster.workers:
            if worker.name in gone:
                worker.stop()
        return is_sound(stripe, length)

    monkeypatch.setattr(cluster.pool.store._parts.stripes, "is_sound", bereft)
    push_again(cluster, content)
    assert written_since(cluster, content, before) == lost
    assert {key for name, key in chunk_records(cluster, content) if name not in gone} == {key for _, key in before}


def test_wrong_shards_are_made_anew(cluster: Cluster, content: bytes) -> None:
    for (name, key), record in chunk_records(cluster, content).items():
        if key[35] < UNREAD:
            wrong = bytes(len(record.shard.payload))
            worker = next(worker for worker in cluster.workers if worker.name == name)
            worker.volume.append([record.shard._replace(payload=wrong, digest=blake3(wrong).digest())])
    push_again(cluster, content)
    file = cluster.pool.store.find("again", user_id="u")
    assert file is not None
    assert cluster.pool.store.get(file.file_id, user_id="u") == content


@pytest.mark.parametrize("where", ["in the middle of a push", "in the middle of a repair"])
def test_a_worker_that_comes_back_once_its_shards_were_missed_is_given_none_that_it_has(
    cluster: Cluster, content: bytes, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = cluster.workers[0]
    before = chunk_records(cluster, content)
    assert any(name == away.name for name, _ in before)
    away.stop()
    cluster.pass_time(LEASE_S + 2)
    shards_of = Encoder.shards_of

    def come_back_first(self: Encoder, *arguments: Any, **named: Any) -> list[Shard]:
        if not away.up:
            away.start()
            away.beat(cluster.pool)
            assert away.joined
        return shards_of(self, *arguments, **named)

    monkeypatch.setattr(Encoder, "shards_of", come_back_first)
    if where == "in the middle of a push":
        push_again(cluster, content)
    else:
        stripes = cluster.pool.store._parts.stripes
        stripes.heal_all(chunks_of(content, cluster.profile), at_once=True)
    after = chunk_records(cluster, content)
    assert away.up
    assert {place: record for place, record in after.items() if place in before} == before
    assert all(after[place] is record for place, record in before.items())


def test_what_the_look_finds_bad_is_written_anew_by_the_same_push(cluster: Cluster, content: bytes) -> None:
    """The push counts on the stripe afterwards, so it may not leave what it noticed to a later repair."""
    before = chunk_records(cluster, content)
    bad = {ShardKey(stripe + b"\0") for stripe in chunks_of(content, cluster.profile)}
    for worker in cluster.workers:
        for key in bad & worker.volume.records_by_key.keys():
            worker.volume.rot(key, Random(3))
    push_again(cluster, content)
    assert written_since(cluster, content, before) == bad
    held = {key for worker in cluster.workers for key in worker.volume.durable}
    assert bad <= held
