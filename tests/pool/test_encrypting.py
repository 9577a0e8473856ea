"""Encrypting what a pool stored before it encrypted, in a simulated pool."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import cast

import msgspec
import pytest

from storage import ErasureProfile, FileStorage
from storage.catalog import user_key
from storage.errors import InvalidArgument, QuotaExceeded, StorageError
from storage.maintenance.plain_versions import heads
from storage.sealing.master_keys import MasterKey, MasterKeys
from storage.write.quotas import Quota
from taskworker.folders.entries import Entry, Kind, decode_listing, encode_listing
from tests.simulation.catalog import Database
from tests.simulation.pool import Cluster
from tests.simulation.surroundings import simulated_surroundings

WORKERS = 6
USER = "ann"
PLANTED = b"PlantedPlaintext"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with simulated_surroundings():
        yield Cluster(Random(1), ErasureProfile(2, 4), WORKERS, zones=1)


def encrypt_from_now_on(cluster: Cluster) -> None:
    cluster.crash_pool()
    cluster._keys = MasterKeys(MasterKey(bytes(32)))
    cluster.start_pool()
    cluster.pass_time(5.0)


def test_heads_get_encrypted_versions_and_earlier_ones_are_dropped_if_that_is_asked_for(cluster: Cluster) -> None:
    store = cluster.pool.store
    files = {f"file {size}": PLANTED + bytes(size) if size else b"" for size in (0, 10, 5_000, 300_000)}
    before = {}
    for name, data in files.items():
        store.push(b"earlier", filename=name, user_id=USER)
        before[name] = store.push(data, filename=name, user_id=USER, note="a note", time_ms=7)
    of_function = store.push(PLANTED, filename="bundle", user_id="system:functions")
    with pytest.raises(InvalidArgument, match="--encryption"):
        cluster.pool.encrypting.request(drop_earlier=False)

    encrypt_from_now_on(cluster)
    work, store = cluster.pool.encrypting, cluster.pool.store
    assert work.views() == []
    work.request(drop_earlier=False)
    assert work.views()[0].state == "waiting"
    work.step()
    assert (work.views()[0].state, work.views()[0].note) == ("idle", "encrypted 4 files")
    plain = [found.user_id for found in heads(cluster.pool.documents) if found.is_plain]
    assert plain == ["system:functions"]
    for name, data in files.items():
        history = store.history(before[name].file_id, user_id=USER)
        assert [version.note for version in history] == ["a note", "a note", ""]
        assert history[0].time_ms == 7
        assert store.get(before[name].file_id, user_id=USER) == data
        assert store.get(before[name].file_id, user_id=USER, version_id=before[name].version_id) == data

    work.request(drop_earlier=True)
    work.step()
    assert work.views()[0].note.startswith("encrypted 0 files, and dropped 8 earlier versions")
    store.collect(grace_s=0)
    for name, data in files.items():
        assert len(store.history(before[name].file_id, user_id=USER)) == 1
        assert store.get(before[name].file_id, user_id=USER) == data
    assert store.get(of_function.file_id, user_id="system:functions", version_id=of_function.version_id) == PLANTED
    store.delete(of_function.file_id, user_id="system:functions")
    store.collect(grace_s=0)
    for worker in cluster.workers:
        for record in worker.volume.records_by_key.values():
            assert PLANTED not in bytes(record.shard.payload)
            assert b"a note" not in bytes(record.shard.payload)
    assert store.counts().files == 4
    assert store.counts().versions == 4


def test_a_request_outlives_the_pool_s_process(cluster: Cluster) -> None:
    for number in range(3):
        cluster.pool.store.push(PLANTED, filename=str(number), user_id=USER)
    encrypt_from_now_on(cluster)
    cluster.pool.encrypting.request(drop_earlier=False)
    cluster.crash_pool()
    cluster.start_pool()
    work = cluster.pool.encrypting
    with pytest.raises(StorageError) as too_early:  # its workers are not back
        work.step()
    work.note_failure(too_early.value)
    assert work.views()[0].state == "failed"
    cluster.pass_time(5.0)
    work.step()  # not due yet
    assert work.views()[0].state == "failed"
    cluster.pass_time(15.0)
    work.step()
    assert work.views()[0].note == "encrypted 3 files"
    assert work.pause_s() is None


@pytest.mark.parametrize("killed_at", range(1, 6))
def test_listings_name_the_new_versions_wherever_the_pool_was_killed(cluster: Cluster, killed_at: int) -> None:
    store = cluster.pool.store
    pushed = [store.push(PLANTED * size, filename=f"folder/{size}", user_id=USER) for size in (1, 5, 30_000)]
    entries = [Entry(b"", Kind.DIRECTORY, 0o755, 1, 2, 3, 4, 5)]
    for version in pushed:
        path, content = version.filename.removeprefix("folder/").encode(), (bytes.fromhex(version.version_id),)
        entries.append(Entry(path, Kind.FILE, 0o600, 7, 8, 9, 10, 11, version.size, content=content))
    store.push(encode_listing(entries), filename="folder/", user_id=USER)
    store.push(b"no listing", filename="other/", user_id=USER)
    encrypt_from_now_on(cluster)
    work, steps = cluster.pool.encrypting, iter(range(killed_at))

    class UpkeepKilledAt:
        """The upkeep of a store that ends everything before one of its writes."""

        def __getattr__(self, name: str) -> object:
            if name in ("encrypt_head", "replace_content") and next(steps, None) is None:
                raise KeyboardInterrupt
            return getattr(cluster.pool.store.upkeep, name)

    class KilledAt:
        """The store with this upkeep."""

        upkeep = UpkeepKilledAt()

        def __getattr__(self, name: str) -> object:
            return getattr(cluster.pool.store, name)

    work._store = cast("FileStorage", KilledAt())
    work.request(drop_earlier=True)
    with pytest.raises(KeyboardInterrupt):
        work.step()
    cluster.crash_pool()
    cluster.start_pool()
    cluster.pass_time(5.0)
    store = cluster.pool.store
    store.push(b"changed", filename="folder/5", user_id=USER)
    cluster.pool.encrypting.step()
    assert "dropped" in cluster.pool.encrypting.views()[0].note
    found = store.find("folder/", user_id=USER)
    assert found is not None
    listed = {entry.name: entry for entry in decode_listing(store.get(found.file_id, user_id=USER))}
    for version, entry in zip(pushed, entries[1:], strict=True):
        head = store.stat(version.file_id, user_id=USER)
        assert head.version_id != version.version_id
        is_same = head.size == version.size
        assert (listed[entry.name].content == (bytes.fromhex(head.version_id),)) is is_same
        assert msgspec.structs.replace(listed[entry.name], content=entry.content) == entry or not is_same


def dropped(cluster: Cluster) -> str:
    """Have everything encrypted and earlier versions dropped; what the work says of it."""
    cluster.pool.encrypting.request(drop_earlier=True)
    cluster.pool.encrypting.step()
    return cluster.pool.encrypting.views()[0].note


def taken(cluster: Cluster, user: str) -> int:
    """What a user's files take of the quota."""
    return cluster.pool.documents.usage(user_key(user.encode())).bytes


