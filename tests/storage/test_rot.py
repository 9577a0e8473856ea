"""Rot and lies in up to n-k volumes do not affect readers, and scrub and repair fix everything."""

from __future__ import annotations

import random
import shutil
from itertools import combinations
from pathlib import Path

import pytest

from storage import DataLossError, FileStorage, ShardsUnavailable, StoreFull, Version
from storage.keys import Kind, ShardKey, stripe_key
from tests.storage.helpers import (
    CHUNK,
    USER,
    check_all,
    content,
    digest,
    flip_bytes,
    get,
    holders,
    lose,
    lose_catalog,
    open_store,
    plant,
    push,
    push_many,
    records,
    rot_shards,
    volume_dir,
)

PROFILES = ((1, 3), (2, 3), (4, 6), (3, 5), (1, 2))
SIZES = (0, 1, 5, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK + 7)
Pushed = dict[str, tuple[Version, bytes]]


def _states_ok(store: FileStorage) -> bool:
    return all(volume.state == "ok" for volume in store.stats().volumes)


# -- lost volumes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine(module_scratch: Path) -> tuple[Path, Pushed]:
    """A closed 4-of-6 store, to be copied."""
    root = module_scratch / "pristine"
    with open_store(root, segment_bytes_max=100_000) as store:
        pushed = push_many(store, SIZES)
        push(store, content(77, 5000), "f3")
        return root, pushed


@pytest.mark.parametrize("pair", list(combinations(range(6), 2)))
def test_any_two_of_six_volumes_may_go(pristine: tuple[Path, Pushed], root: Path, pair: tuple[int, int]) -> None:
    shutil.copytree(pristine[0], root)
    lose(root, *pair)
    with open_store(root) as store:
        check_all(store, pristine[1])
        assert store.repair().complete
        assert store.scrub().clean
    others = [slot for slot in range(6) if slot not in pair]
    lose(root, *others[:2])
    with open_store(root) as store:
        check_all(store, pristine[1])


# -- flipped bytes ------------------------------------------------------------------------------------


def _store_with_rot(root: Path, k: int, n: int, seed: int, flips: int) -> tuple[Pushed, set[ShardKey]]:
    """Make a closed store with rotten records on n-k random volumes."""
    rng = random.Random(seed)
    with open_store(root, k=k, n=n, segment_bytes_max=rng.choice([50_000, None])) as store:
        pushed = push_many(store, SIZES)
    hit: set[ShardKey] = set()
    for slot in rng.sample(range(n), n - k):
        hit |= flip_bytes(volume_dir(root, slot), rng, flips)
    return pushed, {key for key in hit if key[32] != Kind.MARK}  # marks do not belong to files


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "n"), PROFILES)
def test_reads_are_exact_with_rot_in_any_volumes(root: Path, k: int, n: int, seed: int) -> None:
    pushed, _ = _store_with_rot(root, k, n, seed, flips=12)
    with open_store(root) as store:
        check_all(store, pushed)
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
        check_all(store, pushed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "n"), PROFILES)
def test_scrub_finds_exactly_what_is_rotten(root: Path, k: int, n: int, seed: int) -> None:
    pushed, hit = _store_with_rot(root, k, n, seed + 100, flips=12)
    with open_store(root) as store:
        report = store.scrub()
        assert (report.rotten, report.missing) == (len(hit), 0)
        assert {(damage.object_id, damage.slot) for damage in report.damaged} == {
            (key[:32].hex(), key[35]) for key in hit
        }
        assert store.scrub().missing == len(hit)  # they are in quarantine
        repaired = store.repair()
        assert (repaired.shards_rebuilt, repaired.complete) == (len(hit), True)
        assert store.scrub().clean
        check_all(store, pushed)


