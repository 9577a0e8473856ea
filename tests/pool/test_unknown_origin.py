"""What clients wrote wrong before the catalog was lost: nobody knows who wrote it, so no worker is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

import pytest
from blake3 import blake3

from storage import ErasureProfile
from storage.catalog.port import UNKNOWN_ORIGIN
from storage.keys import Kind, ShardKey, StripeKey, object_id_of, shard_key
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.sealing.objects import OVERHEAD_BYTES, seal_into
from storage.shards import Shard
from storage.stripes.encoding import Encoder
from storage.stripes.stripes import chunk_stripe
from storage.write.client_chunks import ClientChunk
from storage.write.unverified import hashes_of
from tests.simulation.catalog import Database
from tests.simulation.disk import MemoryVolume
from tests.simulation.pool import CHUNK_BYTES, GRACE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

PROFILE = ErasureProfile(4, 6)
CHUNKS = 6
DATA = Random(2).randbytes(CHUNKS * CHUNK_BYTES)
_LOOKS_MAX = 20
WRONG = 5  # the shard of each chunk that is wrong


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), PROFILE, 6, zones=1, keys=MasterKeys(MasterKey(bytes(range(32)))))


def volume_of(cluster: Cluster, slot: int) -> MemoryVolume:
    return next(worker.volume for worker in cluster.workers if worker.name == cluster.pool.fleet.name(slot))


def right_ones(stripe: StripeKey, shards: Sequence[Shard]) -> list[Shard]:
    """All shards of a chunk, made from its data shards."""
    data = b"".join(bytes(shard.payload) for shard in shards[: PROFILE.k])
    return Encoder().shards_of(stripe, data, shards[0].object_length)


def garbage(shard: Shard) -> Shard:
    payload = bytes(len(shard.payload))
    return shard._replace(digest=blake3(payload).digest(), payload=payload)


def write_as_client(cluster: Cluster, wrong: Sequence[int]) -> list[StripeKey]:
    """Push as a client that writes to workers itself, with garbage for some shards; return the chunks' stripes."""
    store = cluster.pool.store

    def ask(slot: int, keys: Sequence[ShardKey]) -> Callable[[], Sequence[bytes | None]]:
        return lambda: [None if (shard := volume_of(cluster, slot).read(key)) is None else shard.digest for key in keys]

    stripes = []
    with store.upload(filename="written", user_id="ann") as upload:
        chunks = upload.client_chunks
        assert chunks is not None
        for at in range(0, len(DATA), CHUNK_BYTES):
            plain = DATA[at : at + CHUNK_BYTES]
            plain_id = blake3(plain).digest()
            raw = sealed(cluster, plain, plain_id)
            stripe = chunk_stripe(blake3(raw).digest(), PROFILE)
            padded = raw + bytes(-len(raw) % PROFILE.k)
            shards = [
                garbage(shard) if slot in wrong else shard._replace(payload=bytes(shard.payload))
                for slot, shard in enumerate(Encoder().shards_of(stripe, padded, len(raw)))
            ]
            said = ClientChunk(plain_id, object_id_of(stripe), len(plain), hashes_of(one.digest for one in shards))
            (placed,) = chunks.place([said], lambda _: True)
            assert placed is not None
            for slot, shard in zip(placed.stores, shards, strict=True):
                volume_of(cluster, slot).append([shard])
                volume_of(cluster, slot).sync()
            assert chunks.settle([said.stored_id], ask) == [True]
            upload.accept_written([said.stored_id])
            stripes.append(stripe)
        upload.commit(len(DATA))
    return stripes


def sealed(cluster: Cluster, content: bytes, plain_id: bytes) -> bytes:
    key = cluster.key_of("ann")
    assert key is not None
    raw = bytearray(len(content) + OVERHEAD_BYTES)
    seal_into(key, Kind.CHUNK, plain_id, content, memoryview(raw))
    return bytes(raw)


def lose_catalog(cluster: Cluster) -> None:
    """Lose the catalog, and rebuild it from the workers."""
    former = cluster.pool.pool_id
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)
    cluster.pass_time(5.0)
    assert cluster.pool.store.rebuild().undecided == []


def test_no_worker_is_blamed_after_a_rebuild_for_what_a_client_wrote(cluster: Cluster) -> None:
    stripes = write_as_client(cluster, [WRONG])
    lose_catalog(cluster)
    store, fleet = cluster.pool.store, cluster.pool.fleet
    audits = store.upkeep.read_back()
    for stripe in stripes:
        audits.audit(stripe)
    assert not fleet.lies()
    store.repair()
    for stripe in stripes:
        found = audits.audit(stripe)
        assert (found.shards, found.wrong) == (6, 0)
    assert content(cluster) == DATA