def test_what_was_dropped_counts_no_more(cluster: Cluster) -> None:
    data = Random(1).randbytes(300_000)
    for number in range(3):
        cluster.pool.store.push(data, filename=f"file {number}", user_id=USER)
    encrypt_from_now_on(cluster)
    cluster.pool.store.push(data, filename="fresh", user_id="bob")
    dropped(cluster)
    cluster.pool.store.collect(grace_s=0)
    once = taken(cluster, "bob")
    assert 3 * once <= taken(cluster, USER) <= 3 * once + 9_000  # records count, too


def test_a_quota_that_is_nearly_used_up_keeps_nothing_from_being_encrypted(cluster: Cluster) -> None:
    sizes = (10, 5_000, 300_000, 400_000)
    store = cluster.pool.store
    pushed = [store.push(PLANTED + bytes(size), filename=f"{size}", user_id=USER) for size in sizes]
    entries = [Entry(b"", Kind.DIRECTORY, 0o755, 1, 2, 3, 4, 5)]
    in_folder = store.push(PLANTED, filename="folder/file", user_id=USER)
    entries.append(
        Entry(b"file", Kind.FILE, 0o600, 7, 8, 9, 10, 11, 16, content=(bytes.fromhex(in_folder.version_id),))
    )
    store.push(encode_listing(entries), filename="folder/", user_id=USER)
    full = Quota(bytes=taken(cluster, USER) + 1)
    encrypt_from_now_on(cluster)
    store = cluster.pool.store
    store.upkeep.policy.quota_of = lambda _user: full
    dropped(cluster)
    assert cluster.pool.encrypting.views()[0].note.startswith("encrypted 6 files, and dropped 6 earlier versions")
    for size, version in zip(sizes, pushed, strict=True):
        assert store.get(version.file_id, user_id=USER) == PLANTED + bytes(size)
    with pytest.raises(QuotaExceeded):
        store.push(Random(1).randbytes(300_000), filename="more", user_id=USER)