@pytest.mark.campaign
@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_rot_at_length(root: Path, seed: int) -> None:
    k, n = random.Random(seed).choice(PROFILES)
    pushed, hit = _store_with_rot(root, k, n, seed, flips=random.Random(seed).randrange(1, 60))
    with open_store(root) as store:
        assert store.scrub().rotten == len(hit)
        check_all(store, pushed)
        assert store.repair().complete
        assert store.scrub().clean


def test_every_byte_of_a_record_matters(root: Path) -> None:
    """A changed byte anywhere in header or payload is found."""
    with open_store(root, k=1, n=2) as store:
        version = push(store, b"0123456789")
    record = next(found for found in records(volume_dir(root, 0)) if found.key[32] == Kind.CHUNK)
    raw = record.segment.read_bytes()
    for offset in range(record.start, record.stop, 3):
        record.segment.write_bytes(raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :])
        shutil.copytree(root, root.with_name("copy"))
        with open_store(root.with_name("copy")) as store:
            assert store.scrub().rotten == 1
            assert get(store, version) == b"0123456789"
        shutil.rmtree(root.with_name("copy"))


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
def test_reads_heal(root: Path, size: int) -> None:
    data = content(1, size)
    with open_store(root) as store:
        version = push(store, data)
        chunks = store.chunk_ids(version.file_id, user_id=USER)
    rot_shards(root, chunks[0], 4, 6, [0, 2])
    with open_store(root) as store:
        assert get(store, version) == data
        store.wait_for_healing()
        assert store.scrub().clean
        assert {damage.kind for damage in store.stats().recent_damage} == {"rotten"}
        assert store.repair().shards_rebuilt == 0
    lose(root, *holders(chunks[0], 4, 6, 6)[3:5])
    with open_store(root) as store:
        assert get(store, version) == data


def test_rot_in_parity_is_found_by_scrub_alone(root: Path) -> None:
    with open_store(root) as store:
        version = push(store, content(1, CHUNK))
        chunk = store.chunk_ids(version.file_id, user_id=USER)[0]
    rot_shards(root, chunk, 4, 6, [4, 5])
    with open_store(root) as store:
        assert get(store, version) == content(1, CHUNK)
        assert store.scrub().rotten == 2
        assert store.repair().shards_rebuilt == 2
        assert store.scrub().clean


def test_rot_then_collect_then_repair(root: Path) -> None:
    """Compaction must not copy rot, nor forget that something is missing."""
    with open_store(root) as store:
        kept = push(store, content(1, 5000), "kept")
        doomed = push(store, content(2, CHUNK), "doomed")
        chunk = store.chunk_ids(kept.file_id, user_id=USER)[0]
    rot_shards(root, chunk, 4, 6, [0, 5])
    with open_store(root) as store:
        store.delete(doomed.file_id, user_id=USER)
        assert store.collect(grace_s=0).segments_compacted == 6
        assert store.repair().complete
        assert store.scrub().clean
    lose(root, *holders(chunk, 4, 6, 6)[1:3])
    with open_store(root) as store:
        assert get(store, kept) == content(1, 5000)


# -- more than n-k ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["rotten", "gone"])
def test_too_much_damage_is_told_and_touches_nothing_else(root: Path, damage: str) -> None:
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
        lost, data = pushed.pop("f7")
        chunk = store.chunk_ids(lost.file_id, user_id=USER)[2]
    rot_shards(root, chunk, 4, 6, [0, 1, 5])
    with open_store(root) as store:
        if damage == "gone":
            assert store.scrub().rotten == 3
        for _ in range(2):
            with pytest.raises(DataLossError) as caught:
                get(store, lost)
            error = caught.value
            assert (error.chunk, error.found, error.needed) == (chunk.hex(), 3, 4)
            assert (error.filename, error.file_id) == ("f7", lost.file_id)
            assert chunk.hex() in str(error)
        check_all(store, pushed)
        with store.open_file(lost.file_id, user_id=USER) as reader:  # the rest of the file
            assert reader.read(2 * CHUNK) == data[: 2 * CHUNK]
            reader.seek(3 * CHUNK)
            assert reader.read() == data[3 * CHUNK :]
        store.scrub()
        report = store.repair()
        assert not report.complete
        assert (report.lost_count, report.lost[0].object_id) == (1, chunk.hex())
        assert "f7" in report.lost[0].text
        check_all(store, pushed)
        store.delete(lost.file_id, user_id=USER)
        store.collect(grace_s=0)
        assert store.repair().complete
        assert store.scrub().clean