def test_no_worker_is_distrusted_after_a_rebuild_for_what_it_has_of_a_client(cluster: Cluster) -> None:
    """Shards are compared when they are moved."""
    stripes = write_as_client(cluster, [WRONG])
    lose_catalog(cluster)
    fleet, audits = cluster.pool.fleet, cluster.pool.store.upkeep.read_back()
    volumes = {slot: volume_of(cluster, slot) for slot in fleet.slots}
    for stripe in stripes:
        proper, former = fleet.targets(stripe)[WRONG], fleet.targets(stripe)[0]
        right = [
            volumes[slot].records_by_key[shard_key(stripe, at)].shard for at, slot in enumerate(fleet.targets(stripe))
        ]
        volumes[former].append(right_ones(stripe, right)[WRONG:])
        assert audits.alike([shard_key(stripe, WRONG)], former, proper) == []
    assert all(fleet.times_lied(slot) == 0 and fleet.trusts(slot) for slot in fleet.slots)
    cluster.pool.store.repair()
    assert [audits.audit(stripe).wrong for stripe in stripes] == [0] * CHUNKS


@pytest.mark.parametrize("wrong", [[0], [0, WRONG]])
def test_what_a_client_wrote_wrong_is_decoded_without_it_after_a_rebuild(cluster: Cluster, wrong: list[int]) -> None:
    write_as_client(cluster, wrong)
    lose_catalog(cluster)
    assert content(cluster) == DATA
    fleet = cluster.pool.fleet
    assert not any(fleet.times_lied(slot) for slot in fleet.slots)
    assert not fleet.lies()


def test_what_a_client_wrote_wrong_spares_no_transfer_after_a_rebuild(cluster: Cluster) -> None:
    stripes = write_as_client(cluster, [WRONG])
    lose_catalog(cluster)
    store, catalog = cluster.pool.store, cluster.pool.documents
    ids = [blake3(DATA[at : at + CHUNK_BYTES]).digest() for at in range(0, len(DATA), CHUNK_BYTES)]
    assert {catalog.unverified(stripe) for stripe in stripes} == {UNKNOWN_ORIGIN}
    assert store.missing_chunks(ids, user_id="ann") == [True] * CHUNKS
    store.push(DATA, filename="again", user_id="ann")
    assert {catalog.unverified(stripe) for stripe in stripes} == {b""}
    assert [store.upkeep.read_back().audit(stripe).wrong for stripe in stripes] == [0] * CHUNKS


def test_what_is_right_after_a_rebuild_need_not_be_sent_again(cluster: Cluster) -> None:
    stripes = write_as_client(cluster, [])
    lose_catalog(cluster)
    store, catalog = cluster.pool.store, cluster.pool.documents
    ids = [blake3(DATA[at : at + CHUNK_BYTES]).digest() for at in range(0, len(DATA), CHUNK_BYTES)]
    assert store.missing_chunks(ids, user_id="ann") == [False] * CHUNKS
    assert {catalog.unverified(stripe) for stripe in stripes} == {b""}


def test_a_worker_that_goes_on_lying_after_a_rebuild_is_found_out(cluster: Cluster) -> None:
    """As what it is given again cannot be what a client wrote."""
    stripes = write_as_client(cluster, [])
    lose_catalog(cluster)
    fleet, audits = cluster.pool.fleet, cluster.pool.store.upkeep.read_back()
    liar = fleet.targets(stripes[0])[WRONG]
    volume = volume_of(cluster, liar)
    for _ in range(_LOOKS_MAX):
        for stripe in stripes:
            slot = fleet.targets(stripe).index(liar)
            record = volume.records_by_key[shard_key(stripe, slot)]
            record.shard = garbage(record.shard)
            audits.audit(stripe)
        cluster.pool.store.repair()
        if fleet.lies():
            break
    assert fleet.lies().keys() == {liar}


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_worker_that_comes_back_after_long_is_not_blamed_for_what_a_client_wrote(
    cluster: Cluster, *, is_deleted: bool
) -> None:
    """The pool has written the chunks anew meanwhile, to the workers that have taken its place."""
    cluster.add_worker()
    cluster.pass_time(5.0)
    stripes = write_as_client(cluster, [WRONG])
    store, fleet = cluster.pool.store, cluster.pool.fleet
    names = {fleet.name(fleet.targets(stripe)[WRONG]) for stripe in stripes}
    away = next(worker for worker in cluster.workers if worker.name in names)
    cut_off(away, cut=True)
    cluster.pass_time(2 * GRACE_S)
    mend(cluster)
    if is_deleted:
        found = store.find("written", user_id="ann")
        assert found is not None
        store.delete(found.file_id, user_id="ann")
        store.collect(grace_s=0.0)
    store.push(DATA, filename="again", user_id="ann")
    cut_off(away, cut=False)
    cluster.pass_time(10.0)
    mend(cluster)
    audits = store.upkeep.read_back()
    for stripe in stripes:
        audits.audit(stripe)
    assert not any(fleet.times_lied(slot) for slot in fleet.slots)
    assert not fleet.lies()
    for version in store.list_files(user_id="ann"):
        store.delete(version.file_id, user_id="ann")
    store.collect(grace_s=0.0)
    assert not any(cluster.pool.documents.is_held(stripe) for stripe in stripes)


def cut_off(worker: Worker, *, cut: bool) -> None:
    worker.cut_off = cut
    worker.listen()


def mend(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def content(cluster: Cluster) -> bytes:
    store = cluster.pool.store
    found = store.find("written", user_id="ann")
    assert found is not None
    return bytes(store.get(found.file_id, user_id="ann"))