def test_a_file_whose_earlier_versions_were_dropped_can_be_deleted_by_version(cluster: Cluster) -> None:
    file_id = cluster.pool.store.push(PLANTED, filename="a", user_id=USER).file_id
    encrypt_from_now_on(cluster)
    dropped(cluster)
    store = cluster.pool.store
    head = store.stat(file_id, user_id=USER).version_id
    store.push(b"newer", filename="a", user_id=USER)
    assert store.delete_version(file_id, store.stat(file_id, user_id=USER).version_id, user_id=USER) is not None
    assert store.get(file_id, user_id=USER) == PLANTED
    assert store.delete_version(file_id, head, user_id=USER) is None
    assert store.find("a", user_id=USER) is None


@pytest.mark.parametrize("collected", [False, True])
def test_a_rebuild_does_not_bring_back_what_was_dropped(cluster: Cluster, collected: bool) -> None:
    store = cluster.pool.store
    store.push(b"earlier", filename="a", user_id=USER)
    file_id = store.push(PLANTED, filename="a", user_id=USER).file_id
    encrypt_from_now_on(cluster)
    assert "dropped 2 earlier versions" in dropped(cluster)
    if collected:
        cluster.pool.store.collect(grace_s=0)
    former = cluster.pool.pool_id
    cluster.crash_pool()
    cluster.database = Database()
    cluster.start_pool(rebuild=former)
    cluster.pass_time(5.0)
    store = cluster.pool.store
    report = store.rebuild()
    assert (report.files, report.versions, report.skipped, report.undecided) == (1, 1, [], [])
    assert len(store.history(file_id, user_id=USER)) == 1
    assert store.get(file_id, user_id=USER) == PLANTED


def test_a_version_that_becomes_the_newest_again_meanwhile_is_not_dropped(cluster: Cluster) -> None:
    """Its owner deletes the encrypted one once it was found to be the newest."""
    file_id = cluster.pool.store.push(PLANTED, filename="a", user_id=USER).file_id
    encrypt_from_now_on(cluster)
    work, store = cluster.pool.encrypting, cluster.pool.store

    def delete_encrypted(_: object) -> None:
        store.delete_version(file_id, store.stat(file_id, user_id=USER).version_id, user_id=USER)

    work.move_links = delete_encrypted
    assert "dropped 0 earlier versions" in dropped(cluster)
    store.collect(grace_s=0)
    assert store.get(file_id, user_id=USER) == PLANTED
    assert store.counts().versions == 1
