"""A pool whose catalog or volumes were restored from old copies, or whose workers forge versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from random import Random

import msgspec
import pytest
from blake3 import blake3

from storage import CatalogBehind, ErasureProfile, FormatError, InsufficientWorkers, RebuildReport, Version
from storage.formats.authenticity import Authority, new_secret
from storage.formats.manifest import RootNode, encode_root, object_id
from storage.formats.tombstones import Tombstone, encode_tombstone, sign_tombstone
from storage.formats.version_records import NO_MAC, RECORD_FORMAT, SIGNED_FORMAT, SignedRecord, VersionRecord
from storage.formats.versions import StoredVersion, seal, seal_signed
from storage.keys import ID_BYTES, Kind, shard_key
from storage.shards import Shard
from storage.stripes.stripes import metadata_stripe
from tests.simulation.catalog import Database
from tests.simulation.network import PoolCrashed
from tests.simulation.pool import LEASE_S, Cluster
from tests.simulation.surroundings import simulated_surroundings
from tests.simulation.workers import Worker

CONTENT = Random(1).randbytes(200_000)
LATE = 1 << 60


@pytest.fixture(autouse=True)
def surroundings() -> Iterator[None]:
    with simulated_surroundings():
        yield


def cluster_of(count: int) -> Cluster:
    return Cluster(Random(1), ErasureProfile(4, 6), count, zones=1)


def settle(cluster: Cluster) -> None:
    for _ in range(4):
        cluster.pass_time(2.0)
        cluster.pool.repair_scheduler.mend()


def restart(cluster: Cluster, database: Database | None = None, rebuild: str = "") -> None:
    """Start the pool with another catalog, and let its workers join."""
    cluster.crash_pool()
    cluster.database = database or cluster.database
    cluster.start_pool(rebuild)
    cluster.pass_time(4.0)


def rebuilt(cluster: Cluster) -> RebuildReport:
    """Lose the catalog, and rebuild it from what the workers hold."""
    restart(cluster, Database(), cluster.pool.pool_id)
    return cluster.pool.store.rebuild()


# -- an older catalog ------------------------------------------------------------------------------------


def test_a_delete_that_no_worker_was_told_of_is_undone_with_the_catalog_and_loses_nothing() -> None:
    cluster = cluster_of(7)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    backup = deepcopy(cluster.database)
    for worker in cluster.workers:
        worker.stop()
    cluster.pool.store.delete(version.file_id, user_id="u")
    for worker in cluster.workers:
        worker.start()
    restart(cluster, backup)
    assert not cluster.pool.store.behind
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_a_delete_that_workers_were_told_of_later_shows_that_the_catalog_is_older() -> None:
    cluster = cluster_of(7)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    backup = deepcopy(cluster.database)
    for worker in cluster.workers:
        worker.stop()
    cluster.pool.store.delete(version.file_id, user_id="u")
    for worker in cluster.workers:
        worker.start()
    settle(cluster)
    restart(cluster, backup)
    assert cluster.pool.store.behind


def test_a_catalog_restored_from_a_backup_is_noticed_and_caught_up() -> None:
    cluster = cluster_of(7)
    store = cluster.pool.store
    first = store.push(b"one", filename="chain", user_id="u")
    gone = store.push(b"gone", filename="gone", user_id="u")
    backup = deepcopy(cluster.database)
    new = store.push(CONTENT, filename="new", user_id="u")
    second = store.push(b"two", filename="chain", user_id="u")
    store.delete(gone.file_id, user_id="u")
    restart(cluster, backup)
    store = cluster.pool.store
    assert "older than what the workers hold" in cluster.pool.view().health
    assert [event.kind for event in cluster.pool.view().events].count("behind") == 1
    assert store.get(first.file_id, user_id="u") == b"one"
    for refused in (
        lambda: store.push(b"x", filename="x", user_id="u"),
        lambda: store.collect(grace_s=0),
        lambda: store.delete(first.file_id, user_id="u"),
    ):
        with pytest.raises(CatalogBehind, match="run rebuild"):
            refused()
    settle(cluster)  # and mending drops nothing
    assert store.rebuild().skipped == []
    store.collect(grace_s=0)
    settle(cluster)
    assert store.get(new.file_id, user_id="u") == CONTENT
    assert [one.version_id for one in store.history(first.file_id, user_id="u")] == [
        second.version_id,
        first.version_id,
    ]
    assert store.find("gone", user_id="u") is None
    assert "older" not in cluster.pool.view().health
    report = store.scrub()
    assert report.clean
    assert not report.misplaced


@pytest.mark.parametrize("lost", [False, True])
def test_a_rebuild_without_workers_that_are_away_leaves_open_what_they_may_hold(lost: bool) -> None:
    """Three of six workers are away, so that each chunk has one shard too few; a collect must free nothing."""
    cluster = cluster_of(6)
    store = cluster.pool.store
    first = store.push(CONTENT, filename="chain", user_id="u")
    backup, pool_id = deepcopy(cluster.database), cluster.pool.pool_id
    new = store.push(CONTENT[::-1], filename="new", user_id="u")
    second = store.push(CONTENT[1:], filename="chain", user_id="u")
    restart(cluster, Database() if lost else backup, pool_id if lost else "")
    for worker in cluster.workers[:3]:
        worker.stop()
    cluster.pass_time(LEASE_S + 1)
    store = cluster.pool.store
    told = "; ".join(store.rebuild().undecided)
    for text in ("w0 was not examined", "w2 was not examined", "'new'", "'chain'"):
        assert text in told
    for work in (lambda: store.collect(grace_s=0), lambda: store.push(b"x", filename="x", user_id="u")):
        with pytest.raises(CatalogBehind, match=r"w0 was not examined.*run rebuild again"):
            work()
    assert "w0 was not examined" in cluster.pool.view().health
    settle(cluster)
    for worker in cluster.workers[:3]:
        worker.start()
    settle(cluster)
    restart(cluster)  # the pool still knows that the rebuild was incomplete
    store = cluster.pool.store
    with pytest.raises(CatalogBehind, match="run rebuild again"):
        store.collect(grace_s=0)
    report = store.rebuild()
    assert (report.skipped, report.undecided, store.behind) == ([], [], False)
    store.collect(grace_s=0)
    settle(cluster)
    assert store.get(new.file_id, user_id="u") == CONTENT[::-1]
    assert [one.version_id for one in store.history(first.file_id, user_id="u")] == [
        second.version_id,
        first.version_id,
    ]
    assert store.get(first.file_id, user_id="u") == CONTENT[1:]
    scrubbed = store.scrub()
    assert scrubbed.clean
    assert not scrubbed.misplaced


def test_a_worker_that_is_gone_for_good_is_forgotten_to_finish_a_rebuild() -> None:
    cluster = cluster_of(7)
    store = cluster.pool.store
    store.push(CONTENT, filename="f", user_id="u")
    backup = deepcopy(cluster.database)
    store.push(b"two", filename="two", user_id="u")
    new = store.push(CONTENT[::-1], filename="new", user_id="u")
    restart(cluster, backup)
    cluster.workers[0].stop()
    cluster.pass_time(LEASE_S + 1)
    assert any("w0 was not examined" in text for text in cluster.pool.store.rebuild().undecided)
    assert cluster.pool.store.get(new.file_id, user_id="u") == CONTENT[::-1]
    cluster.pool.forget("w0")
    assert cluster.pool.store.rebuild().undecided == []
    cluster.pool.store.collect(grace_s=0)
    assert cluster.pool.store.get(new.file_id, user_id="u") == CONTENT[::-1]


def test_a_liar_alone_cannot_agree_with_itself_while_the_others_are_away() -> None:
    """The secret is lost with the marks. The liar's records are believed neither then nor later."""
    cluster = cluster_of(7)
    kept = cluster.pool.store.push(CONTENT, filename="kept", user_id="u")
    settle(cluster)
    for worker in cluster.workers:
        worker.volume.remove([key for key in worker.volume.records_by_key if key[ID_BYTES] == Kind.MARK])
    _plant(cluster.workers[0], Kind.TOMBSTONE, _tombstone(kept))
    restart(cluster, Database(), cluster.pool.pool_id)
    for worker in cluster.workers[1:]:
        worker.stop()
    cluster.pass_time(LEASE_S + 1)
    with suppress(InsufficientWorkers):
        cluster.pool.store.rebuild()
    for worker in cluster.workers[1:]:
        worker.start()
    cluster.pass_time(4.0)
    assert cluster.pool.store.rebuild().undecided == []
    cluster.pool.store.collect(grace_s=0)
    assert cluster.pool.store.get(kept.file_id, user_id="u") == CONTENT


