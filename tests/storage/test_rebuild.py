"""Rebuilding the whole catalog from the volumes alone, whatever else is lost with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest

import storage.maintenance.node_taker
import storage.maintenance.rebuild
from storage import (
    DataLossError,
    ErasureProfile,
    FileNotFound,
    FileStorage,
    FormatError,
    InvalidArgument,
    RebuildReport,
    Version,
)
from storage.catalog import LmdbCatalog
from storage.formats.manifest import FAN_OUT, Manifest, RootNode, encode_node, encode_root, object_id
from storage.formats.tombstones import Tombstone, encode_tombstone
from storage.formats.version_records import RECORD_FORMAT, VersionRecord
from storage.formats.versions import read_version, seal
from storage.keys import Kind, stripe_key
from tests.storage.helpers import (
    CHUNK,
    USER,
    content,
    digest,
    file_shards,
    get,
    lose,
    lose_catalog,
    open_store,
    plant,
    push,
    records,
    rot_shards,
    volume_dir,
)


class Past(NamedTuple):
    """The history of a store: all kept versions by file, oldest first, and the deleted files."""

    files: list[list[tuple[Version, bytes]]]
    deleted: list[Version]


def _live_a_little(store: FileStorage) -> Past:
    files = [_history(store, "a", "ada", 3), _history(store, "b/数据", "ada", 1), _history(store, "a", "bob", 2)]
    large = store.push(content(5, 9 * CHUNK), filename="large", user_id="ada", profile=ErasureProfile(2, 4), note="n")
    files.append([(large, content(5, 9 * CHUNK))])
    files.append([(push(store, b"", "empty", "eve"), b"")])
    deleted = [push(store, content(6, 2 * CHUNK), "gone", "ada"), push(store, content(1, 100), "gone too", "bob")]
    for version in deleted:
        store.delete(version.file_id, user_id=version.user_id)
    files.append(_history(store, "gone", "ada", 2))  # the name is reused
    return Past(files, deleted)


def _history(store: FileStorage, name: str, user: str, count: int) -> list[tuple[Version, bytes]]:
    kept: list[tuple[Version, bytes]] = []
    for number in range(count):
        data = content(len(name) + number, (number + 1) * CHUNK // 2)
        kept.append((push(store, data, name, user), data))
    return kept


def _check(store: FileStorage, past: Past) -> None:
    for file in past.files:
        head, _ = file[-1]
        assert store.history(head.file_id, user_id=head.user_id) == [version for version, _ in reversed(file)]
        assert store.find(head.filename, user_id=head.user_id) == head
        for version, data in file:
            assert get(store, version) == data
    for user in ("ada", "bob", "eve"):
        names = sorted(file[-1][0].filename for file in past.files if file[-1][0].user_id == user)
        assert [version.filename for version in store.list_files(user_id=user)] == names
    for version in past.deleted:
        with pytest.raises(FileNotFound):
            store.stat(version.file_id, user_id=version.user_id)
    stats = store.stats()
    assert (stats.files, stats.logical_bytes) == (len(past.files), sum(len(file[-1][1]) for file in past.files))


def _rebuilt(root: Path, past: Past) -> RebuildReport:
    """Rebuild the store, and check that it is as before, also after all kinds of maintenance."""
    with open_store(root) as store:
        assert store.needs_rebuild
        assert store.stats().needs_rebuild
        report = store.rebuild()
        assert not store.stats().needs_rebuild
        assert (report.files, report.versions) == (len(past.files), sum(map(len, past.files)))
        _check(store, past)
        store.collect(grace_s=0)
        assert store.repair().complete
        assert store.scrub().clean
        _check(store, past)
    with open_store(root) as store:
        _check(store, past)
        assert store.stats().versions == sum(map(len, past.files))
    return report


@pytest.fixture(scope="module")
def lived(module_scratch: Path) -> tuple[Path, Past]:
    """A closed 4-of-6 store with a history, to be copied."""
    root = module_scratch / "lived"
    with open_store(root, segment_bytes_max=100_000) as store:
        return root, _live_a_little(store)


@pytest.fixture
def past(lived: tuple[Path, Past], root: Path) -> Past:
    """A copy of that store at ``root``, without its catalog."""
    shutil.copytree(lived[0], root)
    lose_catalog(root)
    return lived[1]


# -- what is lost with the catalog ----------------------------------------------------------------------


@pytest.mark.parametrize("collected", [False, True])
def test_a_store_whose_files_are_all_deleted_is_current_after_a_rebuild(tmp_path: Path, collected: bool) -> None:
    """Only a tombstone is left to show how far the catalog had come."""
    with open_store(tmp_path) as store:
        gone = push(store, content(1, CHUNK))
        store.delete(gone.file_id, user_id=gone.user_id)
        if collected:
            store.collect(grace_s=0)
    lose_catalog(tmp_path)
    with open_store(tmp_path) as store:
        assert store.needs_rebuild
        assert store.rebuild() == RebuildReport(0, 0, [], [])
    with open_store(tmp_path) as store:
        assert not store.behind
        store.collect(grace_s=0)
        assert get(store, push(store, b"next")) == b"next"


def test_the_catalog_alone(root: Path, past: Past) -> None:
    assert _rebuilt(root, past).skipped == []


@pytest.mark.parametrize("pair", list(combinations(range(6), 2)))
def test_any_two_volumes_as_well(root: Path, past: Past, pair: tuple[int, int]) -> None:
    lose(root, *pair)
    with open_store(root) as store:
        assert [volume.state for volume in store.stats().volumes].count("incomplete") == 2
    _rebuilt(root, past)


def test_all_volume_files_as_well(root: Path, past: Past) -> None:
    for slot in range(6):
        (volume_dir(root, slot) / "VOLUME").unlink()
    _rebuilt(root, past)


def test_everything_derivable_as_well(root: Path, past: Past) -> None:
    """Also lost are settings, indexes, the VOLUME file of all but one, and two volumes."""
    (root / "STORE").unlink()
    lose(root, 1, 2)
    for slot in (0, 3, 4):
        (volume_dir(root, slot) / "VOLUME").unlink()
        shutil.rmtree(volume_dir(root, slot) / "index")
    _rebuilt(root, past)


@pytest.mark.parametrize("gone", [[0], [0, 1, 2, 3, 4], [4]])
def test_the_defaults_of_a_store_survive(root: Path, gone: list[int]) -> None:
    """Metadata is found by the store's n; without it, a rebuilt store would consider its own metadata lost."""
    with open_store(root, k=3, n=5) as store:
        version = push(store, b"x")
    lose_catalog(root)
    (root / "STORE").unlink()
    for slot in gone:
        (volume_dir(root, slot) / "VOLUME").unlink()
    with FileStorage.open(root) as store:
        store.rebuild()
        assert (store.profile, store.chunk_size) == (ErasureProfile(3, 5), CHUNK)
        assert store.scrub().clean
        assert get(store, version) == b"x"