def test_a_volume_too_few_that_comes_back(root: Path, scratch: Path) -> None:
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    for slot in range(3):
        volume_dir(root, slot).rename(scratch / f"aside-{slot}")
    with open_store(root) as store, pytest.raises(ShardsUnavailable, match="mount its disk"):
        check_all(store, pushed)
    assert not volume_dir(root, 1).exists()  # lost volumes are not replaced unless a repair is requested
    (scratch / "aside-1").rename(volume_dir(root, 1))
    with open_store(root) as store:
        check_all(store, pushed)
        assert store.repair().complete
        assert _states_ok(store)
        assert store.scrub().clean


def test_metadata_survives_all_but_one_volume(root: Path) -> None:
    """Metadata is on all volumes, so with one left, lists and histories are complete even without the catalog."""
    with open_store(root) as store:
        pushed = push_many(store, SIZES)
    lose(root, 0, 1, 2, 3, 5)
    lose_catalog(root)
    with open_store(root) as store:
        undecided = store.rebuild().undecided  # the other disks may just not be mounted
        assert len(undecided) == 5 + len([size for size in SIZES if size])
        assert [version.filename for version in store.list_files(user_id=USER)] == ["f0"]
        store.repair()  # begins them anew
        report = store.rebuild()
        assert len(report.skipped) == len([size for size in SIZES if size])
        assert [version.filename for version in store.list_files(user_id=USER)] == ["f0"]  # the empty file
    assert pushed


# -- lies ---------------------------------------------------------------------------------------------


def _lie(
    root: Path, chunk: bytes, k: int, n: int, shards: dict[int, tuple[int, bytes]], kind: Kind = Kind.CHUNK
) -> None:
    plant(root, stripe_key(kind, chunk, k, n), shards, n)