def test_an_older_catalog_is_noticed_though_the_first_worker_missed_the_latest_commit() -> None:
    """The first worker's latest record might be the remains of a crash; those of the other workers cannot."""
    cluster = cluster_of(7)
    store = cluster.pool.store
    store.push(b"one", filename="one", user_id="u")
    backup = deepcopy(cluster.database)
    store.push(b"two", filename="two", user_id="u")
    cluster.workers[0].leave(cluster.pool)
    store.push(b"three", filename="three", user_id="u")
    cluster.workers[0].start()
    restart(cluster, backup)
    assert cluster.pool.store.behind
    cluster.pool.store.rebuild()
    assert cluster.pool.store.find("three", user_id="u") is not None


def test_a_commit_that_was_cut_off_again_and_again_is_no_sign_of_an_older_catalog() -> None:
    cluster = cluster_of(6)
    cluster.pool.store.push(b"one", filename="one", user_id="u")
    for _ in range(3):
        cluster.process.dies_at = "catalog: before a commit"
        with pytest.raises(PoolCrashed):
            cluster.pool.store.push(b"two", filename="two", user_id="u")
        restart(cluster)
        assert not cluster.pool.store.behind


def test_a_lying_worker_cannot_stop_the_pool() -> None:
    """It holds a record of the far future, unsigned or signed with its own secret."""
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    own = Authority()
    own.use(new_secret(4, Random(9).randbytes))
    for number, raw in enumerate((_unsigned(version).raw, _signed(version, own).raw)):
        _plant(cluster.workers[number], Kind.VERSION, raw)
    for number, raw in enumerate((_tombstone(version), sign_tombstone(bytes.fromhex(version.file_id), LATE, own))):
        _plant(cluster.workers[number], Kind.TOMBSTONE, raw)
    restart(cluster)
    assert not cluster.pool.store.behind
    later = cluster.pool.store.push(b"more", filename="g", user_id="u")
    assert later.sequence < LATE
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_workers_that_lie_one_after_the_other_cannot_stop_the_pool() -> None:
    """A volume's former record does not count any more once it reports another one."""
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    for worker in cluster.workers[:4]:
        honest = dict(worker.volume.records_by_key)
        _plant(worker, Kind.TOMBSTONE, _tombstone(version))
        for _ in range(2):
            worker.stop()
            cluster.pass_time(1.0)
            worker.start()
            cluster.pass_time(2.0)
            for key in worker.volume.records_by_key.keys() - honest.keys():
                del worker.volume.records_by_key[key]
    assert not cluster.pool.store.behind
    assert cluster.pool.store.push(b"more", filename="g", user_id="u").sequence < LATE