def test_rot_as_well(root: Path, past: Past) -> None:
    for slot in (1, 5):
        for record in records(volume_dir(root, slot))[::3]:
            with record.segment.open("r+b") as stream:
                stream.seek(record.stop - 1)
                stream.write(b"?")
    with open_store(root) as store:
        store.rebuild()
        _check(store, past)
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
        _check(store, past)


# -- what a rebuild must not do --------------------------------------------------------------------------


def test_nothing_but_rebuild_works_before_it(root: Path, past: Past) -> None:
    version = past.files[0][0][0]
    with open_store(root) as store:
        uses: list[Callable[[], object]] = [
            lambda: push(store, b"x"),
            lambda: get(store, version),
            lambda: store.list_files(user_id=USER),
            lambda: store.find("a", user_id=USER),
            store.scrub,
            store.repair,
            store.collect,
        ]
        for use in uses:
            with pytest.raises(FormatError, match="rebuild"):
                use()
    _rebuilt(root, past)


def test_a_catalog_that_is_there_is_left_alone(store: FileStorage) -> None:
    push(store, b"x")
    with pytest.raises(InvalidArgument, match="catalog"):
        store.rebuild()


def test_deleted_files_stay_deleted_though_their_records_lie_there(root: Path) -> None:
    """Nothing was collected, so that the deleted file is still on the volumes."""
    with open_store(root) as store:
        version = push(store, content(1, CHUNK))
        store.delete(version.file_id, user_id=USER)
    lose_catalog(root)
    with open_store(root) as store:
        assert store.rebuild().files == 0
        assert store.list_files(user_id=USER) == []
        store.collect(grace_s=0)
        assert file_shards(store) == 6  # the tombstone