@pytest.mark.parametrize(("k", "n"), [(4, 6), (1, 3), (2, 3)])
@pytest.mark.parametrize("first", [True, False])
def test_lying_shards_are_found_out(root: Path, k: int, n: int, first: bool) -> None:
    """Shards with correct framing and digest but wrong content, on n-k volumes at the same time."""
    data = content(1, CHUNK - 3)
    with open_store(root, k=k, n=n) as store:
        version = push(store, data)
    length = -(-len(data) // k)
    slots = list(range(n))[: n - k] if first else list(range(n))[k:]
    _lie(root, digest(data), k, n, {slot: (len(data), content(slot + 50, length)) for slot in slots})
    with open_store(root) as store:
        assert get(store, version) == data
        if first:  # parity is only read if data shards are wrong
            store.wait_for_healing()
            assert {damage.slot for damage in store.stats().recent_damage} == set(slots)
            assert store.scrub().clean
            assert get(store, version) == data


@pytest.mark.parametrize(("k", "n"), [(4, 6), (1, 3), (2, 4)])
@pytest.mark.parametrize("lied", [7, CHUNK - 1, 1 << 20])
@pytest.mark.parametrize("size", [CHUNK - 3, CHUNK])
def test_lies_about_the_length(root: Path, k: int, n: int, lied: int, size: int) -> None:
    """Liars that agree with each other must not outvote honest volumes."""
    data = content(1, size)
    with open_store(root, k=k, n=n) as store:
        version = push(store, data)
    wrong = content(60, -(-lied // k))
    _lie(root, digest(data), k, n, dict.fromkeys(range(n - k), (lied, wrong)))
    with open_store(root) as store:
        assert get(store, version) == data
        store.wait_for_healing()
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
    lose(root, *holders(digest(data), k, n, n)[n - k :][: n - k])
    with open_store(root) as store:
        assert get(store, version) == data


def test_lies_and_a_loss_together(root: Path) -> None:
    data = content(1, 3 * CHUNK)
    with open_store(root, k=3, n=6) as store:
        version = push(store, data)
    for index in range(3):
        chunk = data[index * CHUNK : (index + 1) * CHUNK]
        slot = holders(digest(chunk), 3, 6, 6).index(2)
        _lie(root, digest(chunk), 3, 6, {slot: (CHUNK, content(9, -(-CHUNK // 3)))})
    lose(root, 0, 5)
    with open_store(root) as store:
        assert get(store, version) == data
        store.wait_for_healing()
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
        assert get(store, version) == data


def test_a_lying_manifest_node(root: Path) -> None:
    """Readers get nodes from the catalog; repair reads them from volumes and must detect a lie."""
    data = b"".join(number.to_bytes(4, "big") * (CHUNK // 4) for number in range(1100))
    with open_store(root, k=1, n=3) as store:
        version = push(store, data)
    nodes = {record.key for record in records(volume_dir(root, 0)) if record.key[32] == Kind.NODE}
    assert len(nodes) == 2
    node = min(nodes)
    _lie(root, node[:32], 1, 3, {0: (4, b"\x92\x00\xc4\x00")}, Kind.NODE)
    lose(root, holders(node[:32], 1, 3, 3)[1])
    with open_store(root) as store:
        store.scrub()
        assert store.repair().complete
        assert store.scrub().clean
        assert get(store, version) == data
    lose_catalog(root)
    with open_store(root) as store:
        store.rebuild()
        assert get(store, version) == data


@pytest.mark.parametrize("size", [3000, CHUNK + 5])
def test_content_whose_stripe_cannot_be_read_is_made_anew_by_the_next_push_of_it(root: Path, size: int) -> None:
    """More shards than may be lost have wrong content under right keys, which shows only when they are read."""
    data, k, n = content(7, size), 2, 4
    with open_store(root, k=k, n=n) as store:
        version = push(store, data)
        chunks = store.chunk_ids(version.file_id, user_id=version.user_id)
    for chunk in chunks:
        piece = data[: min(size, CHUNK)] if chunk == digest(data[:CHUNK]) else data[CHUNK:]
        _lie(root, chunk, k, n, dict.fromkeys(range(3), (len(piece), content(8, -(-len(piece) // k)))))
    with open_store(root) as store:
        with pytest.raises(DataLossError):
            get(store, version)
        assert store.missing_chunks(chunks, user_id=version.user_id)[0]
        again = push(store, data, "again")
        assert get(store, again) == data
        assert get(store, version) == data
        assert not any(store.missing_chunks(chunks, user_id=version.user_id))
    with open_store(root) as store:
        assert get(store, version) == data


@pytest.mark.parametrize("size", [3000, CHUNK + 5])
def test_content_that_a_push_failed_to_make_anew_is_made_by_the_next_one(
    root: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push that ran out of space has not restored the content."""
    data, k, n = content(7, size), 2, 4
    with open_store(root, k=k, n=n) as store:
        version = push(store, data)
        chunks = store.chunk_ids(version.file_id, user_id=version.user_id)
    for chunk in chunks:
        piece = data[: min(size, CHUNK)] if chunk == digest(data[:CHUNK]) else data[CHUNK:]
        _lie(root, chunk, k, n, dict.fromkeys(range(3), (len(piece), content(8, -(-len(piece) // k)))))
    with open_store(root) as store:
        with pytest.raises(DataLossError):
            get(store, version)

        def full(*_args: object, **_options: object) -> None:
            raise StoreFull("no space left")

        with monkeypatch.context() as patched:
            patched.setattr(store._volumes, "append", full)
            with pytest.raises(StoreFull):
                push(store, data, "again")
        again = push(store, data, "again")
        assert get(store, again) == data
        assert get(store, version) == data