# -- older volumes ---------------------------------------------------------------------------------------


def test_a_worker_with_an_older_copy_of_its_volume_does_not_count() -> None:
    cluster = cluster_of(6)
    cluster.pool.store.push(b"first", filename="first", user_id="u")
    settle(cluster)
    worker = cluster.workers[0]
    copy = dict(worker.volume.records_by_key)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    assert cluster.pool.view().workers_survivable == 2
    worker.leave(cluster.pool)
    worker.volume.records_by_key = copy
    worker.volume._sorted = None
    worker.start()
    worker.beat(cluster.pool)
    assert cluster.pool.view().workers_survivable == 1
    assert [event.kind for event in cluster.pool.view().events].count("stale") == 1
    settle(cluster)
    assert cluster.pool.view().workers_survivable == 2
    report = cluster.pool.store.scrub()
    assert report.clean
    assert not report.misplaced
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_a_worker_that_was_away_comes_back_as_it_was() -> None:
    cluster = cluster_of(6)
    cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    worker = cluster.workers[0]
    worker.leave(cluster.pool)
    cluster.pool.store.push(b"meanwhile", filename="g", user_id="u")
    worker.start()
    worker.beat(cluster.pool)
    settle(cluster)
    restart(cluster)
    settle(cluster)
    assert "stale" not in [event.kind for event in cluster.pool.view().events]