def test_a_deleted_file_stays_deleted_with_all_but_one_volume_gone(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, b"x")
        store.delete(version.file_id, user_id=USER)
    lose_catalog(root)
    lose(root, 0, 1, 2, 3, 4)
    with open_store(root) as store:
        assert store.rebuild().files == 0


def test_a_rebuild_that_is_cut_short_can_be_repeated(root: Path, past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.maintenance.rebuild, "_BATCH", 2)  # several transactions even in a small store
    for stop_at in (3, 20, 40):
        steps = iter(range(stop_at))

        def stop(done: int, total: int, steps: object = steps) -> None:
            next(steps)  # type: ignore[call-overload]

        with open_store(root) as store:
            try:
                store.rebuild(progress=stop)
            except StopIteration:
                assert store.needs_rebuild
            else:
                _check(store, past)
                return
    _rebuilt(root, past)


def test_manifests_and_claims_of_all_versions_come_back_a_little_at_a_time(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes are read from the volumes when versions name them, and few are kept in memory."""
    monkeypatch.setattr(storage.maintenance.node_taker, "_NODES_MAX", 1)
    monkeypatch.setattr(storage.maintenance.rebuild, "_CLAIMED_TOGETHER", 3)
    data = bytearray((FAN_OUT + 10) * CHUNK)
    with open_store(root) as store:
        versions = [(push(store, bytes(data)), bytes(data))]
        for at in (1, FAN_OUT * CHUNK, 5 * CHUNK):
            data[at : at + 10] = content(at, 10)
            versions.append((push(store, bytes(data)), bytes(data)))
    with closing(LmdbCatalog(root / "catalog")) as catalog:
        named = next(catalog.nodes())
    unnamed = encode_node(0, bytes(64))
    plant(root, stripe_key(Kind.NODE, object_id(unnamed), 1, 6), {0: (len(unnamed), unnamed)}, 6)
    lose_catalog(root)
    with closing(LmdbCatalog(root / "catalog")) as catalog:
        catalog.transact(lambda txn: txn.put_nodes([(named, b"damaged")]))
    with open_store(root) as store:
        assert store.rebuild().skipped == []
        chunks = {digest(text[at : at + CHUNK]) for _, text in versions for at in range(0, len(text), CHUNK)}
        missing = store.missing_chunks(sorted(chunks), user_id=USER, profile=versions[0][0].profile)
        assert missing == [False] * len(chunks)
        store.collect(grace_s=0)
        assert store.scrub().clean
    with closing(LmdbCatalog(root / "catalog")) as catalog:
        kept = {node_id: catalog.node(node_id) or b"" for node_id in catalog.nodes()}
        assert object_id(unnamed) not in kept
        for version, _ in versions:
            version_id = bytes.fromhex(version.version_id)
            raw = catalog.version(bytes.fromhex(version.file_id), version_id)
            assert raw is not None
            assert set(Manifest(read_version(raw, version_id).root, kept.__getitem__).chunk_ids()) <= chunks


def test_claims_come_back(root: Path, past: Past) -> None:
    with open_store(root) as store:
        store.rebuild()
        for file in past.files:
            head, data = file[-1]
            ids = [digest(data[i : i + CHUNK]) for i in range(0, len(data), CHUNK)]
            missing = store.missing_chunks(ids, user_id=head.user_id, profile=head.profile)
            assert missing == [False] * len(ids)
        only_eves = [digest(content(5, 9 * CHUNK)[:CHUNK])]
        assert store.missing_chunks(only_eves, user_id="eve", profile=ErasureProfile(2, 4)) == [True]


def test_life_goes_on_after_a_rebuild(root: Path, past: Past) -> None:
    with open_store(root) as store:
        store.rebuild()
        head, data = past.files[0][-1]
        version = push(store, data + b"more", head.filename, head.user_id)
        assert version.parent_id == head.version_id
        assert version.sequence > max(kept.sequence for file in past.files for kept, _ in file)
        past.files[0].append((version, data + b"more"))
    try:
        lose_catalog(root)
        _rebuilt(root, past)
    finally:
        past.files[0].pop()


# -- damage beyond repair --------------------------------------------------------------------------------


def test_an_older_version_stands_in_for_a_head_that_is_lost(root: Path) -> None:
    with open_store(root) as store:
        first = push(store, content(1, 2 * CHUNK))
        push(store, content(2, 2 * CHUNK))
        other = push(store, content(3, 10), "other")
    lose_catalog(root)
    rot_shards(root, digest(content(2, 2 * CHUNK)[:CHUNK]), 4, 6, range(3))
    for slot in range(6):
        shutil.rmtree(volume_dir(root, slot) / "index")  # so that opening reads all records
    with open_store(root) as store:
        report = store.rebuild()
        assert len(report.skipped) == 2  # the head cannot be read, so it is not in the chain
        assert "3 shards left, 4 are needed" in report.skipped[0]
        assert store.history(first.file_id, user_id=USER) == [first]
        assert get(store, first) == content(1, 2 * CHUNK)
        assert get(store, other) == content(3, 10)
        assert store.stats().versions == 2


def test_too_few_volumes_lose_files_not_the_rest(root: Path) -> None:
    """With three of six volumes left, 4-of-6 files are out of reach, but 3-of-6 files are not."""
    with open_store(root) as store:
        push(store, content(1, CHUNK), "lost")
        kept = store.push(content(2, CHUNK), filename="kept", user_id=USER, profile=ErasureProfile(3, 6))
    lose_catalog(root)
    lose(root, 0, 2, 4)
    with open_store(root) as store:
        assert len(store.rebuild().undecided) == 4  # the disks may just not be mounted, and may have the lost file
        assert [version.filename for version in store.list_files(user_id=USER)] == ["kept"]
        store.repair()  # begins them anew
        report = store.rebuild()
        assert [version.filename for version in store.list_files(user_id=USER)] == ["kept"]
        assert (len(report.skipped), report.undecided) == (1, [])
        assert get(store, kept) == content(2, CHUNK)


# -- hostile content -------------------------------------------------------------------------------------


def _version_object(file_id: bytes, name: str, user: str, data: bytes, sequence: int = 1 << 60) -> tuple[bytes, bytes]:
    """Return id and bytes of a well-formed version object."""
    root = RootNode(1, len(data), CHUNK, 4, 6, 0, 0, digest(data) if data else b"")
    raw = encode_root(root)
    record = VersionRecord(RECORD_FORMAT, file_id, None, object_id(raw), len(data), user, name, 0, sequence, None, "")
    stored = seal(record, root, raw)
    return stored.version_id, stored.raw


def test_a_file_that_looks_like_metadata_stays_a_file(root: Path) -> None:
    """A user pushes the bytes of a version and of a tombstone for another user's file: they are just content."""
    with open_store(root) as store:
        victim = push(store, b"precious", "victim", "ada")
        _, forged = _version_object(bytes.fromhex(victim.file_id), "victim", "eve", b"")
        tombstone = encode_tombstone(Tombstone(RECORD_FORMAT, bytes.fromhex(victim.file_id), 1 << 60))
        for number, raw in enumerate((forged, tombstone)):
            push(store, raw, f"{number}", "eve")
            store.push(raw, filename=f"{number} copied", user_id="eve", profile=ErasureProfile(1, 6))
    lose_catalog(root)
    with open_store(root) as store:
        assert store.rebuild().skipped == []
        assert store.find("victim", user_id="ada") == victim
        assert get(store, victim) == b"precious"
        assert [version.filename for version in store.list_files(user_id="eve")] == ["0", "0 copied", "1", "1 copied"]


def test_whole_records_in_a_file_are_not_taken_for_records(root: Path) -> None:
    """They are copied from another store with framing and digest, but their tag is made with another key."""
    with open_store(root.with_name("other")) as other:
        push(other, b"x", "forged", "ada")
    copied = b"".join(path.read_bytes()[128:] for path in sorted(root.parent.glob("other/volumes/*/*.seg")))
    with open_store(root) as store:
        version = store.push(copied, filename="honest", user_id="ada", profile=ErasureProfile(1, 6))
    lose_catalog(root)
    for slot in range(6):
        shutil.rmtree(volume_dir(root, slot) / "index")
        segment = volume_dir(root, slot) / "00000001.seg"
        raw = bytearray(segment.read_bytes())
        raw[128 + 90] ^= 1  # damages the first record's header, so that the bytes after it are searched
        segment.write_bytes(raw) if slot else None
    with open_store(root) as store:
        store.rebuild()
        assert [found.filename for found in store.list_files(user_id="ada")] == ["honest"]
        assert get(store, version) == copied


@pytest.mark.parametrize(
    ("name", "user"), [("../../etc/passwd", "ada"), ("", "ada"), ("n" * 5000, "ada"), ("a\0b", "ada"), ("a", "")]
)
def test_a_volume_that_makes_up_versions_with_bad_names(root: Path, name: str, user: str) -> None:
    with open_store(root) as store:
        version = push(store, b"honest")
    identifier, raw = _version_object(bytes(16), name, user, b"")
    plant(root, stripe_key(Kind.VERSION, identifier, 1, 6), {0: (len(raw), raw)}, 6)
    lose_catalog(root)
    with open_store(root) as store:
        report = store.rebuild()
        assert (report.files, len(report.skipped)) == (1, 1)
        assert get(store, version) == b"honest"


@pytest.mark.parametrize("kind", [Kind.VERSION, Kind.NODE, Kind.TOMBSTONE])
@pytest.mark.parametrize("raw", [b"garbage", b"\x93\x01\xc4\x01x\x01", b"\x92\x00\xc4\x00", b"\xc1"])
def test_a_volume_full_of_malformed_metadata(root: Path, kind: Kind, raw: bytes) -> None:
    with open_store(root) as store:
        version = push(store, b"honest")
    for identifier in (digest(raw), bytes(32)):
        plant(root, stripe_key(kind, identifier, 1, 6), {0: (len(raw), raw)}, 6)
    lose_catalog(root)
    with open_store(root) as store:
        report = store.rebuild()
        assert report.files == 1
        assert bool(report.skipped) is (kind is not Kind.NODE)  # nodes that no version names are not needed
        assert get(store, version) == b"honest"


def test_a_made_up_version_whose_manifest_leads_nowhere(root: Path) -> None:
    """One root names a node with too few children, another a node that does not exist."""
    with open_store(root) as store:
        version = push(store, b"honest")
    node = b"\x92\x00\xc4\x20" + bytes(32)
    for number, child in enumerate((digest(node), digest(b"nowhere"))):
        made_up = RootNode(1, 2000 * CHUNK, CHUNK, 1, 6, 0, 1, child * 2)
        raw_root = encode_root(made_up)
        record = VersionRecord(
            RECORD_FORMAT, bytes([number]) * 16, None, object_id(raw_root), made_up.size, "ada", "bad", 0, 1, None, ""
        )
        stored = seal(record, made_up, raw_root)
        plant(root, stripe_key(Kind.VERSION, stored.version_id, 1, 6), {0: (len(stored.raw), stored.raw)}, 6)
    plant(root, stripe_key(Kind.NODE, digest(node), 1, 6), {0: (len(node), node)}, 6)
    lose_catalog(root)
    with open_store(root) as store:
        report = store.rebuild()
        assert (report.files, len(report.skipped)) == (1, 2)
        assert get(store, version) == b"honest"
        with pytest.raises(FileNotFound):
            store.stat("01" * 16, user_id="ada")


def test_two_files_of_one_name_become_one(root: Path) -> None:
    """This happens if a push is interrupted before it is acknowledged, and then repeated."""
    with open_store(root) as store:
        acknowledged = push(store, b"second")
    identifier, raw = _version_object(b"\xff" * 16, "file", USER, b"", sequence=1)
    plant(root, stripe_key(Kind.VERSION, identifier, 1, 6), {slot: (len(raw), raw) for slot in range(6)}, 6)
    lose_catalog(root)
    with open_store(root) as store:
        report = store.rebuild()
        assert (report.files, len(report.skipped)) == (1, 1)
        assert "a later file has this name" in report.skipped[0]
        assert store.find("file", user_id=USER) == acknowledged
        store.collect(grace_s=0)
        assert store.scrub().clean
        assert store.stats().versions == 1


def test_a_lost_file_is_told_by_name(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, content(1, CHUNK), "lost")
        chunk = store.chunk_ids(version.file_id, user_id=USER)[0]
    rot_shards(root, chunk, 4, 6, range(3))
    lose_catalog(root)
    with open_store(root) as store:  # the indexes are intact, so the rot is not noticed yet
        store.rebuild()
        with pytest.raises(DataLossError, match="'lost'"):
            get(store, version)
