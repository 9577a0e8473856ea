"""Opening a volume with a lost index: its segments are read again, whatever their state."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import lmdb
import msgspec
import pytest

from storage.errors import StoreUnavailable
from storage.keys import Kind, shard_key, stripe_key
from storage.shards.identity import VolumeIdentity, new_volume_key, read_identity
from storage.shards.port import Shard, VolumeFailed, VolumeUnavailable
from storage.shards.unread import UnreadParts
from storage.shards.volume import LocalVolume
from tests.storage.faulty_disk import FaultyDisk
from tests.storage.helpers import content, digest, flip, records

SECTOR = 512
SEGMENT_BYTES_MAX = 256 * 1024


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk()


@pytest.fixture
def volume(scratch: Path, disk: FaultyDisk) -> Iterator[LocalVolume]:
    identity = VolumeIdentity(store_id="0" * 32, slot=0, volumes=1, key=new_volume_key())
    volume = LocalVolume(scratch, identity, filesystem=disk, segment_bytes_max=SEGMENT_BYTES_MAX)
    yield volume
    volume.close()


def shard_of(seed: int, size: int = 5000) -> Shard:
    payload = content(seed, size)
    return Shard(shard_key(stripe_key(Kind.CHUNK, digest(payload), 1, 1), 0), size, digest(payload), payload)


SHARDS = [shard_of(seed) for seed in range(20)]


def reopened(volume: LocalVolume, disk: FaultyDisk, *, without_index: bool = True) -> LocalVolume:
    volume.close()
    if without_index:
        shutil.rmtree(volume.path / "index")
    return LocalVolume(volume.path, volume.identity, filesystem=disk, segment_bytes_max=SEGMENT_BYTES_MAX)


def readable(volume: LocalVolume, shards: list[Shard]) -> set[int]:
    """Return which of the shards can be read from the volume."""
    found = set()
    for at, shard in enumerate(shards):
        with suppress(VolumeUnavailable):  # set aside: its record is known but cannot be read
            kept = volume.read(shard.key)
            if kept is not None:
                assert bytes(kept.payload) == shard.payload
                found.add(at)
    return found


# Position of the unreadable sector in the segment; None: at the header of a record.
PLACES = {"first block": 0, "header": None, "payload": 33_000, "end": -SECTOR}


@pytest.mark.parametrize("place", PLACES)
def test_a_bad_sector_costs_only_what_lies_in_it_and_that_only_for_now(
    volume: LocalVolume, disk: FaultyDisk, place: str
) -> None:
    volume.append(SHARDS)
    volume.sync()
    volume.close()
    segment = volume.files.path_of(1)
    size = segment.stat().st_size
    at = PLACES[place]
    start = records(volume.path)[7].start if at is None else at % size
    disk.spoil(segment, start, start + SECTOR)
    first, last = start // 4096 * 4096, (start + SECTOR - 1) // 4096 * 4096 + 4096
    hit = {at for at, r in enumerate(records(volume.path)) if r.start < last and r.stop > first}
    assert 1 <= len(hit) <= 3

    volume = reopened(volume, disk)
    intact = set(range(len(SHARDS))) - hit
    assert readable(volume, SHARDS) >= intact
    more = [shard_of(100 + seed) for seed in range(3)]
    volume.append(more)
    volume.sync()
    location = volume.locate(more[0].key)
    assert location is not None
    assert location.segment == 2, "nothing is written behind what could not be read"
    assert segment.stat().st_size == size, "nothing is cut off"

    volume.remove([SHARDS[seed].key for seed in sorted(intact)[2:]])
    volume.compact(0.99)
    volume = reopened(volume, disk, without_index=False)
    assert readable(volume, SHARDS) >= set(sorted(intact)[:2])
    disk.heal()
    volume.verify(lambda _: None)
    assert readable(volume, SHARDS) >= hit | set(sorted(intact)[:2])
    assert readable(volume, more) == {0, 1, 2}
    volume.close()


def test_what_can_be_read_again_is_found_at_the_next_opening(volume: LocalVolume, disk: FaultyDisk) -> None:
    volume.append(SHARDS)
    volume.sync()
    disk.spoil(volume.files.path_of(1), records(volume.path)[7].start, records(volume.path)[7].start + SECTOR)
    volume = reopened(volume, disk)
    assert 7 not in readable(volume, SHARDS)
    disk.heal()
    volume = reopened(volume, disk, without_index=False)
    assert readable(volume, SHARDS) == set(range(len(SHARDS)))
    volume.close()


def test_a_sector_that_can_be_read_again_during_a_compaction_loses_nothing(
    volume: LocalVolume, disk: FaultyDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are not in the index yet, so the compaction would not move them."""
    volume.append(SHARDS)
    volume.sync()
    start = records(volume.path)[7].start
    disk.spoil(volume.files.path_of(1), start, start + SECTOR)
    volume = reopened(volume, disk)
    hit = set(range(20)) - readable(volume, SHARDS)
    assert 7 in hit
    volume.remove([SHARDS[at].key for at in range(20) if at not in hit])
    look_again = UnreadParts.look_again

    def heal_afterwards(parts: UnreadParts) -> None:
        look_again(parts)
        disk.heal()

    monkeypatch.setattr(UnreadParts, "look_again", heal_afterwards)
    volume.compact(0.99)
    monkeypatch.undo()
    volume.verify(lambda _: None)
    assert readable(volume, SHARDS) == hit
    assert volume.compact(0.99)[0] == 1, "now that all of it is known"
    assert readable(volume, SHARDS) == hit
    volume.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.ESTALE])
