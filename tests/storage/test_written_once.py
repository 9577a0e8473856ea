"""Shards that a volume has are not written to it again when another volume lacks its own."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage import FileStorage
from storage.formats.manifest import FAN_OUT
from storage.keys import ID_BYTES, STRIPE_KEY_BYTES, Kind, ShardKey, StripeKey
from storage.write.commit import GroupCommit
from tests.storage.helpers import CHUNK, USER, content, diff_of, digest, lose, open_store, push, records, volume_dir

LOST = 1
METADATA = (Kind.NODE, Kind.VERSION, Kind.TOMBSTONE)
SMALL = content(1, 3 * CHUNK)
LARGE = bytes((FAN_OUT + 1) * CHUNK)  # large enough for nodes, with a single repeated chunk


def _written_again(root: Path) -> dict[str, list[ShardKey]]:
    """Return metadata that is stored twice in a volume, by volume. Works if nothing was compacted."""
    found = {}
    for path in sorted((root / "volumes").iterdir()):
        counts = Counter(record.key for record in records(path) if record.key[32] in METADATA)
        found[path.name] = [key for key, count in counts.items() if count > 1]
    return {name: keys for name, keys in found.items() if keys}


def _counts(root: Path, slot: int) -> Counter[ShardKey]:
    return Counter(record.key for record in records(volume_dir(root, slot)))


def _tombstones(root: Path, slot: int) -> int:
    return sum(record.key[32] == Kind.TOMBSTONE for record in records(volume_dir(root, slot)))


def test_tombstones_go_where_they_are_missing(root: Path) -> None:
    with open_store(root) as store:
        for name in ("a", "b", "c"):
            store.delete(push(store, SMALL, name).file_id, user_id=USER)
    lose(root, LOST)
    with open_store(root) as store:
        store.repair()
        assert store.scrub().clean
    assert _written_again(root) == {}
    assert _tombstones(root, LOST) == 3


def test_nodes_of_known_content_go_where_they_are_missing(root: Path) -> None:
    with open_store(root) as store:
        push(store, LARGE, "a")
    lose(root, LOST)
    with open_store(root) as store:
        push(store, LARGE, "b")
    assert _written_again(root) == {}


def test_nodes_of_a_revision_go_where_they_are_missing(root: Path) -> None:
    with open_store(root) as store:
        push(store, LARGE, "a")
        base = push(store, content(2, CHUNK) + LARGE[CHUNK:], "b")
    lose(root, LOST)
    with open_store(root) as store:
        diff = diff_of(base, len(LARGE), [(0, digest(LARGE[:CHUNK]), LARGE[:CHUNK])])
        store.revise(base.file_id, diff, user_id=USER)
    assert _written_again(root) == {}


def test_a_repair_leaves_a_tombstone_that_is_being_written_to_its_delete(
    root: Path, store: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = push(store, SMALL)
    bury = GroupCommit._write_tombstones

    def later(commits: GroupCommit, tombstones: list[tuple[bytes, bytes]]) -> None:
        monkeypatch.setattr(GroupCommit, "_write_tombstones", bury)
        assert store.repair().complete  # the catalog has the metadata, but the volumes do not
        assert _tombstones(root, 0) == 0
        bury(commits, tombstones)

    monkeypatch.setattr(GroupCommit, "_write_tombstones", later)
    store.delete(doomed.file_id, user_id=USER)
    assert _tombstones(root, 0) == 1
    assert store.repair().shards_rebuilt == 0
    assert _written_again(root) == {}


def test_two_that_find_the_same_shards_missing_make_them_once(root: Path) -> None:
    with open_store(root) as store:
        push(store, SMALL)
    lose(root, LOST)
    with open_store(root) as store, ThreadPoolExecutor(4) as threads:
        stripes = [StripeKey(record.key[:STRIPE_KEY_BYTES]) for record in records(volume_dir(root, 0))]
        stripes = [stripe for stripe in stripes if stripe[ID_BYTES] == Kind.CHUNK]
        known = store._parts.stripes.shard_maps(stripes)
        for healed in [threads.submit(store._parts.stripes.heal_all, stripes, known) for _ in range(4)]:
            healed.result()
        push(store, SMALL, "again")
    assert {key for key, count in _counts(root, LOST).items() if count > 1} == set()
    assert len(_counts(root, LOST)) > len(stripes)