def test_a_copy_of_a_workers_directory_is_not_let_in() -> None:
    cluster = cluster_of(6)
    twin = cluster.add_worker()
    twin.volume.volume_id = cluster.workers[0].volume.volume_id
    cluster.pass_time(3.0)
    assert twin.name not in [record.worker for record in cluster.pool.membership.records]
    cluster.workers[0].leave(cluster.pool)
    cluster.pass_time(2.0)
    assert twin.name in [record.worker for record in cluster.pool.membership.records]


# -- rebuild ---------------------------------------------------------------------------------------------


def _root() -> tuple[RootNode, bytes]:
    root = RootNode(1, 0, 64 * 1024, 4, 6, 0, 0, b"")
    return root, encode_root(root)


def _unsigned(version: Version) -> StoredVersion:
    """Forge a version that would replace the right one."""
    root, raw = _root()
    file_id, parent = bytes.fromhex(version.file_id), bytes.fromhex(version.version_id)
    record = VersionRecord(
        RECORD_FORMAT, file_id, parent, object_id(raw), 0, version.user_id, version.filename, 0, LATE, None, "forged"
    )
    return seal(record, root, raw)


def _signed(version: Version, authority: Authority) -> StoredVersion:
    """Forge the same version, signed with a forged secret."""
    root, raw = _root()
    forged = msgspec.structs.asdict(_unsigned(version).record) | {"format": SIGNED_FORMAT}
    return seal_signed(SignedRecord(**forged, committed=LATE, mac=NO_MAC), root, raw, authority)


def _tombstone(version: Version) -> bytes:
    return encode_tombstone(Tombstone(RECORD_FORMAT, bytes.fromhex(version.file_id), LATE))


def _plant(worker: Worker, kind: Kind, raw: bytes) -> None:
    """Give a worker a forged record."""
    identifier = object_id(msgspec.msgpack.decode(raw)[0] if kind is Kind.VERSION else raw)
    for slot in range(6):
        key = shard_key(metadata_stripe(kind, identifier, 6), slot)
        worker.volume.append([Shard(key, len(raw), blake3(raw).digest(), raw)])
    worker.volume.sync()


@pytest.mark.parametrize("liars", [1, 2])
def test_workers_that_make_up_versions_and_tombstones(liars: int) -> None:
    """Up to two of seven workers, as many as may lie at once, tell the same lies."""
    cluster = cluster_of(7)
    deleted = cluster.pool.store.push(CONTENT, filename="a", user_id="u")
    replaced = cluster.pool.store.push(CONTENT[::-1], filename="b", user_id="u")
    settle(cluster)
    for worker in cluster.workers[:liars]:
        _plant(worker, Kind.TOMBSTONE, _tombstone(deleted))
        _plant(worker, Kind.VERSION, _unsigned(replaced).raw)
    report = rebuilt(cluster)
    assert cluster.pool.store.get(deleted.file_id, user_id="u") == CONTENT
    assert cluster.pool.store.find("b", user_id="u") == replaced
    assert cluster.pool.store.get(replaced.file_id, user_id="u") == CONTENT[::-1]
    assert len(report.skipped) == 2
    assert all("not signed by this store" in text and f"{liars} of the 3" in text for text in report.skipped)
    assert cluster.pool.store.push(b"later", filename="c", user_id="u").sequence < LATE


def test_a_secret_that_workers_made_up_is_not_taken() -> None:
    """Two of seven workers report shares of their own secret, and versions signed with it."""
    cluster = cluster_of(7)
    version = cluster.pool.store.push(CONTENT, filename="a", user_id="u")
    settle(cluster)
    own = Authority()
    own.use(new_secret(1, Random(9).randbytes))
    for worker in cluster.workers[:2]:
        worker.volume.remove([key for key in worker.volume.records_by_key if key[ID_BYTES] == Kind.MARK])
        _plant(worker, Kind.VERSION, _signed(version, own).raw)
    assert cluster.pool.store.find("a", user_id="u") == version
    rebuilt(cluster)
    assert cluster.pool.store.find("a", user_id="u") == version