def test_a_disk_that_gives_nothing_is_out_of_reach(volume: LocalVolume, disk: FaultyDisk, number: int) -> None:
    volume.append(SHARDS)
    volume.sync()
    disk.fail(number, "read")
    with pytest.raises(VolumeUnavailable):
        reopened(volume, disk)
    disk.heal()
    volume = reopened(volume, disk, without_index=False)
    assert readable(volume, SHARDS) == set(range(len(SHARDS)))
    volume.close()


def test_segments_tell_which_volume_it_is_where_its_file_cannot_be_read(volume: LocalVolume, disk: FaultyDisk) -> None:
    """The first segment cannot be read either."""
    volume.append([shard_of(seed, 30_000) for seed in range(12)])
    volume.sync()
    disk.spoil(volume.files.path_of(1), 0, SECTOR)
    disk.fail(errno.EIO, "read_whole")
    assert read_identity(volume.path, disk) == volume.identity
    volume = reopened(volume, disk)
    assert volume.read(shard_of(11, 30_000).key) is not None
    volume.close()
    disk.spoil(volume.files.path_of(2), 0, SECTOR)
    with pytest.raises(StoreUnavailable):
        read_identity(volume.path, disk)
    disk.fail(errno.ENOMEM, "read_whole")
    with pytest.raises(StoreUnavailable):
        read_identity(volume.path, disk)


@pytest.mark.parametrize("rotten", [[19], [18, 19], [5, 17, 19]])
def test_rot_in_the_last_records_is_set_aside_not_cut_off(
    volume: LocalVolume, disk: FaultyDisk, rotten: list[int]
) -> None:
    volume.append(SHARDS)
    volume.sync()
    volume.close()
    found = records(volume.path)
    for at in rotten:
        flip(found[at].segment, found[at].stop - 1)
    volume = reopened(volume, disk)
    assert readable(volume, SHARDS) == set(range(20)) - set(rotten)
    volume.append([shard_of(100)])
    volume.sync()
    for at in rotten:
        flip(found[at].segment, found[at].stop - 1)
    volume.verify(lambda _: None)
    assert readable(volume, [*SHARDS, shard_of(100)]) == set(range(21))
    volume.close()