@pytest.mark.parametrize("liars", [0, 1, 2])
def test_without_the_secret_so_many_workers_must_agree(liars: int) -> None:
    cluster = cluster_of(7)
    kept = cluster.pool.store.push(CONTENT, filename="kept", user_id="u")
    gone = cluster.pool.store.push(b"gone", filename="gone", user_id="u")
    cluster.pool.store.delete(gone.file_id, user_id="u")
    settle(cluster)
    for worker in cluster.workers:
        worker.volume.remove([key for key in worker.volume.records_by_key if key[ID_BYTES] == Kind.MARK])
    for worker in cluster.workers[:liars]:
        _plant(worker, Kind.TOMBSTONE, _tombstone(kept))
    report = rebuilt(cluster)
    assert len(report.skipped) == min(liars, 1)
    assert [one.filename for one in cluster.pool.store.list_files(user_id="u")] == ["kept"]
    assert cluster.pool.store.get(kept.file_id, user_id="u") == CONTENT
    # Records that were accepted by agreement are believed again, and new ones are signed.
    after = cluster.pool.store.push(b"after", filename="after", user_id="u")
    settle(cluster)
    rebuilt(cluster)
    assert cluster.pool.store.find("after", user_id="u") == after
    assert cluster.pool.store.get(kept.file_id, user_id="u") == CONTENT


def test_a_rebuild_that_cannot_tell_what_the_store_has_signed_stays_unfinished() -> None:
    """One of three workers hides its share of the secret and its copies, and the other two are not enough."""
    cluster = Cluster(Random(1), ErasureProfile(2, 4), 3, zones=1)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    liar = cluster.workers[0].volume
    hidden = {key: liar.records_by_key[key] for key in liar.records_by_key if key[ID_BYTES] != Kind.CHUNK}
    for key in hidden:
        del liar.records_by_key[key]
    with pytest.raises(InsufficientWorkers, match="signed, but it cannot be verified that this store signed them"):
        rebuilt(cluster)
    assert cluster.pool.store.needs_rebuild
    with pytest.raises(FormatError, match="run rebuild"):
        cluster.pool.store.collect(grace_s=0)
    liar.records_by_key.update(hidden)
    cluster.pool.store.rebuild()
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_a_rebuild_begun_by_a_pool_that_was_killed_at_once() -> None:
    """The next start continues the rebuild, even without the option to rebuild."""
    cluster = cluster_of(6)
    version = cluster.pool.store.push(CONTENT, filename="f", user_id="u")
    settle(cluster)
    pool_id = cluster.pool.pool_id
    restart(cluster, Database(), pool_id)
    restart(cluster)
    assert (cluster.pool.pool_id, cluster.pool.store.needs_rebuild) == (pool_id, True)
    cluster.pool.store.rebuild()
    assert cluster.pool.store.get(version.file_id, user_id="u") == CONTENT


def test_an_older_volume_put_back_over_a_collect_that_it_missed_is_noticed() -> None:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)
        store = cluster.pool.store
        store.push(bytes(100_000), filename="before", user_id="u")
        worker = cluster.workers[0]
        copy = worker.volume.copied()
        store.push(bytes(200_000), filename="after", user_id="u")
        worker.stop()
        cluster.pass_time(LEASE_S + 1)
        store.collect(grace_s=0)
        worker.volume.put_back(copy)
        worker.start()
        cluster.pass_time(2.0)
        assert [event.kind for event in cluster.pool.view().events].count("stale") == 1


def test_a_volume_that_missed_a_collect_is_no_older_one() -> None:
    with simulated_surroundings():
        cluster = Cluster(Random(1), ErasureProfile(4, 6), 6, zones=1)
        store = cluster.pool.store
        gone = store.push(bytes(200_000), filename="gone", user_id="u")
        worker = cluster.workers[0]
        worker.stop()
        cluster.pass_time(LEASE_S + 1)
        store.delete(gone.file_id, user_id="u")
        store.collect(grace_s=0)
        for _ in range(3):
            worker.start()
            cluster.pass_time(2.0)
            cluster.pool.repair_scheduler.mend()
            store.collect(grace_s=0)
        assert "stale" not in [event.kind for event in cluster.pool.view().events]