@pytest.mark.parametrize("document", ["newest", "unread", "aside", "segments", "shards"])
def test_a_damaged_entry_of_the_index_has_it_made_again(volume: LocalVolume, disk: FaultyDisk, document: str) -> None:
    volume.append([*SHARDS, tombstone(8)])
    volume.close()
    environment = lmdb.open(str(volume.path / "index"), max_dbs=8)
    table = environment.open_db(b"facts" if document in ("newest", "unread") else document.encode())
    key = {"newest": b"newest", "unread": b"unread\x01", "segments": bytes(4)}.get(document, bytes(36))
    with environment.begin(write=True) as txn:
        txn.put(key, b"\xc1", db=table)
    environment.close()
    volume = reopened(volume, disk, without_index=False)
    if document == "shards":  # damage to shards is found when they are read
        with pytest.raises(VolumeFailed):
            volume.verify(lambda _: None)
        volume = reopened(volume, disk, without_index=False)
    volume.verify(lambda _: None)
    assert readable(volume, [*SHARDS, tombstone(8)]) == set(range(21))
    assert volume.newest() == tombstone(8)
    volume.append([shard_of(100)])
    volume.close()


def tombstone(sequence: int) -> Shard:
    payload = msgspec.msgpack.encode((1, b"", sequence))
    return Shard(
        shard_key(stripe_key(Kind.TOMBSTONE, digest(payload), 1, 1), 0), len(payload), digest(payload), payload
    )


@pytest.mark.parametrize("flushed", [False, True])
def test_the_newest_record_is_the_newest_of_those_that_are_left(
    volume: LocalVolume, disk: FaultyDisk, flushed: bool
) -> None:
    tombstones = [tombstone(sequence) for sequence in (5, 9, 7, 3)]
    volume.append([*SHARDS, *tombstones])
    if flushed:
        volume.flush_index()
    assert volume.newest() == tombstones[1]
    volume.remove([tombstones[1].key])
    assert volume.newest() == tombstones[2]
    volume = reopened(volume, disk, without_index=False)
    volume.remove([tombstones[2].key])
    volume = reopened(volume, disk, without_index=False)
    assert volume.newest() == tombstones[0]
    volume.remove([tombstones[0].key, tombstones[3].key])
    assert volume.newest() is None
    volume.append([tombstones[3]])
    assert volume.newest() == tombstones[3]
    volume.close()


@pytest.mark.parametrize("claimed", [4, 1 << 62, None])
def test_a_record_that_is_not_what_its_key_names_is_not_the_newest(
    volume: LocalVolume, disk: FaultyDisk, claimed: int | None
) -> None:
    """Its bytes were changed before the digest was computed, so that the digest matches."""
    true = tombstone(9)
    changed = b"\xc1" if claimed is None else msgspec.msgpack.encode((1, b"", claimed))
    wrong = Shard(true.key, len(changed), digest(changed), changed)
    volume.append([tombstone(5), tombstone(7), tombstone(6), true])
    volume.append([wrong])
    assert volume.newest() == tombstone(7)
    volume.append([tombstone(8)])
    assert volume.newest() == tombstone(8)
    volume = reopened(volume, disk, without_index=True)
    assert volume.newest() == tombstone(8)
    volume.append([true])
    assert volume.newest() == true
    volume.close()


def test_a_disk_out_of_reach_is_not_asked_for_every_record(volume: LocalVolume, disk: FaultyDisk) -> None:
    volume.append([tombstone(sequence) for sequence in range(1, 50)])
    volume.sync()
    disk.fail(errno.ESTALE, "read")
    with pytest.raises(VolumeUnavailable):
        volume.newest()
    disk.fail(errno.EIO, "read")
    with pytest.raises(VolumeUnavailable):
        volume.newest()
    disk.heal()
    assert volume.newest() == tombstone(49)


@pytest.mark.parametrize("left", [1, 95, 96, 5000])
def test_a_torn_record_is_cut_off(volume: LocalVolume, disk: FaultyDisk, left: int) -> None:
    volume.append(SHARDS)
    volume.sync()
    volume.close()
    last = records(volume.path)[-1]
    with last.segment.open("r+b") as stream:
        stream.truncate(last.start + left)
    volume = reopened(volume, disk)
    assert readable(volume, SHARDS) == set(range(19))
    assert last.segment.stat().st_size == last.start
    assert volume.missing([SHARDS[19].key]) == [0]
    volume.close()
